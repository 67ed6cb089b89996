"""Handles of sent tasks: their results, progress and status. `waiters` waits for results, `lookup` finds tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Generic, TypeVar

from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import ResultNotKeptError, ResultTimeoutError
from streamq.handlers.progress import Progress
from streamq.queue.lookup import CANCELLED_KEPT, Lookup, withdraw
from streamq.queue.result_payload import decode_result, has_succeeded
from streamq.queue.store import Store
from streamq.queue.waiters import WaitsForKeys, longest_wait
from streamq.tasks.task import Task

R_co = TypeVar("R_co", covariant=True)


class Status(StrEnum):
    """The status of a task."""

    DELAYED = "delayed"  # waits for its due time, or for its next attempt
    QUEUED = "queued"
    RUNNING = "running"  # delivered to a worker
    SUCCEEDED = "succeeded"  # known only where results are kept
    FAILED = "failed"  # likewise: it is a dead letter, or was cancelled
    UNKNOWN = "unknown"  # settled and no result kept, or never sent


@dataclass(slots=True, unsafe_hash=True)  # a frozen one takes four times as long to make, and every enqueue makes one
class Handle(Generic[R_co]):
    """A task that was sent.

    `fresh` is False if another task holds its task id or its deduplication key. `task_id` is then the id of that task,
    and `replaced` says that the message of that task was replaced by this one. `tier` is the index of its tier.
    `entry_id` is its first entry in the stream, empty if the task was delayed.
    """

    task_id: str
    task_name: str
    tier: int
    entry_id: str
    fresh: bool
    keeps_result: bool
    _store: Store = field(repr=False)
    _waiters: WaitsForKeys = field(repr=False)
    _payload: bytes | None = field(default=None, repr=False, compare=False)  # the result, if it is known
    replaced: bool = False
    _since: int = field(default=0, repr=False)  # Unix ms: the task has no older entry
    _task: Task[..., R_co] | None = field(default=None, repr=False, compare=False)  # None: known by its name alone

    @property
    def stream(self) -> str:
        """The name of the stream of its tier."""
        return self._store.keys.tiers[self.tier].stream

    async def result(self, timeout: float | timedelta | None = None) -> R_co:  # noqa: ASYNC109 - public name of the contract
        """Wait for the task to end and return what its handler returned.

        `timeout` is in seconds, None waits for ever. Raises ResultTimeoutError after it, TaskFailedError if the task
        was dead-lettered or cancelled, ResultNotKeptError if it keeps no result, ResultTypeError if the result is not
        of the type that the task returns, by its annotation here.
        """
        payload = self._payload
        if payload is None:
            payload = await self._wait(self.result_key, self._waiters.now() + longest_wait(timeout))
        if payload is None:
            raise ResultTimeoutError(self.task_id, timeout or 0.0)
        return self.decoded(payload)

    async def _wait(self, key: str, deadline: float) -> bytes | None:
        # A result that exists needs no subscription; and a closed broker raises here.
        found = await self._waiters.read_now([key], deadline)
        if not found:
            with self._waiters.waiting_for([key]) as waiter:
                found = await self._waiters.news(waiter, deadline)
        return found[-1][1] if found else None

    @property
    def result_key(self) -> str:
        """The name of the key, and of the channel, of the result. Raises ResultNotKeptError if the task keeps none."""
        if not self.keeps_result:
            raise ResultNotKeptError(self.task_name)
        return self._store.keys.result(self.task_id)

    @property
    def waiters(self) -> WaitsForKeys:
        """The waiters of its broker, for functions that wait for many handles."""
        return self._waiters

    def decoded(self, payload: bytes) -> R_co:
        """Return the value of a kept result. Raises TaskFailedError, ResultTypeError or BrokerError."""
        return decode_result(self.task_id, payload, task=self._task)  # type: ignore[no-any-return]

    def with_result(self, payload: bytes) -> Handle[R_co]:
        """Return this handle with its result: `result` then needs no server."""
        return replace(self, _payload=payload)

    async def progress(self) -> Progress | None:
        """Return the last progress that the task reported, None if there is none, or none any more."""
        payload = await self._store.one(("GET", self._store.keys.progress(self.task_id)))
        return None if payload is None else Progress.parse(payload)

    async def watch(self, timeout: float | timedelta | None = None) -> AsyncGenerator[Progress, None]:  # noqa: ASYNC109
        """Yield the current progress, then each change, until the task has ended or `timeout` seconds have passed.

        It ends without an error either way, also if the task failed: `result()` raises that. A slow reader gets the
        newest report and not those it missed. If the task keeps no result, its end is not noticed: only the timeout
        ends this, or the reader does (with `contextlib.aclosing` if it leaves early).
        """
        deadline = self._waiters.now() + longest_wait(timeout)
        key, end = self._store.keys.progress(self.task_id), None
        if self.keeps_result:
            end = self.result_key
        last, ended = Progress(-1.0), False
        keys = [key, end] if end else [key]
        with self._waiters.waiting_for(keys) as waiter:
            found = await self._waiters.read_now(keys, deadline)
            while not ended:
                found = found or await self._waiters.news(waiter, deadline)
                ended = any(name == end for name, _ in found)
                if ended:  # the last report was written before the result
                    found += await self._waiters.read_now([key], deadline)
                if not found:
                    return
                news = [Progress.parse(payload) for name, payload in found if name == key]
                newest = max(news, key=lambda one: one.at, default=last)
                found = []
                if newest != last:  # not by their times: the clocks of two workers differ
                    last = newest
                    yield newest

    async def status(self) -> Status:
        """Return the status of the task now.

        One round trip if the task waits in its first entry, is delayed, or has a result. If it became due or was
        retried, the later entries of the streams are scanned, 500 in one step.
        """
        search = self._search()
        asked = ("GET", self._store.keys.result(self.task_id))
        place, (result,) = await search.check_known_places(asked)
        if place is None and (result is None or getattr(result, "code", "") == "NOPERM"):
            place = await search.search_everywhere()
            if place is None:
                result = await self._store.one(asked)
        if isinstance(result, bytes):
            return Status.SUCCEEDED if has_succeeded(self.task_id, result) else Status.FAILED
        if place is None:
            return Status.UNKNOWN
        if place.member:
            return Status.DELAYED
        return Status.RUNNING if place.running else Status.QUEUED

    async def cancel(self) -> bool:
        """Withdraw the task if it was not delivered yet; tell a running one to stop.

        Returns whether it was withdrawn or told to stop. The task is found as `status` finds it; if that finds nothing,
        all delayed tasks are scanned, too.
        """
        return await self.withdraw() != "unknown"

    async def withdraw(self) -> str:
        """Do as `cancel`; return where the task was: 'delayed', 'queued', 'running' (told to stop) or 'unknown'."""
        keep = CANCELLED_KEPT if self.keeps_result else None
        return await withdraw(self._search(), self._store, self.task_id, keep=keep)

    def _search(self) -> Lookup:
        return Lookup(self._store, self.task_id, tier=self.tier, entry_id=self.entry_id, since=self._since)


name_remedies(Handle, "handle")
