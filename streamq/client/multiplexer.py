"""Keeps one shared connection up while callers want one, and bounds the wait of every caller.

The policy of reconnecting is here:

- The first failure of the very first connection is raised at once.
- Once there was a connection, requests that were not sent wait for the next one, for the connect
  timeout at most.
- A refused password is always raised at once.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any

import anyio
from redis import exceptions

from streamq.client.send_queue import EventFactory, SendQueue
from streamq.client.shared_connection import SharedConnection

if TYPE_CHECKING:
    from streamq.client.connection import Connection, Connector
    from streamq.client.owner import Owner

_RESET_WITHIN = 1.0  # seconds that outstanding replies may take before a reset closes the connection


class Multiplexer:
    """Many callers, one connection at a time. `current` is that connection, or None."""

    def __init__(
        self, connector: Connector, owner: Owner, new_event: EventFactory, *, reply_timeout: float
    ) -> None:  # fmt: skip
        self._owner = owner
        self._connector = connector
        self._queue = SendQueue(new_event)
        self._reply_timeout = reply_timeout
        self.ever_connected = False  # the server could be used once
        self._connecting = False
        self._last_error: Exception | None = None
        self._closed = False
        self.current: SharedConnection | None = None

    @property
    def state(self) -> str:
        """One of `closed`, `idle`, `connecting`, `backing off` and `connected`."""
        if self._closed:
            return "closed"
        if self.current is not None:
            return "connected"
        if self._connector.backing_off:
            return "backing off"
        return "connecting" if self._connecting else "idle"

    async def exchange(self, data: bytes, reply_count: int) -> list[Any]:
        """Send packed commands and return their `reply_count` raw replies in order.

        Raises OutcomeUnknown if the commands may have reached the server and no reply came,
        redis.exceptions.ConnectionError if they were certainly not sent, and WrongLoopError if the
        client was opened elsewhere.
        """
        owner, queue = self._owner, self._queue
        if get_ident() != owner.thread or not owner.is_running():
            raise owner.error()
        if queue.full or self._closed:
            await self._wait_for_room()
        request = (queue if self.current is None else self.current).submit(data, reply_count)
        try:
            await request.event.wait()
            if len(request.replies) != reply_count:
                await request.wait()
        except BaseException:
            request.abandoned = True
            raise
        return request.result()

    async def _wait_for_room(self) -> None:
        limit = self._connector.timeout + self._reply_timeout
        with anyio.move_on_after(limit):
            await self._queue.wait_for_room()
        if self._closed:
            raise exceptions.ConnectionError("the client is closed: use it inside 'async with client:'")
        if self._queue.full:
            raise exceptions.ConnectionError(
                f"{self._connector.address.place} accepted no bytes for {limit:g} s while {self._queue.size} waited"
            )

    async def run(self) -> None:
        """Connect whenever a caller waits. Ends only by cancellation."""
        try:
            while True:
                await self._queue.wait_for_requests()
                connection = await self._connect_while_wanted()
                if connection is not None:
                    await self._run_connection(connection)
        finally:
            self.close()

    async def _run_connection(self, connection: Connection) -> None:
        self.ever_connected = True
        self.current = current = SharedConnection(connection, self._queue, reply_timeout=self._reply_timeout)
        try:
            await current.run()
        finally:
            self.current = None
            if current.completed:
                self._connector.succeeded()
            else:
                self._connector.failed()  # otherwise a server that drops us at once would be dialled without a pause

    async def _connect_while_wanted(self) -> Connection | None:
        """Return a connection, or None as soon as no request waits for one."""
        connection: Connection | None = None
        self._connecting = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire_requests)
                connection = await self._connect()
                tasks.cancel_scope.cancel()
        except BaseException:
            if connection is not None:
                await connection.aclose()
            raise
        finally:
            self._connecting = False
        return connection

    async def _connect(self) -> Connection | None:
        while self._queue.requests:
            try:
                return await self._connector.connect()
            except exceptions.BusyLoadingError as error:
                self._last_error = error
            except exceptions.ConnectionError as error:
                self._last_error = error
                if not self.ever_connected or isinstance(error, exceptions.AuthenticationError):
                    self._queue.fail_all(type(error), str(error), error.__cause__)
        return None

    async def _expire_requests(self) -> None:
        """Fail requests that have waited for the connect timeout, late by a tenth of it at most."""
        limit = self._connector.timeout
        while True:
            message = f"no connection to {self._connector.address.place} within {limit:g} s"
            if self._last_error is not None:
                message = f"{message}; the last attempt: {self._last_error}"
            self._queue.expire(anyio.current_time(), limit, message, self._last_error)
            await anyio.sleep(limit / 10)

    async def reset(self) -> None:
        """Give up the connection. Outstanding replies get one second to arrive."""
        current = self.current
        if current is None:
            return
        current.drain()
        with anyio.move_on_after(min(_RESET_WITHIN, self._reply_timeout)):
            await current.ended.wait()
        current.close("it was reset")
        await current.ended.wait()

    def close(self) -> None:
        """Fail every request, and accept no more. The socket is closed when `run` ends."""
        self._closed = True
        if self.current is not None:
            self.current.close("the client was closed")
        self._queue.fail_all(exceptions.ConnectionError, "the client was closed before the command was sent")
