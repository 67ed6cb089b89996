"""Pub/sub on a connection of its own, which reconnects and reports each loss of the connection.

It knows channels and payloads, and nothing of what they mean.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from redis import exceptions

from streamq.client.resp_codec import pack_unchecked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from streamq.client.connection import Connection, Connector

MISSED: Final = (b"", b"")
"""Returned by `receive` after the connection was lost: messages may have been missed."""

_BACKLOG: Final = 10_000  # messages kept for a slow reader; beyond them nothing is read from the server
_CLOSE_WITHIN: Final = 2.0  # seconds
_MESSAGE_PARTS: Final = 3  # kind, channel, payload or count


class Subscriber:
    """A connection for pub/sub alone. Made by `Client.subscriber`.

    It connects at the first `subscribe`. When the connection is lost, it connects again after
    the backoff, subscribes to the same channels, and `receive` returns `(b"", b"")` once. A
    silent connection is tested with PING.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        reply_timeout: float,
        start: Callable[[Callable[[], Awaitable[None]], str], None],
    ) -> None:
        self._connector = connector
        self._reply_timeout = reply_timeout
        self._start = start
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._wanted: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._unconfirmed: set[bytes] = set()  # wanted, and not confirmed since they were asked for
        self._waiting: Counter[bytes] = Counter()  # calls of `subscribe` that wait, by channel
        self._connection: Connection | None = None
        self._sending = anyio.Lock()
        self._backlog: deque[tuple[bytes, bytes] | Exception] = deque()
        self._changed = anyio.Event()
        self._error: Exception | None = None
        self._last_received = 0.0
        self._ever_confirmed = False
        self._lost = False  # messages may have been missed, and `receive` has not reported it yet
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._connection is None else "connected"
        return f"<Subscriber {self._connector.address} {state} channels={len(self._wanted)}>"

    async def __aenter__(self) -> Self:
        self._start(self._run, "streamq subscriber")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.cancel()
        with anyio.move_on_after(_CLOSE_WITHIN, shield=True):
            await self._ended.wait()
        self._closed = True

    async def subscribe(self, *channels: bytes | str) -> None:
        """Subscribe to channels, and return when the server has confirmed all of them.

        Raises redis.exceptions.ConnectionError (AuthenticationError) if the server does not
        confirm them within the connect timeout. Raises ResponseError if an ACL refuses a channel.
        After an error the channels are not subscribed to.
        """
        names = {_bytes(channel) for channel in channels}
        fresh = names - self._wanted
        self._wanted |= names
        self._unconfirmed |= fresh
        self._waiting.update(names)
        self._error = None
        self._notify()
        try:
            if self._connection is not None and fresh:
                await self._send(self._connection, "SUBSCRIBE", fresh)
            with anyio.move_on_after(self._connector.timeout):
                while not (names <= self._confirmed or self._failed):
                    await self._changed.wait()
        finally:
            confirmed = names <= self._confirmed
            self._waiting -= Counter(names)
            given_up = {name for name in names & self._unconfirmed if not self._waiting[name]}
            self._wanted -= given_up
            self._unconfirmed -= given_up
        if not confirmed:
            raise self._failure()

    async def unsubscribe(self, *channels: bytes | str) -> None:
        """End the subscription of these channels. Other channels stay subscribed."""
        names = {_bytes(channel) for channel in channels} & self._wanted
        self._wanted -= names
        self._confirmed -= names
        if self._connection is not None and names:
            await self._send(self._connection, "UNSUBSCRIBE", names)

    async def receive(self) -> tuple[bytes, bytes]:
        """Wait for a message, and return its channel and payload. One task may call this at a time.

        Returns `(b"", b"")` once after the connection was lost and is back. Raises
        AuthenticationError if the server refuses a new connection, NoPermissionError if it refuses
        the channels on it, and ConnectionError if the subscriber or its client is closed.
        """
        while not self._backlog:
            if self._closed:
                raise exceptions.ConnectionError("the subscriber is closed; open a new one with client.subscriber()")
            await self._changed.wait()
        item = self._backlog.popleft()
        if len(self._backlog) == _BACKLOG - 1:
            self._notify()  # there is room again
        if isinstance(item, Exception):
            raise item
        return item

    @property
    def _failed(self) -> bool:
        return self._closed or self._error is not None

    def _failure(self) -> Exception:
        if self._error is not None:
            return self._error
        if self._closed:
            return exceptions.ConnectionError("the subscriber is closed; open a new one with client.subscriber()")
        limit = self._connector.timeout
        return exceptions.ConnectionError(
            f"{self._connector.address.place} did not confirm the subscription within {limit:g} s"
        )

    def _notify(self) -> None:
        """Wake all tasks that wait for a change of state."""
        self._changed.set()
        self._changed = anyio.Event()

    async def _run(self) -> None:
        try:
            with self._scope:
                while True:
                    while not self._wanted:
                        await self._changed.wait()
                    await self._connect_and_read()
        finally:
            self._closed = True
            self._ended.set()
            self._notify()

    async def _connect_and_read(self) -> None:
        """Connect once, and read until the connection breaks. Raises nothing but cancellation."""
        try:
            connection = await self._connector.connect()
        except exceptions.ConnectionError as error:
            self._connect_failed(error)
            return
        self._connection = connection
        self._last_received = anyio.current_time()
        try:
            await self._send(connection, "SUBSCRIBE", self._wanted)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._probe, connection, tasks.cancel_scope)
                try:
                    await self._read(connection)
                except Exception as error:  # noqa: BLE001 - each kind of stream has its own errors
                    self._keep_error(error)
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - sending failed: the connection is broken
            self._keep_error(error)
        finally:
            self._connection = None
            self._lost = self._ever_confirmed
            self._confirmed.clear()
            self._connector.failed()
            await connection.aclose()

    def _keep_error(self, error: Exception) -> None:
        """Keep the error that ended the connection, for a `subscribe` that waits.

        A refusal that no `subscribe` waits for is about channels that were confirmed before: a right was taken away,
        and the server ended the connection. `receive` raises it.
        """
        if isinstance(error, exceptions.RedisError):
            self._error = error
            if isinstance(error, exceptions.NoPermissionError) and not self._waiting:
                self._report(error)
            self._notify()

    def _connect_failed(self, error: exceptions.ConnectionError) -> None:
        self._error = error
        if isinstance(error, exceptions.AuthenticationError):
            self._report(error)
        self._notify()

    def _report(self, error: Exception) -> None:
        """Have `receive` raise an error, once while nobody receives."""
        if not (self._backlog and isinstance(self._backlog[-1], Exception)):
            self._backlog.append(error)

    async def _send(self, connection: Connection, command: str, channels: set[bytes]) -> None:
        """Send one command completely. If that fails, close the connection: the next one subscribes to all channels."""
        if not channels:
            return
        data = pack_unchecked([(command, *sorted(channels))])
        try:
            with anyio.CancelScope(shield=True), anyio.fail_after(self._reply_timeout):
                async with self._sending:
                    await connection.stream.send(data)
        except Exception:  # noqa: BLE001 - each kind of stream has its own errors
            await connection.aclose()

    async def _probe(self, connection: Connection, scope: anyio.CancelScope) -> None:
        """Send PING when the server has been silent for the reply timeout.

        End the connection if no reply comes within half of it.
        """
        silence, limit = self._reply_timeout, self._reply_timeout / 2
        while True:
            last_received = self._last_received
            await anyio.sleep(max(0.0, last_received + silence - anyio.current_time()))
            if self._last_received != last_received:
                continue
            if len(self._backlog) >= _BACKLOG:  # a slow reader: a reply to PING would not be read
                await anyio.sleep(limit)
                continue
            try:
                with anyio.fail_after(limit):
                    asked = anyio.current_time()
                    async with self._sending:
                        await connection.stream.send(pack_unchecked([("PING",)]))
                    while self._last_received < asked:
                        await self._changed.wait()
            except Exception:  # noqa: BLE001 - no reply, or any error of a stream
                scope.cancel()
                return

    async def _read(self, connection: Connection) -> None:
        gets = connection.reader.gets
        while True:
            await connection.feed()
            self._last_received = anyio.current_time()
            reply = gets()
            while reply is not False:
                self._handle(reply)
                reply = gets()
            self._notify()
            while len(self._backlog) >= _BACKLOG:
                await self._changed.wait()

    def _handle(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply, list) or len(reply) != _MESSAGE_PARTS:
            return  # the reply to PING
        kind, channel, payload = reply
        if kind == b"message":
            if channel in self._wanted:
                self._backlog.append((channel, payload))
        elif kind == b"subscribe":
            self._confirmed.add(channel)
            self._unconfirmed.discard(channel)
            if self._wanted <= self._confirmed:
                self._all_confirmed()

    def _all_confirmed(self) -> None:
        """Note that all channels are confirmed: no message is missed from now on."""
        self._connector.succeeded()
        if self._lost:
            self._lost = False
            if not (self._backlog and self._backlog[-1] == MISSED):
                self._backlog.append(MISSED)
        self._ever_confirmed = True


def _bytes(channel: bytes | str) -> bytes:
    return channel.encode() if isinstance(channel, str) else channel
