"""Lua scripts called by their digest, and their source for a server that does not know them.

A server loses its scripts at a restart, a failover and SCRIPT FLUSH. The registry from digest
to source belongs to the process, so that any client can repeat an EVALSHA as EVAL.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_BY_DIGEST: Final[dict[str, str]] = {}
_EVAL: Final[dict[Any, str]] = {
    "EVALSHA": "EVAL",
    b"EVALSHA": "EVAL",
    "EVALSHA_RO": "EVAL_RO",
    b"EVALSHA_RO": "EVAL_RO",
}


class Script:
    """A Lua script. Making one registers its source for the whole process."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        _BY_DIGEST[self.sha] = source

    def __repr__(self) -> str:
        return f"<Script {self.sha[:8]}>"

    def command(
        self, keys: Sequence[bytes | str] = (), args: Sequence[bytes | str | int | float] = ()
    ) -> tuple[bytes | str | int | float, ...]:
        """Return the command that runs the script with `keys` as KEYS and `args` as ARGV."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


def with_source(command: Sequence[Any]) -> tuple[Any, ...] | None:
    """Return an EVALSHA of a registered script as EVAL with its source. Return None for any other command."""
    name = _EVAL.get(command[0])
    if name is None or len(command) < 2:
        return None
    digest = command[1].decode() if isinstance(command[1], bytes) else command[1]
    source = _BY_DIGEST.get(digest)
    return None if source is None else (name, source, *command[2:])
