"""Sends read-only commands. A refused command returns None and is noted, so that the other checks can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamq.client import Command
from streamq.errors import BrokerError
from streamq.queue.store import Store
from streamq.wire.acl import rule_for_key
from streamq.wire.keys import Keys

SAMPLE: Final = 100  # most entries, members or names of one kind that are checked one by one
NOT_READY: Final = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY")  # the server answers no command
_CONTAINERS: Final = frozenset({"ACL", "CLIENT", "COMMAND", "CONFIG", "XGROUP", "XINFO"})


class Queries:
    """Sends read-only commands and notes which of them the server refuses.

    `refused` maps each missing permission, as an ACL rule, to the first command that needed it. Methods raise
    BrokerError if the server cannot be used.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.refused: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Queries to {self.store!r} refused={sorted(self.refused)}>"

    async def ask(self, *commands: Command) -> list[Any]:
        """Send commands and return one reply for each. It is None if the command was refused or failed."""
        replies = await self.store.attempt(commands) if commands else []
        return [self._answer(command, reply) for command, reply in zip(commands, replies, strict=True)]

    async def one(self, *command: str | float) -> Any:
        """Send one command and return its reply, as `ask` does."""
        return (await self.ask(command))[0]

    def _answer(self, command: Command, reply: Any) -> Any:
        if not isinstance(reply, BrokerError):
            return reply
        if reply.code in NOT_READY:
            raise reply
        if reply.code == "NOPERM":
            self.refused.setdefault(missing_permission(command, str(reply), self.store.keys), described(command))
        return None


def missing_permission(command: Command, refusal: str, keys: Keys) -> str:
    """Return the ACL rule that a refused command needs: for the command, or for all keys of the kind of its key."""
    words = [str(word) for word in command]
    if "access" in refusal:
        return rule_for_key(keys, target(command))
    return "+" + "|".join(words[: 2 if words[0] in _CONTAINERS else 1]).lower()


def target(command: Command) -> str:
    """Return the key or channel of a command, empty if it has none."""
    words = [str(word) for word in command]
    match words[0]:
        case "XREADGROUP" | "XREAD":
            return words[words.index("STREAMS") + 1]
        case "EVALSHA":
            return words[3]
        case "PING" | "TIME" | "WAIT" | "WAITAOF" | "EVAL" | "INFO" | "SCAN" | "CLIENT" | "CONFIG" | "COMMAND" | "ACL":
            return ""
        case name if name in _CONTAINERS and len(words) > 2:
            return words[2]
        case _:
            return words[1] if len(words) > 1 else ""


def described(command: Command) -> str:
    """Return a command as text: its name and its key."""
    name = " ".join(str(word) for word in command[: 2 if command[0] in _CONTAINERS else 1])
    what = target(command)
    return name if not what or what == name.partition(" ")[2] else f"{name} {what}"


def pairs(reply: Any) -> dict[str, Any]:
    """Return a flat list of names and values as a dict, an empty one for any other reply."""
    if not isinstance(reply, list):
        return {}
    return {text(name): value for name, value in zip(reply[::2], reply[1::2], strict=False)}


def text(value: Any) -> str:
    """Return a reply of bytes as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def rows(reply: Any) -> Sequence[Any]:
    """Return a reply that is a list, an empty list for any other."""
    return reply if isinstance(reply, list) else []


def lines(reply: Any) -> Mapping[str, str]:
    """Parse the reply of INFO into a dict."""
    parted = (line.partition(":") for line in text(reply or b"").splitlines())
    return {name: value for name, separator, value in parted if separator}
