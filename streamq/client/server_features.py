"""What the server on the other side is and can do, found out by asking it.

Every answer may be missing: an ACL may refuse INFO or COMMAND, an embedded server may not
have them. What cannot be found out is `unknown`, empty, or False.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.client.codec import Command

# Asked one by one where the server cannot list its commands (Redis 6.2, an embedded server).
_NEWER: Final = ("XACKDEL", "XDELEX", "XNACK", "XAUTOCLAIM", "XCFGSET", "FUNCTION", "FCALL", "WAITAOF", "LMPOP")

QUESTIONS: Final[tuple[Command, ...]] = (
    ("HELLO",),
    ("INFO", "server"),
    ("COMMAND", "LIST"),
    ("COMMAND", "INFO", *_NEWER),
)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server behind a connection.

    `product` is `redis`, `valkey`, ... in lower case, or `unknown`; `version` is its own
    version as text, or empty; `commands` are the names it is known to have, in upper case.
    """

    product: str = "unknown"
    version: str = ""
    commands: frozenset[str] = field(default=frozenset(), repr=False)

    def has(self, name: str) -> bool:
        """Whether the server is known to have the command `name`, in any case of letters."""
        return name.upper() in self.commands

    def at_least(self, product: str, *version: int) -> bool:
        """Whether this is `product` in `version` or newer, as `at_least("redis", 8, 4)`.

        For what a command list cannot tell: options of a command.
        """
        numbers = tuple(int(number) for number in re.findall(r"\d+", self.version))
        return self.product == product and bool(numbers) and numbers >= version


def read_facts(replies: Sequence[Any]) -> ServerFacts:
    """Return what the replies to QUESTIONS tell; any of them may be an error."""
    hello, info, listed, asked = replies
    greeting = _pairs(hello)
    fields = _fields(info)
    product = fields.get("server_name") or greeting.get("server") or ("redis" if "redis_version" in fields else "")
    product = product.lower() or "unknown"
    version = fields.get(f"{product}_version") or greeting.get("version") or fields.get("redis_version") or ""
    return ServerFacts(product=product, version=version, commands=_names(listed) | _known(asked))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _pairs(reply: Any) -> dict[str, str]:
    if not isinstance(reply, list):
        return {}
    return {_text(name): _text(value) for name, value in zip(reply[::2], reply[1::2], strict=False)}


def _fields(reply: Any) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in _text(reply).splitlines())
    return {name: value for name, separator, value in lines if separator}


def _names(reply: Any) -> frozenset[str]:
    if not isinstance(reply, list):
        return frozenset()
    return frozenset(_text(name).upper() for name in reply if isinstance(name, bytes))


def _known(reply: Any) -> frozenset[str]:
    if not isinstance(reply, list):
        return frozenset()
    return frozenset(_text(entry[0]).upper() for entry in reply if isinstance(entry, list) and entry)
