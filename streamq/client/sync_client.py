"""The client of a program without an event loop: the commands of `Client`, over connections that block their thread.

Theory. Whatever awaits the client awaits nothing else. So if no method of the client ever suspends, a coroutine above
it runs from its beginning to its end with one `send(None)`, in the thread that calls it and without an event loop. Each
exchange has a connection of the pool to itself, so threads do not wait for one another. The policy of reconnecting is
that of `multiplexer`:

- The first failure of the very first connection is raised at once.
- Once there was a connection, commands that were not sent wait for the next one, for the connect timeout at most.
- A refused password is always raised at once.
- Commands that may have been sent, and have no reply, are an OutcomeUnknown. They are never sent again from here.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Final, Self

from redis import exceptions

from streamq.client.client import Client
from streamq.client.owner import close_after_fork
from streamq.client.resp_codec import Command, OutcomeUnknown, pack_texts, pack_unchecked
from streamq.client.scripts import with_source
from streamq.client.server_features import FEATURE_QUERIES, ServerFeatures, read_features
from streamq.client.sync_connection import NothingSentError, SyncConnection, SyncConnector
from streamq.client.sync_stream import SyncDial, sync_dial_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from streamq.client.address import Address


_IDLE: Final = 60.0  # seconds after which an idle connection is closed, as others are given back
_SHORTEST: Final = 0.001  # seconds: 0 would not wait at all


class _Limit(threading.local):
    """Until when this thread waits, as a time of `time.monotonic`."""

    until = inf


class ConnectionPool:
    """Connections for any number of threads: each has one to itself while it uses it. A fork leaves the child none."""

    def __init__(self, connector: SyncConnector, *, reply_timeout: float) -> None:
        self.connector = connector
        self.reply_timeout = reply_timeout
        self.ever_connected = False  # the server could be used once
        self.closed = False
        self._idle: deque[SyncConnection] = deque()  # its ends are safe to use in any thread
        self._lock = threading.RLock()  # a signal handler may send, too
        self._open: set[SyncConnection] = set()
        self._limit = _Limit()
        weakref.finalize(self, _close_all, self._open)  # of a program that never closes it, at its end
        close_after_fork(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._open)} connections, {len(self._idle)} idle"
        return f"<ConnectionPool to {self.connector.address}: {state}>"

    async def exchange(self, data: bytes, reply_count: int) -> list[Any]:
        """Do as `exchange_now`: what a `Client` awaits. It never suspends."""
        return self.exchange_now(data, reply_count)

    def exchange_now(self, data: bytes, reply_count: int) -> list[Any]:
        """Send packed commands and return their `reply_count` raw replies in order.

        Raises OutcomeUnknown if the commands may have reached the server and no reply came, and
        redis.exceptions.ConnectionError if they were certainly not sent.
        """
        until, limit = 0.0, self._limit.until
        while True:
            connection = self.take()
            if limit < inf:
                connection.set_timeout(max(_SHORTEST, min(limit - time.monotonic(), self.reply_timeout)))
            try:
                replies = connection.exchange(data, reply_count)
            except NothingSentError:
                self.discard(connection)
                until = until or time.monotonic() + self.connector.timeout
                if time.monotonic() >= until:
                    raise
            except BaseException:  # an interrupt may have left a reply on its way
                self.discard(connection)
                raise
            else:
                self.give_back(connection)
                return replies

    def take(self) -> SyncConnection:
        """Return a connection that nobody else uses. Raises redis.exceptions.ConnectionError."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if connection.usable:
                return connection
            self.discard(connection)
        return self._connect()

    def give_back(self, connection: SyncConnection) -> None:
        """Keep a connection that has all its replies for the next that asks."""
        if connection.closed or connection.must_reconnect or self.closed:
            self.discard(connection)
        else:
            if connection.first_use:
                connection.first_use = False
                self.connector.succeeded()
            if self._limit.until < inf:
                connection.set_timeout(self.reply_timeout)
            connection.idle_since = now = time.monotonic()
            self._idle.append(connection)
            try:
                # A burst of calls may have made more connections than are needed now.
                if now - self._idle[0].idle_since > _IDLE:
                    self._drop(self._idle.popleft(), now)
            except IndexError:  # another thread was quicker
                pass

    def _drop(self, oldest: SyncConnection, now: float) -> None:
        """Close the connection that has been idle for longest, unless that was used meanwhile."""
        if now - oldest.idle_since > _IDLE:
            self.discard(oldest)
        else:
            self._idle.appendleft(oldest)

    def discard(self, connection: SyncConnection) -> None:
        """Close a connection."""
        if not connection.proven:
            self.connector.failed()  # otherwise a server that drops us at once would be dialled without a pause
        connection.close()
        with self._lock:
            self._open.discard(connection)

    @contextmanager
    def within(self, until: float) -> Iterator[None]:
        """Have this thread wait until a time of `time.monotonic` at most, if the server is away or silent."""
        before, self._limit.until = self._limit.until, until
        try:
            yield
        finally:
            self._limit.until = before

    @contextmanager
    def connection(self) -> Iterator[SyncConnection]:
        """Yield a connection for more than one exchange. An error closes it."""
        connection = self.take()
        try:
            yield connection
        except BaseException:
            self.discard(connection)
            raise
        self.give_back(connection)

    def close(self) -> None:
        """Close every connection. A thread that waits for a reply gets OutcomeUnknown."""
        with self._lock:
            self.closed = True
            in_use = self._open.difference(self._idle)
            self._open.clear()
        for connection in in_use:
            connection.interrupt()  # its thread closes it: the number of a closed file may be another's by then
        while self._idle:
            self._idle.pop().close()

    def close_in_child(self) -> None:
        """Forget the connections of the parent, in the child of a fork. Their sockets are closed each by itself."""
        self._idle = deque()
        self._lock = threading.RLock()
        self._open.clear()

    def _connect(self) -> SyncConnection:
        """Return a new connection. Raises redis.exceptions.ConnectionError, by the policy of reconnecting."""
        begun = time.monotonic()
        last: Exception | None = None
        until = min(begun + self.connector.timeout, self._limit.until)
        while True:
            if self.closed:
                raise exceptions.ConnectionError("the client is closed")
            try:
                connection = self.connector.connect(until)
            except exceptions.BusyLoadingError as error:
                last = error
            except exceptions.ConnectionError as error:
                if not self.ever_connected or isinstance(error, exceptions.AuthenticationError):
                    raise
                last = error
            else:
                return self._begun(connection)
            if time.monotonic() >= until:
                place = self.connector.address.place
                raise exceptions.ConnectionError(
                    f"no connection to {place} within {until - begun:.3g} s; the last attempt: {last}"
                ) from last

    def _begun(self, connection: SyncConnection) -> SyncConnection:
        connection.set_timeout(self.reply_timeout)
        self.ever_connected = True
        with self._lock:
            if not self.closed:
                self._open.add(connection)
                return connection
        connection.close()
        raise exceptions.ConnectionError("the client is closed")


