"""Keeps one link up for as long as callers want one, and lets nobody wait for ever.

The policy of reconnecting lives here: the first failure ever is told at once; once a
connection has been up, callers whose commands were not sent wait for the next one, at most
the connect timeout; a refused password is always told at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from redis import exceptions

from streamq.client.shared_connection import EventFactory, Link, Outbox

if TYPE_CHECKING:
    from streamq.client.connection import Connector, Wire

_RESET_WITHIN = 1.0  # seconds that outstanding replies get before a reset cuts them off


class Multiplexer:
    """Many callers, one connection at a time."""

    def __init__(self, connector: Connector, event: EventFactory, *, reply_timeout: float) -> None:
        self._connector = connector
        self._outbox = Outbox(event)
        self._reply_timeout = reply_timeout
        self._was_up = False
        self._connecting = False
        self._last_error: Exception | None = None
        self._closed = False
        self.link: Link | None = None

    @property
    def state(self) -> str:
        """One of `closed`, `idle`, `connecting`, `backing off` and `connected`."""
        if self._closed:
            return "closed"
        if self.link is not None:
            return "connected"
        if self._connector.waiting:
            return "backing off"
        return "connecting" if self._connecting else "idle"

    async def exchange(self, data: bytes, wanted: int) -> list[Any]:
        """Send packed commands and return their `wanted` raw replies in order.

        Raises OutcomeUnknown if the commands may have reached the server and no reply came,
        and redis.exceptions.ConnectionError if they were certainly not sent.
        """
        outbox = self._outbox
        if outbox.full or self._closed:
            await self._admission()
        slot = outbox.submit(data, wanted) if self.link is None else self.link.submit(data, wanted)
        try:
            await slot.done.wait()
            if len(slot.replies) != wanted:
                await slot.wait()
        except BaseException:
            slot.abandoned = True
            raise
        return slot.result()

    async def _admission(self) -> None:
        limit = self._connector.timeout + self._reply_timeout
        with anyio.move_on_after(limit):
            await self._outbox.drained()
        if self._closed:
            raise exceptions.ConnectionError("the client is closed: use it inside 'async with client:'")
        if self._outbox.full:
            raise exceptions.ConnectionError(
                f"{self._connector.address.place} took nothing for {limit:g} s while {self._outbox.size} bytes waited"
            )

    async def run(self) -> None:
        """Connect when somebody waits, again and again; ends by cancellation alone."""
        try:
            while True:
                await self._outbox.filled()
                wire = await self._connected()
                if wire is not None:
                    await self._serve(wire)
        finally:
            self.close()

    async def _serve(self, wire: Wire) -> None:
        self._was_up = True
        self.link = link = Link(wire, self._outbox, reply_timeout=self._reply_timeout)
        try:
            await link.run()
        finally:
            self.link = None
            if link.completed:
                self._connector.succeeded()
            else:
                self._connector.failed()  # or a server that drops us at once would be dialled in a circle

    async def _connected(self) -> Wire | None:
        """Return a wire, or None as soon as nobody waits for one any more."""
        wire: Wire | None = None
        self._connecting = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire)
                wire = await self._dial()
                tasks.cancel_scope.cancel()
        except BaseException:
            if wire is not None:
                await wire.aclose()
            raise
        finally:
            self._connecting = False
        return wire

    async def _dial(self) -> Wire | None:
        while self._outbox.slots:
            try:
                return await self._connector.connect()
            except exceptions.BusyLoadingError as error:
                self._last_error = error
            except exceptions.ConnectionError as error:
                self._last_error = error
                if not self._was_up or isinstance(error, exceptions.AuthenticationError):
                    self._outbox.fail_all(type(error), str(error), error.__cause__)
        return None

    async def _expire(self) -> None:
        """Fail callers that have waited the connect timeout, within a tenth of it."""
        limit = self._connector.timeout
        while True:
            message = f"no connection to {self._connector.address.place} within {limit:g} s"
            if self._last_error is not None:
                message = f"{message}; the last attempt: {self._last_error}"
            self._outbox.expire(anyio.current_time(), limit, message, self._last_error)
            await anyio.sleep(limit / 10)

    async def reset(self) -> None:
        """Give up the connection; outstanding replies get one second to arrive."""
        link = self.link
        if link is None:
            return
        link.retire()
        with anyio.move_on_after(min(_RESET_WITHIN, self._reply_timeout)):
            await link.ended.wait()
        link.close("it was reset")
        await link.ended.wait()

    def close(self) -> None:
        """Fail everybody who waits and accept nobody more; the socket closes with `run`."""
        self._closed = True
        if self.link is not None:
            self.link.close("the client was closed")
        self._outbox.fail_all(exceptions.ConnectionError, "the client was closed before the command was sent")
