"""The product, the version and the commands of a server, from its replies to a few queries.

Any reply may be missing: an ACL may refuse INFO or COMMAND, and an embedded server may not have
them. An unknown product is `unknown`, an unknown version is empty, an unknown command is absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.client.resp_codec import Command

# Queried by name, for servers that cannot list their commands (Redis 6.2, an embedded server).
_PROBED: Final = ("XACKDEL", "XDELEX", "XNACK", "XAUTOCLAIM", "XCFGSET", "FUNCTION", "FCALL", "WAITAOF", "LMPOP")

FEATURE_QUERIES: Final[tuple[Command, ...]] = (
    ("HELLO",),
    ("INFO", "server"),
    ("COMMAND", "LIST"),
    ("COMMAND", "INFO", *_PROBED),
)


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    """The server behind a connection.

    `product` is `redis`, `valkey`, ... in lower case, or `unknown`. `version` is the product's
    own version as text, or empty. `commands` are the known commands, in upper case.
    """

    product: str = "unknown"
    version: str = ""
    commands: frozenset[str] = field(default=frozenset(), repr=False)

    def has(self, name: str) -> bool:
        """Whether the server is known to have the command `name`, in upper or lower case."""
        return name.upper() in self.commands

    def at_least(self, product: str, *version: int) -> bool:
        """Whether this is `product` in `version` or newer, as `at_least("redis", 8, 4)`.

        Use this for options of a command: a list of commands does not show them.
        """
        numbers = tuple(int(number) for number in re.findall(r"\d+", self.version))
        return self.product == product and bool(numbers) and numbers >= version


def read_features(replies: Sequence[Any]) -> ServerFeatures:
    """Return the features from the replies to FEATURE_QUERIES. Any reply may be an error."""
    hello, info, listed, probed = replies
    greeting = _pairs(hello)
    fields = _fields(info)
    product = fields.get("server_name") or greeting.get("server") or ("redis" if "redis_version" in fields else "")
    product = product.lower() or "unknown"
    version = fields.get(f"{product}_version") or greeting.get("version") or fields.get("redis_version") or ""
    return ServerFeatures(product=product, version=version, commands=_names(listed) | _found(probed))


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


def _found(reply: Any) -> frozenset[str]:
    if not isinstance(reply, list):
        return frozenset()
    return frozenset(_text(entry[0]).upper() for entry in reply if isinstance(entry, list) and entry)