def _close_all(connections: set[SyncConnection]) -> None:
    while connections:
        connections.pop().close()


class SyncClient(Client):
    """A `Client` whose coroutines never suspend: they block the thread that runs them. Any thread may use it.

    Arguments as for `Client`; `dial` opens streams that block.
    """

    _pack = staticmethod(pack_texts)

    def __init__(self, address: Address, *, dial: SyncDial | None = None, **options: Any) -> None:
        super().__init__(address, dial=_no_dial, **options)
        connector = SyncConnector(
            address, dial or sync_dial_to(address), timeout=self.connect_timeout, backoff=self._backoff,
            client_name=self._client_name, jitter=self._jitter,
        )  # fmt: skip
        self.pool = ConnectionPool(connector, reply_timeout=self.reply_timeout)
        self._multiplexer: Any = self.pool  # has the `exchange` that the methods of `Client` send with

    def __repr__(self) -> str:
        return f"<SyncClient {self.pool!r}>"

    @property
    def ever_connected(self) -> bool:
        return self.pool.ever_connected

    @property
    def closed(self) -> bool:
        return self.pool.closed

    async def call_on_second_connection(self, commands: Sequence[Command]) -> list[Any]:
        """As `call`, with the sources of scripts. A connection has one user, so WAIT delays nobody else."""
        whole = [with_source(command) or command for command in commands]
        return await self.pool.exchange(pack_texts(whole), len(whole))

    async def server_features(self) -> ServerFeatures:
        return read_features(await self.call(FEATURE_QUERIES))

    async def pause(self, seconds: float) -> None:
        if seconds:
            time.sleep(seconds)  # noqa: ASYNC251 - it is to block its thread

    def blocking(self) -> SyncBlockingConnection:  # type: ignore[override]
        """Return a connection for blocking reads. Open it with `async with`."""
        return SyncBlockingConnection(self.pool)

    def close(self) -> None:
        """Close every connection. Later calls raise redis.exceptions.ConnectionError."""
        self.pool.close()


class SyncBlockingConnection:
    """A connection for one blocking read at a time, as `BlockingConnection`. Made by `SyncClient.blocking`."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def __repr__(self) -> str:
        return f"<SyncBlockingConnection {self._pool.connector.address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def read(self, command: Command, *, block: float, on_late_reply: Callable[[Any], None]) -> Any:  # noqa: ARG002
        """Send one command that blocks for `block` seconds at most, and return its reply. Raises as `Client.call`."""
        with self._pool.connection() as connection:
            connection.set_timeout(block + self._pool.reply_timeout)
            (reply,) = connection.exchange(pack_unchecked((command,)), 1)
            connection.set_timeout(self._pool.reply_timeout)
        if isinstance(reply, Exception):
            raise reply
        return reply


async def _no_dial() -> Any:
    raise OutcomeUnknown("a SyncClient opens no connection of an event loop")
