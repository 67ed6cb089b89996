"""Asking the server: what it refuses is noted and answered with None, so that the rest can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamq.client import Command
from streamq.errors import BrokerError
from streamq.queue.store import Store

SAMPLE: Final = 100  # entries, members or names of one kind that are looked at one by one
NOT_READY: Final = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY")  # nothing can be asked
_CONTAINERS: Final = frozenset({"ACL", "CLIENT", "COMMAND", "CONFIG", "XGROUP", "XINFO"})


class Questions:
    """Commands that change nothing, and what came of them.

    `refused` are the permissions that were missing, as ACL rules, each with the first command that needed it.
    Raises BrokerError if the server is gone or cannot answer at all.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.refused: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Questions to {self.store!r} refused={sorted(self.refused)}>"

    async def ask(self, *commands: Command) -> list[Any]:
        """Return one answer for each command; None for what is refused, absent or of another type."""
        replies = await self.store.attempt(commands) if commands else []
        return [self._answer(command, reply) for command, reply in zip(commands, replies, strict=True)]

    async def one(self, *command: str | float) -> Any:
        """Return the answer to one command, as `ask`."""
        return (await self.ask(command))[0]

    def _answer(self, command: Command, reply: Any) -> Any:
        if not isinstance(reply, BrokerError):
            return reply
        if reply.code in NOT_READY:
            raise reply
        if reply.code == "NOPERM":
            self.refused.setdefault(permission(command, str(reply)), shown(command))
        return None


def permission(command: Command, refusal: str) -> str:
    """Return what the ACL lacks for a command that it refused: a command, a key or a channel."""
    words = [str(word) for word in command]
    if "access" in refusal:
        sign = "&" if "channel" in refusal else "~"
        return sign + target(command)
    return "+" + "|".join(words[: 2 if words[0] in _CONTAINERS else 1]).lower()


def target(command: Command) -> str:
    """Return the key or channel that a command is about."""
    words = [str(word) for word in command]
    match words[0]:
        case "XREADGROUP":
            return words[words.index("STREAMS") + 1]
        case "EVALSHA":
            return words[3]
        case name if name in _CONTAINERS and len(words) > 2:
            return words[2]
        case _:
            return words[1] if len(words) > 1 else ""


def shown(command: Command) -> str:
    """Return a command as a person would name it: what it does, and to which key."""
    name = " ".join(str(word) for word in command[: 2 if command[0] in _CONTAINERS else 1])
    what = target(command)
    return name if not what or what == name.partition(" ")[2] else f"{name} {what}"


def pairs(reply: Any) -> dict[str, Any]:
    """Return a flat list of names and values as a dict; empty for anything else."""
    if not isinstance(reply, list):
        return {}
    return {text(name): value for name, value in zip(reply[::2], reply[1::2], strict=False)}


def text(value: Any) -> str:
    """Return bytes of the server as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def rows(reply: Any) -> Sequence[Any]:
    """Return a list; an empty one for anything else."""
    return reply if isinstance(reply, list) else []


def lines(reply: Any) -> Mapping[str, str]:
    """Return the fields of INFO."""
    parted = (line.partition(":") for line in text(reply or b"").splitlines())
    return {name: value for name, separator, value in parted if separator}
