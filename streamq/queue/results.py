"""Handles of tasks that were sent, and waiting for results without polling.

A result is a string key with a TTL, and the same JSON is published on a channel of the key's
name. So is the progress of a task. A waiter subscribes first and reads the key then, so it can
miss neither; however many results it waits for, each of the two is one command.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain
from typing import Any, Generic, TypeVar

import anyio
import anyio.abc
import orjson
import redis.exceptions

from streamq.client import Subscriber
from streamq.errors import ResultNotKeptError, ResultTimeoutError, TaskFailedError
from streamq.handlers.progress import Progress
from streamq.queue.lookup import CANCELLED_KEPT, Search, withdraw
from streamq.queue.server_errors import translated
from streamq.queue.store import Store

log = logging.getLogger("streamq")

R_co = TypeVar("R_co", covariant=True)
_AT_ONCE = 1000  # keys for one command that looks


class Status(StrEnum):
    """Where a task is."""

    DELAYED = "delayed"  # waits for its time, or for its next attempt
    QUEUED = "queued"
    RUNNING = "running"  # in a worker's hands
    SUCCEEDED = "succeeded"  # known only where results are kept
    FAILED = "failed"  # likewise: it is a dead letter, or was cancelled
    UNKNOWN = "unknown"  # settled and no result kept, or never there


class Ear:
    """One waiter, for any number of keys: what it heard since it last asked."""

    __slots__ = ("_event", "_heard", "_look", "keys", "open")

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)
        self.open = set(self.keys)  # those that are still waited for
        self._event = anyio.Event()
        self._heard: dict[str, bytes] = {}
        self._look = True  # something may have been missed: the keys themselves must be read

    def hear(self, key: str, payload: bytes) -> None:
        """Take a message; of several for one key the last counts."""
        self._heard[key] = payload
        self._event.set()

    def miss(self) -> None:
        """Note that messages may have been missed."""
        self._look = True
        self._event.set()


class Waiters:
    """Everybody of one process who waits for results or progress: one connection for all of them."""

    def __init__(self, store: Store, group: anyio.abc.TaskGroup) -> None:
        self._store = store
        self._group = group
        self._subscriber: Subscriber | None = None
        self._ready: anyio.Event | None = None
        self._waiting: dict[str, set[Ear]] = {}
        self._stale: set[str] = set()  # subscribed to, and nobody waits any more
        self._left = anyio.Event()

    def __repr__(self) -> str:
        return f"<Waiters for {len(self._waiting)} results>"

    async def look(self, keys: Collection[str]) -> list[tuple[str, bytes]]:
        """Return what is there now, with its key: one round trip, one command for each 1,000 keys.

        Raises BrokerError if the server cannot be asked.
        """
        names = list(keys)
        chunks = [("MGET", *names[at : at + _AT_ONCE]) for at in range(0, len(names), _AT_ONCE)]
        payloads = chain.from_iterable(await self._store.call(chunks))
        return [(key, bytes(payload)) for key, payload in zip(names, payloads, strict=True) if payload is not None]

    @contextmanager
    def ear(self, keys: Iterable[str]) -> Iterator[Ear]:
        """Be among those who wait for these keys, within the block; hears nothing before `listen`."""
        ear = Ear(keys)
        for key in ear.keys:
            self._waiting.setdefault(key, set()).add(ear)
        try:
            yield ear
        finally:
            # Nothing is awaited here: an async generator that is left half way may be closed anywhere.
            for key in ear.keys:
                waiting = self._waiting[key]
                waiting.discard(ear)
                if not waiting:
                    del self._waiting[key]
                    self._stale.add(key)
            self._left.set()

    async def listen(self, ear: Ear) -> None:
        """Subscribe for an ear: one command for all its keys.

        Everyone waits for the confirmation: whoever looks before it may miss the result.
        Raises BrokerError if the server does not confirm it.
        """
        try:
            subscriber = await self._started()
            await subscriber.subscribe(*ear.keys)
        except redis.exceptions.RedisError as error:
            raise translated(error) from error

    async def arrived(self, ear: Ear) -> list[tuple[str, bytes]]:
        """Wait until something came for an ear that listens, and return it, the newest last."""
        while True:
            found: list[tuple[str, bytes]] = []
            if ear._look:  # noqa: SLF001 - an ear is a part of this
                ear._look = False  # noqa: SLF001
                found = await self.look(ear.open)
            heard, ear._heard = ear._heard, {}  # noqa: SLF001
            found += heard.items()
            if found or not ear.open:
                return found
            ear._event = anyio.Event()  # noqa: SLF001
            await ear._event.wait()  # noqa: SLF001

    async def _started(self) -> Subscriber:
        if self._ready is None:
            self._ready = anyio.Event()
            try:
                self._subscriber = await self._group.start(self._listen)
            finally:
                self._ready.set()
                if self._subscriber is None:
                    self._ready = None
        else:
            await self._ready.wait()
        if self._subscriber is None:
            return await self._started()
        return self._subscriber

    async def _listen(self, *, task_status: anyio.abc.TaskStatus[Subscriber] = anyio.TASK_STATUS_IGNORED) -> None:
        async with self._store.client.subscriber() as subscriber, anyio.create_task_group() as group:
            group.start_soon(self._unsubscribe, subscriber)
            task_status.started(subscriber)
            while True:
                try:
                    channel, payload = await subscriber.receive()
                except redis.exceptions.RedisError as error:
                    log.info("results cannot be heard of: %s", error)
                    await anyio.sleep(0.5)
                    channel = payload = b""
                if channel:
                    key = channel.decode()
                    for ear in self._waiting.get(key, ()):
                        ear.hear(key, payload)
                else:  # the connection was lost for a while: everybody looks again
                    for ears in self._waiting.values():
                        for ear in ears:
                            ear.miss()

    async def _unsubscribe(self, subscriber: Subscriber) -> None:
        """Give up the channels that nobody waits for any more, as many as there are with one command."""
        while True:
            await self._left.wait()
            self._left = anyio.Event()
            gone = self._stale - self._waiting.keys()
            self._stale.clear()
            await subscriber.unsubscribe(*gone)


@dataclass(slots=True, unsafe_hash=True)  # a frozen one takes four times as long to make, and every enqueue makes one
class Handle(Generic[R_co]):
    """A task that was sent.

    `fresh` is False if it was not accepted because another one holds its task id or its
    dedup key; `task_id` is then that one's, and `replaced` says that this message took the place
    of that one's. `tier` is where it was sent, `entry_id` empty if it was not put there at once.
    """

    task_id: str
    task_name: str
    tier: int
    entry_id: str
    fresh: bool
    keeps_result: bool
    _store: Store = field(repr=False)
    _waiters: Waiters = field(repr=False)
    _payload: bytes | None = field(default=None, repr=False, compare=False)  # the result, if that came with it
    replaced: bool = False
    _since: int = field(default=0, repr=False)  # Unix ms: it has no entry that is older

    async def result(self, timeout: float | None = None) -> R_co:  # noqa: ASYNC109 - public name of the contract
        """Wait for the task to end and return what its handler returned.

        `timeout` is in seconds, None waits for ever. Raises ResultTimeoutError after it,
        TaskFailedError if the task died or was cancelled, ResultNotKeptError if it keeps none.
        """
        payload = self._payload
        if payload is None:
            key = self.result_key
            with anyio.move_on_after(timeout):
                payload = await self._wait(key)
        if payload is None:
            raise ResultTimeoutError(self.task_id, timeout or 0.0)
        return decode_result(self.task_id, payload)  # type: ignore[no-any-return]

    async def _wait(self, key: str) -> bytes:
        # What is there already needs no subscription, and a closed broker says so here.
        found = await self._waiters.look([key])
        if not found:
            with self._waiters.ear([key]) as ear:
                await self._waiters.listen(ear)
                found = await self._waiters.arrived(ear)
        return found[-1][1]

    @property
    def result_key(self) -> str:
        """The key, and the channel, of the result. Raises ResultNotKeptError if there will be none."""
        if not self.keeps_result:
            raise ResultNotKeptError(self.task_name)
        return self._store.keys.result(self.task_id)

    @property
    def waiters(self) -> Waiters:
        """Those of its broker who wait; for what waits for many handles together."""
        return self._waiters

    def with_result(self, payload: bytes) -> Handle[R_co]:
        """Return this handle with its result at hand: asking for it asks no server."""
        return replace(self, _payload=payload)

    async def progress(self) -> Progress | None:
        """Return what the task last reported of itself, None if nothing or if that is long ago."""
        payload = await self._store.one(("GET", self._store.keys.progress(self.task_id)))
        return None if payload is None else Progress.parse(payload)

    async def watch(self, timeout: float | None = None) -> AsyncGenerator[Progress, None]:  # noqa: ASYNC109
        """Yield the progress there is, then each change, until the task ended or after `timeout` seconds.

        It ends quietly either way, also for a task that failed; `result()` says how. A slow reader is
        given the newest and not what it missed. A task that keeps no result does not say that it
        ended: only the timeout then ends this, or its reader (`contextlib.aclosing` if that
        leaves early).
        """
        deadline = None if timeout is None else anyio.current_time() + timeout
        key, end = self._store.keys.progress(self.task_id), None
        if self.keeps_result:
            end = self.result_key
        last, ended = Progress(-1.0), False
        with self._waiters.ear([key, end] if end else [key]) as ear:
            while not ended:
                found: list[tuple[str, bytes]] = []
                # No scope may be open while this yields: each wait has its own.
                with anyio.move_on_after(None if deadline is None else deadline - anyio.current_time()):
                    if last.done < 0:
                        await self._waiters.listen(ear)
                    found = await self._waiters.arrived(ear)
                    ended = any(name == end for name, _ in found)
                    if ended:  # its last report was written before its end was
                        found += await self._waiters.look([key])
                if not found:
                    return
                news = [Progress.parse(payload) for name, payload in found if name == key]
                newest = max(news, key=lambda one: one.at, default=last)
                if newest != last:  # not by its time: the clocks of two workers differ
                    last = newest
                    yield newest

    async def status(self) -> Status:
        """Return where the task is now.

        One round trip for what waits in its first entry, is delayed, or has left a result. What became due or was
        retried is looked for among the entries that came later, 500 in one step.
        """
        search = self._search()
        asked = ("GET", self._store.keys.result(self.task_id))
        place, (result,) = await search.glance(asked)
        if place is None and result is None:
            place = await search.search()
            if place is None:
                result = await self._store.one(asked)
        if isinstance(result, bytes):
            return Status.SUCCEEDED if "ok" in orjson.loads(result) else Status.FAILED
        if place is None:
            return Status.UNKNOWN
        if place.member:
            return Status.DELAYED
        return Status.RUNNING if place.running else Status.QUEUED

    async def cancel(self) -> bool:
        """Withdraw the task if it was not delivered yet; a running one is told to stop.

        Returns whether it was withdrawn, or told. Finds it as `status` does; before it gives up it looks at all
        that is delayed.
        """
        return await self.withdraw() != "unknown"

    async def withdraw(self) -> str:
        """Do as `cancel`, and return what the task was: 'delayed', 'queued', 'running' (told) or 'unknown'."""
        keep = CANCELLED_KEPT if self.keeps_result else None
        return await withdraw(self._search(), self._store, self.task_id, keep=keep)

    def _search(self) -> Search:
        return Search(self._store, self.task_id, tier=self.tier, entry_id=self.entry_id, since=self._since)


def decode_result(task_id: str, payload: bytes) -> Any:
    """Return a kept result. Raises TaskFailedError if it is that of a failure."""
    value = orjson.loads(payload)
    if "ok" in value:
        return value["ok"]
    raise TaskFailedError(
        task_id, reason=value["reason"], error_type=value["error_type"],
        error=value["error"], traceback=value["traceback"],
    )  # fmt: skip
