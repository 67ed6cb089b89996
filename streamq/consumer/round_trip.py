"""One round trip of a consumer to the server: its commands, and the function that gets each reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamq.client import Command


class RoundTrip:
    """Commands that travel together.

    Each command has a reply handler. It gets the reply, or the error in its place. It returns True if the command was
    refused or lost: the consumer then waits before it sends more.
    """

    __slots__ = ("commands", "handlers")

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.handlers: list[Callable[[Any], bool]] = []

    def __repr__(self) -> str:
        return f"<RoundTrip of {len(self.commands)} commands>"

    def add(self, command: Command, handler: Callable[[Any, Any], bool], subject: Any) -> None:
        """Add a command; `handler(subject, reply)` is called with the reply."""
        self.commands.append(command)
        self.handlers.append(lambda reply: handler(subject, reply))
