"""One round trip of a consumer to the server: its commands, and the function that gets each reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamq.client import Command
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, OutcomeUnknownError
from streamq.queue.server_errors import concerns_server
from streamq.queue.store import Store
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")


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

    def add_then(self, command: Command, delivery: Delivery) -> None:
        """Add the command that follows the outcome of a delivery, if there is one. It is sent again with it alone."""
        if command:
            self.add(command, _log_refused, delivery)

    def take_handlers(self) -> list[Callable[[Any], bool]]:
        """Return the reply handlers, and have nothing any more: each holds its delivery, and that what a run left."""
        handlers, self.handlers, self.commands = self.handlers, [], []
        return handlers

    async def carry_out(self, store: Store) -> BrokerError | None:
        """Send the commands, and call the reply handlers; return the error if the server cannot be used."""
        worst: BrokerError | None = None
        replies: list[Any] = [OutcomeUnknownError("cancelled")] * len(self.commands)
        try:
            replies = await store.attempt(self.commands)
        except BrokerError as error:
            replies = [error] * len(self.commands)
        finally:  # if this was cancelled, nobody knows which were carried out
            for reply, handler in zip(replies, self.handlers, strict=True):
                try:
                    if handler(reply):
                        worst = reply
                except Exception:
                    log.exception("a reply of the server could not be taken in", event="internal_error")
        return worst


def _log_refused(delivery: Delivery, reply: Any) -> bool:
    if isinstance(reply, BrokerError) and not concerns_server(reply):
        log.info("a waiter cannot be woken, it asks by itself later: %s", reply, event="limit_refused", of=delivery)
    return False
