"""Waiting for results and progress without polling: all waiters of a process share one connection.

A result is a string key with a TTL, and the same JSON is published on the channel of that name. So is the progress of a
task. A waiter subscribes to the channel first, then reads the key, so it misses no result. Each of the two is one
command, for any number of results.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from itertools import chain
from typing import Any, Protocol

import anyio
import anyio.abc
import redis.exceptions

from streamq.client import Subscriber
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, BrokerUnavailableError, OutcomeUnknownError
from streamq.queue.server_errors import translated
from streamq.queue.store import Store
from streamq.wire import bounds

log = SafeLog("streamq")

_KEYS_PER_READ = 1000  # keys of one MGET
LOOK_EVERY = 10.0  # seconds between two looks at all that is waited for: a message may not have been published
LOOK_EVERY_UNSUBSCRIBED = 0.5  # the same, while this user may not subscribe
_TRIES = 10  # of one read, each over another connection: a large result of a task may close some, one after another
_ONE_READ = 1.0  # seconds that one read may take, though the time to wait is over
_ASK_AGAIN = 60.0  # seconds after which it tries to subscribe again


class WaitsForKeys(Protocol):
    """What handles need of the waiters of their broker. `Waiters` waits in an event loop, another may block its thread.

    A deadline is a time of `now`, in seconds.
    """

    def now(self) -> float: ...
    def close(self) -> None: ...
    def waiting_for(self, keys: Iterable[str]) -> AbstractContextManager[Any]: ...
    async def read_now(self, keys: Collection[str], deadline: float) -> list[tuple[str, bytes]]: ...
    async def news(self, waiter: Any, deadline: float) -> list[tuple[str, bytes]]: ...


class Waiter:
    """Waits for any number of keys: collects the messages that came since it last took them."""

    __slots__ = ("_event", "_must_read", "_received", "keys", "open", "subscribed")

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)
        self.open = set(self.keys)  # the keys that are still waited for
        self.subscribed = False
        self._event = anyio.Event()
        self._received: dict[str, bytes] = {}
        self._must_read = True  # a message may have been missed: the keys must be read

    def receive(self, key: str, payload: bytes) -> None:
        """Take a message; of several for one key, the last counts."""
        self._received[key] = payload
        self._event.set()

    def mark_stale(self) -> None:
        """Note that messages may have been missed."""
        self._must_read = True
        self._event.set()


class Waiters:
    """All waiters of one process, for results and progress. They share one connection."""

    def __init__(self, store: Store, group: anyio.abc.TaskGroup) -> None:
        self._store = store
        self._group = group
        self._subscriber: Subscriber | None = None
        self._ready: anyio.Event | None = None
        self._waiting: dict[str, set[Waiter]] = {}
        self._stale: set[str] = set()  # maybe subscribed, and without a waiter
        self._waiter_left = anyio.Event()
        self._closed = False
        self._looking = False
        self._refused = anyio.Event()  # set while this user may not subscribe
        self._ask_again_at = 0.0

    def __repr__(self) -> str:
        return f"<Waiters for {len(self._waiting)} results>"

    def close(self) -> None:
        """End every wait with an error: the broker is being left."""
        self._closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.mark_stale()

    def now(self) -> float:
        """Return the time of the event loop, in which deadlines are given."""
        return anyio.current_time()

    async def read(self, keys: Collection[str]) -> list[tuple[str, bytes]]:
        """Do as `read_keys`. A reply that was lost with its connection is asked for again: to read changes nothing."""
        for _ in range(_TRIES):
            with suppress(OutcomeUnknownError):
                return await read_keys(self._store, keys)
        return await read_keys(self._store, keys)

    @contextmanager
    def waiting_for(self, keys: Iterable[str]) -> Iterator[Waiter]:
        """Yield a waiter for these keys; it gets no message before `subscribe`.

        Raises WrongLoopError if the broker was opened elsewhere.
        """
        self._store.client.owner.check()
        waiter = Waiter(keys)
        for key in waiter.keys:
            self._waiting.setdefault(key, set()).add(waiter)
        try:
            yield waiter
        finally:
            # Nothing is awaited here: an async generator that is not exhausted may be closed anywhere.
            for key in waiter.keys:
                waiting = self._waiting[key]
                waiting.discard(waiter)
                if not waiting:
                    del self._waiting[key]
                    if self._subscriber is not None:  # else nothing takes it out again
                        self._stale.add(key)
            self._waiter_left.set()

    async def subscribe(self, waiter: Waiter) -> None:
        """Subscribe to the channels of a waiter: one command for all its keys.

        This waits for the confirmation: a waiter that reads its keys before may miss a result. If the user has no right
        to the channels, the keys are read now and then. Raises BrokerError if the server does not confirm it otherwise.
        """
        if not self._looking:
            self._looking = True
            self._group.start_soon(self._look_forever)
        if self._refused.is_set() and anyio.current_time() < self._ask_again_at:
            return
        try:
            subscriber = await self._subscribed()
            await subscriber.subscribe(*waiter.keys)
        except redis.exceptions.RedisError as error:
            problem = self._store.explained(translated(error), ("SUBSCRIBE", *waiter.keys))
            if problem.code != "NOPERM":
                raise problem from error
            self._note_refused(problem)
            self._ask_again_at = anyio.current_time() + _ASK_AGAIN
        else:
            if self._refused.is_set():
                self._refused = anyio.Event()

    def _note_refused(self, problem: BrokerError) -> None:
        """Note that this user may not subscribe: what is waited for is looked for instead. Logged once."""
        if not self._refused.is_set():
            log.warning(
                "results and progress come up to %g s late: %s", LOOK_EVERY_UNSUBSCRIBED, problem, event="results_late"
            )
        self._refused.set()

    async def read_now(self, keys: Collection[str], deadline: float) -> list[tuple[str, bytes]]:
        """Read keys, though the time is over: what is there is returned. Empty if the server does not reply in time."""
        with anyio.CancelScope(deadline=max(deadline, anyio.current_time() + _ONE_READ)):
            return await self.read(keys)
        return []

    async def news(self, waiter: Waiter, deadline: float) -> list[tuple[str, bytes]]:
        """Subscribe, the first time, and return the next messages of a waiter; nothing once the deadline has passed.

        Raises as `subscribe` and `next_payloads`.
        """
        with anyio.CancelScope(deadline=deadline):
            if not waiter.subscribed:
                await self.subscribe(waiter)
                waiter.subscribed = True
            return await self.next_payloads(waiter)
        return []

    async def next_payloads(self, waiter: Waiter) -> list[tuple[str, bytes]]:
        """Wait for messages of a subscribed waiter and return them, the newest last.

        Raises BrokerError if the server cannot be used, and BrokerUnavailableError once the broker is being left.
        """
        while True:
            if self._closed:
                raise BrokerUnavailableError("the broker was closed while a result, or progress, was waited for")
            found: list[tuple[str, bytes]] = []
            if waiter._must_read:  # noqa: SLF001 - a waiter is a part of this
                waiter._must_read = False  # noqa: SLF001
                found = await self.read(waiter.open)
            messages, waiter._received = waiter._received, {}  # noqa: SLF001
            found += messages.items()
            if found or not waiter.open:
                return found
            waiter._event = anyio.Event()  # noqa: SLF001
            await waiter._event.wait()  # noqa: SLF001

    async def _look_forever(self) -> None:
        """Read all that is waited for, now and then: a worker without the right to publish says nothing."""
        while True:
            if self._refused.is_set():
                await anyio.sleep(LOOK_EVERY_UNSUBSCRIBED)
            else:
                with anyio.move_on_after(LOOK_EVERY):
                    await self._refused.wait()
            try:
                found = await self.read([*self._waiting])
            except BrokerError:
                continue  # the next look may find the server again
            for key, payload in found:
                for waiter in self._waiting.get(key, ()):
                    waiter.receive(key, payload)

    async def _subscribed(self) -> Subscriber:
        if self._ready is None:
            self._ready = anyio.Event()
            try:
                self._subscriber = await self._group.start(self._receive_forever)
            finally:
                self._ready.set()
                if self._subscriber is None:
                    self._ready = None
        else:
            await self._ready.wait()
        if self._subscriber is None:
            return await self._subscribed()
        return self._subscriber

    async def _receive_forever(
        self, *, task_status: anyio.abc.TaskStatus[Subscriber] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        async with self._store.client.subscriber() as subscriber, anyio.create_task_group() as group:
            group.start_soon(self._unsubscribe, subscriber)
            task_status.started(subscriber)
            while True:
                try:
                    channel, payload = await subscriber.receive()
                except redis.exceptions.RedisError as error:
                    problem = self._store.explained(translated(error), ("SUBSCRIBE", *self._waiting))
                    if problem.code == "NOPERM":  # the right was taken away meanwhile
                        self._note_refused(problem)
                    else:
                        log.info("results cannot be received; trying again: %s", error, event="results_late")
                    await anyio.sleep(0.5)
                    channel = payload = b""
                if channel:
                    key = channel.decode()
                    for waiter in self._waiting.get(key, ()):
                        waiter.receive(key, payload)
                else:  # the connection was lost for a while: every waiter reads its keys again
                    for waiters in self._waiting.values():
                        for waiter in waiters:
                            waiter.mark_stale()

    async def _unsubscribe(self, subscriber: Subscriber) -> None:
        """Unsubscribe from channels without a waiter, all with one command."""
        while True:
            await self._waiter_left.wait()
            self._waiter_left = anyio.Event()
            gone = self._stale - self._waiting.keys()
            self._stale.clear()
            await subscriber.unsubscribe(*gone)


async def read_keys(store: Store, keys: Collection[str]) -> list[tuple[str, bytes]]:
    """Return each key that exists with its value: one round trip, one command per 1,000 keys.

    Raises BrokerError if the server cannot be used.
    """
    names = list(keys)
    chunks = [("MGET", *names[at : at + _KEYS_PER_READ]) for at in range(0, len(names), _KEYS_PER_READ)]
    payloads = chain.from_iterable(await store.call(chunks))
    return [(key, bytes(payload)) for key, payload in zip(names, payloads, strict=True) if payload is not None]


def longest_wait(timeout: float | timedelta | None) -> float:
    """Return a timeout in seconds; None waits for ever. Raises ConfigurationError for what is no time."""
    return math.inf if timeout is None else bounds.WAIT_TIMEOUT.check(timeout)
