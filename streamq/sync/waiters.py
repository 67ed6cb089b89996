"""Waiting for results and progress in a thread: each wait has a connection of the pool, subscribed to its channels.

As `queue/waiters.py` does: subscribe, read the keys, then wait for messages, so no result is missed. A look at the keys
every 10 s finds what was not published. After the wait the connection is unsubscribed, and goes back to the pool.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis.exceptions

from streamq.client.resp_codec import pack_unchecked
from streamq.client.sync_client import ConnectionPool
from streamq.client.sync_connection import SyncConnection
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, BrokerUnavailableError, OutcomeUnknownError
from streamq.queue.server_errors import translated
from streamq.queue.store import Store
from streamq.queue.waiters import LOOK_EVERY, LOOK_EVERY_UNSUBSCRIBED, read_keys

log = SafeLog("streamq")

_AWAY = (BrokerUnavailableError, OutcomeUnknownError)
_ONE_READ = 1.0  # seconds that one read may take, though the time to wait is over
_MESSAGE_PARTS = 3  # kind, channel, payload or count


class SyncWaiter:
    """One wait, in one thread."""

    __slots__ = ("began", "channels", "connection", "keys", "look_at", "open", "subscribed")

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)
        self.open = set(self.keys)  # the keys that are still waited for
        self.connection: SyncConnection | None = None  # subscribed to all keys
        self.channels = 0  # how many it is subscribed to
        self.subscribed = False  # there is a connection, or the user may not subscribe
        self.began = False  # it was subscribed once
        self.look_at = 0.0  # when the keys are read next


class SyncWaiters:
    """All waits of one broker, of any threads."""

    def __init__(self, store: Store, pool: ConnectionPool) -> None:
        self._store = store
        self._pool = pool
        self._refused = False  # this user may not subscribe, and the log says so

    def __repr__(self) -> str:
        return f"<SyncWaiters over {self._pool!r}>"

    def now(self) -> float:
        """Return the time in which deadlines are given."""
        return time.monotonic()

    def close(self) -> None:
        """Do nothing: the pool ends every wait as it is closed."""

    async def read_now(self, keys: Collection[str], deadline: float) -> list[tuple[str, bytes]]:
        """Return each key that exists with its value, though the time is over. Empty if there is no reply in time.

        Raises BrokerError.
        """
        until = max(deadline, time.monotonic() + _ONE_READ)
        with self._pool.within(until):
            try:
                return await read_keys(self._store, keys)
            except _AWAY:
                if time.monotonic() < until:
                    raise
        return []

    @contextmanager
    def waiting_for(self, keys: Iterable[str]) -> Iterator[SyncWaiter]:
        """Yield a wait for these keys."""
        waiter = SyncWaiter(keys)
        try:
            yield waiter
        except BaseException:
            self._drop(waiter)
            raise
        self._put_back(waiter)

    async def news(self, waiter: SyncWaiter, deadline: float) -> list[tuple[str, bytes]]:
        """Subscribe, the first time, and return the next messages of a wait; nothing once the deadline has passed.

        A server that goes away later is waited for. Raises BrokerError if it cannot be used from the beginning, and
        BrokerUnavailableError once the broker is closed.
        """
        with self._pool.within(deadline):
            while True:
                found: list[tuple[str, bytes]] = []
                try:
                    if waiter.subscribed:
                        found = self._messages(waiter, deadline)
                    else:
                        self._subscribe(waiter)
                    found = found or await self._due(waiter)
                except _AWAY:
                    self._drop(waiter)
                    if time.monotonic() < deadline and not (waiter.began or self._pool.closed):
                        raise
                if found or time.monotonic() >= deadline:
                    return found
                if self._pool.closed:
                    raise BrokerUnavailableError("the broker was closed while a result, or progress, was waited for")

    async def _due(self, waiter: SyncWaiter) -> list[tuple[str, bytes]]:
        """Read the keys, if it is time to: a message may have been missed, or not have been published."""
        if time.monotonic() < waiter.look_at:
            return []
        found = await read_keys(self._store, waiter.open)
        waiter.look_at = time.monotonic() + (LOOK_EVERY if waiter.connection is not None else LOOK_EVERY_UNSUBSCRIBED)
        return found

    def _messages(self, waiter: SyncWaiter, deadline: float) -> list[tuple[str, bytes]]:
        """Return the messages that come before it is time to look at the keys."""
        pause = min(deadline, waiter.look_at) - time.monotonic()
        connection = waiter.connection
        if connection is None:
            time.sleep(max(0.0, pause))
            return []
        if pause <= 0:
            return []
        connection.set_timeout(pause)
        try:
            replies = connection.receive_some()
        except TimeoutError:
            return []
        except Exception:  # noqa: BLE001 - each kind of stream has its own errors: the connection is lost
            self._drop(waiter)
            return []
        if any(isinstance(reply, Exception) for reply in replies):  # a right was taken away
            self._drop(waiter)
        return [(reply[1].decode(), reply[2]) for reply in replies if _kind(reply) == b"message"]

    def _subscribe(self, waiter: SyncWaiter) -> None:
        """Subscribe to the channels of a wait. Where the user has no right to them, the keys are read now and then."""
        command = ("SUBSCRIBE", *sorted(waiter.open))
        connection: SyncConnection | None = None
        try:
            connection = self._pool.take()
            connection.send(pack_unchecked([command]))
            connection.wait_for(len(waiter.open), lambda reply: _kind(reply) == b"subscribe")
        except BaseException as error:
            if connection is not None:
                self._pool.discard(connection)
            if not isinstance(error, redis.exceptions.RedisError):
                raise
            problem = self._store.explained(translated(error), command)
            if problem.code != "NOPERM":
                raise problem from error
            self._note_refused(problem)
        else:
            waiter.connection, waiter.channels = connection, len(waiter.open)
        waiter.subscribed = waiter.began = True
        waiter.look_at = 0.0

    def _note_refused(self, problem: BrokerError) -> None:
        """Log once that this user may not subscribe: what is waited for is looked for instead."""
        if not self._refused:
            self._refused = True
            log.warning(
                "results and progress come up to %g s late: %s", LOOK_EVERY_UNSUBSCRIBED, problem, event="results_late"
            )

    def _drop(self, waiter: SyncWaiter) -> None:
        """Close the connection of a wait; the next look for news makes another."""
        connection, waiter.connection = waiter.connection, None
        waiter.subscribed = False
        if connection is not None:
            self._pool.discard(connection)

    def _put_back(self, waiter: SyncWaiter) -> None:
        """Unsubscribe, and give the connection of a wait back to the pool."""
        connection, waiter.connection = waiter.connection, None
        if connection is None:
            return
        try:
            connection.set_timeout(self._pool.reply_timeout)
            connection.send(pack_unchecked([("UNSUBSCRIBE",)]))
            connection.wait_for(waiter.channels, lambda reply: _kind(reply) == b"unsubscribe")
        except BaseException as error:
            self._pool.discard(connection)
            if not isinstance(error, redis.exceptions.RedisError):
                raise
        else:
            self._pool.give_back(connection)


def _kind(reply: Any) -> Any:
    """Return what a reply of pub/sub is: b"message", b"subscribe" or b"unsubscribe"; None for another reply."""
    return reply[0] if isinstance(reply, list) and len(reply) == _MESSAGE_PARTS else None
