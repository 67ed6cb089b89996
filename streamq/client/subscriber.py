"""Pub/sub on a connection of its own, which reconnects and reports each loss of the connection.

It knows channels and payloads, and nothing of what they mean.

Theory. Callers only say which channels they want. One task of the connection sends the difference between these and
what the connection was asked for, whenever either has changed. So the two meet again whatever is cancelled when, and no
command is cut in the middle. A channel counts as confirmed when the reply to the last command for it has come, and that
command was SUBSCRIBE: an earlier reply would be about a subscription that an UNSUBSCRIBE on its way ends.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from redis import exceptions

from streamq.client.resp_codec import pack_unchecked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
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
        self._wanted: set[bytes] = set()  # held, or waited for
        self._held: set[bytes] = set()  # a `subscribe` has returned, and no `unsubscribe` since
        self._waiting: Counter[bytes] = Counter()  # calls of `subscribe` that wait, by channel
        self._connection: Connection | None = None
        self._asked: set[bytes] = set()  # the last command for it was SUBSCRIBE, on this connection
        self._unanswered: Counter[bytes] = Counter()  # replies that are to come, by channel
        self._confirmed: set[bytes] = set()  # asked for, and answered
        self._restoring = 0  # replies that are to come to the first command of this connection
        self._unsent: set[bytes] = set()  # channels that may be wanted and not asked for, or the other way round
        self._unsent_added = anyio.Event()
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
        self._waiting.update(names)
        self._wanted |= names
        self._changed_for(names)
        self._error = None
        self._notify()
        try:
            with anyio.move_on_after(self._connector.timeout):
                while not (names <= self._confirmed or self._failed):
                    await self._changed.wait()
            if not names <= self._confirmed:
                raise self._failure()
            self._held |= names
        finally:
            for name in names:
                self._waiting[name] -= 1
                if not self._waiting[name]:
                    del self._waiting[name]
            self._drop_unwanted(names)

    async def unsubscribe(self, *channels: bytes | str) -> None:
        """End the subscription of these channels: no message of theirs is received from now on, unless another call
        of `subscribe` waits for them. Other channels stay subscribed.
        """
        names = {_bytes(channel) for channel in channels}
        self._held -= names
        self._drop_unwanted(names)

    def _drop_unwanted(self, names: set[bytes]) -> None:
        dropped = {name for name in names if name not in self._held and name not in self._waiting}
        self._wanted -= dropped
        self._changed_for(dropped)

    def _changed_for(self, names: set[bytes]) -> None:
        """Have the connection compare what is wanted of these channels with what it was asked for."""
        if self._connection is not None and names:  # the next connection is asked for all that is wanted
            self._unsent |= names
            self._unsent_added.set()

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
        self._unsent = set(self._wanted)
        first = self._take_unsent()
        self._restoring = len(self._asked)
        if not self._restoring:  # who wanted a channel has given up while it connected
            self._all_confirmed()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, connection, first, tasks.cancel_scope)
                tasks.start_soon(self._probe, connection, tasks.cancel_scope)
                try:
                    await self._read(connection)
                except Exception as error:  # noqa: BLE001 - each kind of stream has its own errors
                    self._keep_error(error)
                tasks.cancel_scope.cancel()
        finally:
            self._connection = None
            self._lost = self._ever_confirmed
            self._asked.clear()
            self._unanswered.clear()
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

    async def _write(self, connection: Connection, data: bytes, scope: anyio.CancelScope) -> None:
        """Send `data`, and then what changes. End the connection if that fails: the next one asks for all channels."""
        try:
            while True:
                if data:
                    with anyio.fail_after(self._reply_timeout):
                        async with self._sending:
                            await connection.stream.send(data)
                while not self._unsent:
                    self._unsent_added = anyio.Event()
                    await self._unsent_added.wait()
                data = self._take_unsent()
        except Exception:  # noqa: BLE001 - each kind of stream has its own errors
            scope.cancel()

    def _take_unsent(self) -> bytes:
        """Return the commands after which the connection has been asked for what is wanted; nothing if it has been."""
        changed, self._unsent = self._unsent, set()
        fresh = [name for name in changed if name in self._wanted and name not in self._asked]
        gone = [name for name in changed if name not in self._wanted and name in self._asked]
        return self._ask("UNSUBSCRIBE", gone) + self._ask("SUBSCRIBE", fresh)

    def _ask(self, command: str, channels: Collection[bytes]) -> bytes:
        if not channels:
            return b""
        if command == "SUBSCRIBE":
            self._asked.update(channels)
        else:
            self._asked.difference_update(channels)
        self._unanswered.update(channels)
        self._confirmed.difference_update(channels)
        return pack_unchecked([(command, *sorted(channels))])

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
        elif kind in (b"subscribe", b"unsubscribe"):
            self._answered(channel)

    def _answered(self, channel: bytes) -> None:
        """Note the server's reply about a channel. It replies in the order of the commands."""
        self._unanswered[channel] -= 1
        if self._unanswered[channel] <= 0:
            del self._unanswered[channel]
            if channel in self._asked:
                self._confirmed.add(channel)
        if self._restoring:
            self._restoring -= 1
            if not self._restoring:
                self._all_confirmed()

    def _all_confirmed(self) -> None:
        """Note that all channels that the connection began with are confirmed: from now on no message is missed."""
        self._connector.succeeded()
        if self._lost:
            self._lost = False
            if not (self._backlog and self._backlog[-1] == MISSED):
                self._backlog.append(MISSED)
        self._ever_confirmed = True


def _bytes(channel: bytes | str) -> bytes:
    return channel.encode() if isinstance(channel, str) else channel
