"""Handles of tasks that were sent, and waiting for results without polling.

A result is a string key with a TTL, and the same JSON is published on a channel of the key's
name. A waiter subscribes first and reads the key then, so it can miss neither.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

import anyio
import anyio.abc
import orjson
import redis.exceptions

from streamq.client import Subscriber
from streamq.consequences import Tell
from streamq.errors import ResultNotKeptError, ResultTimeoutError, TaskFailedError
from streamq.message import dumps
from streamq.store import Store
from streamq.translation import translated

log = logging.getLogger("streamq")

R = TypeVar("R")
_CANCELLED = {"error_type": "Cancelled", "error": "cancelled before it started", "reason": "cancelled", "traceback": ""}


class Status(StrEnum):
    """Where a task is, as far as its handle can see without searching."""

    DELAYED = "delayed"  # waits for its time, or for its next attempt
    QUEUED = "queued"
    RUNNING = "running"  # in a worker's hands
    SUCCEEDED = "succeeded"  # known only where results are kept
    FAILED = "failed"  # likewise: it is a dead letter, or was cancelled
    UNKNOWN = "unknown"  # settled and no result kept, or never there


class _Ear:
    """One waiter: an event that can be set many times."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def heard(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        """Wait until something was heard since the last wait."""
        await self._event.wait()
        self._event = anyio.Event()


class Waiters:
    """Everybody of one process who waits for a result: one connection for all of them."""

    def __init__(self, store: Store, group: anyio.abc.TaskGroup) -> None:
        self._store = store
        self._group = group
        self._subscriber: Subscriber | None = None
        self._ready: anyio.Event | None = None
        self._waiting: dict[str, set[_Ear]] = {}

    def __repr__(self) -> str:
        return f"<Waiters for {len(self._waiting)} results>"

    @asynccontextmanager
    async def listening(self, key: str) -> AsyncIterator[_Ear]:
        """Hear of a result: the ear is told when there is something to read."""
        subscriber = await self._started()
        ear = _Ear()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(ear)
        try:
            # Everyone waits for the confirmation: whoever looks before it may miss the result.
            await subscriber.subscribe(key)
            yield ear
        finally:
            waiting.discard(ear)
            if not waiting:
                self._waiting.pop(key, None)
                with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                    await subscriber.unsubscribe(key)

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
        async with self._store.client.subscriber() as subscriber:
            task_status.started(subscriber)
            while True:
                try:
                    channel, _ = await subscriber.receive()
                except redis.exceptions.RedisError as error:
                    log.info("results cannot be heard of: %s", error)
                    await anyio.sleep(0.5)
                    channel = b""
                # Without a channel the connection was lost for a while: everybody looks again.
                keys = [channel.decode()] if channel else list(self._waiting)
                for key in keys:
                    for ear in self._waiting.get(key, ()):
                        ear.heard()


@dataclass(frozen=True, slots=True)
class Handle(Generic[R]):
    """A task that was sent.

    `fresh` is False if it was not accepted because another one holds its task id or its
    dedup key; `task_id` is then that one's.
    """

    task_id: str
    task_name: str
    tier: int
    entry_id: str
    fresh: bool
    keeps_result: bool
    _store: Store = field(repr=False)
    _waiters: Waiters = field(repr=False)

    async def result(self, timeout: float | None = None) -> R:  # noqa: ASYNC109 - public name of the contract
        """Wait for the task to end and return what its handler returned.

        `timeout` is in seconds, None waits for ever. Raises ResultTimeoutError after it,
        TaskFailedError if the task died or was cancelled, ResultNotKeptError if it keeps none.
        """
        if not self.keeps_result:
            raise ResultNotKeptError(self.task_name)
        key = self._store.keys.result(self.task_id)
        payload: bytes | None = None
        with anyio.move_on_after(timeout):
            payload = await self._wait(key)
        if payload is None:
            raise ResultTimeoutError(self.task_id, timeout or 0.0)
        return decode_result(self.task_id, payload)  # type: ignore[no-any-return]

    async def _wait(self, key: str) -> bytes:
        try:
            # What is there already needs no subscription, and a closed broker says so here.
            if (payload := await self._store.one(("GET", key))) is not None:
                return bytes(payload)
            async with self._waiters.listening(key) as ear:
                while (payload := await self._store.one(("GET", key))) is None:
                    await ear.wait()
                return bytes(payload)
        except redis.exceptions.RedisError as error:
            raise translated(error) from error

    async def status(self) -> Status:
        """Return where the task is now."""
        keys = self._store.keys.tiers[self.tier]
        group = self._store.keys.group
        commands: list[Any] = [
            ("GET", self._store.keys.result(self.task_id)),
            ("ZSCORE", keys.delayed, self.task_id),
            ("ZSCORE", keys.delayed, f"{group}:{self.task_id}"),
        ]
        if self.entry_id:
            commands.append(("XRANGE", keys.stream, self.entry_id, self.entry_id))
            commands.append(("XPENDING", keys.stream, group, self.entry_id, self.entry_id, 1))
        result, fresh, retried, *entry = await self._store.attempt(commands)
        if isinstance(result, bytes):
            return Status.SUCCEEDED if "ok" in orjson.loads(result) else Status.FAILED
        if isinstance(fresh, bytes) or isinstance(retried, bytes):
            return Status.DELAYED
        if entry and isinstance(entry[0], list) and entry[0]:
            return Status.RUNNING if isinstance(entry[1], list) and entry[1] else Status.QUEUED
        return Status.UNKNOWN

    async def cancel(self) -> bool:
        """Withdraw the task if it was not delivered yet; a running one is told to stop.

        Returns whether it was withdrawn, or told.
        """
        told = [Tell(self.task_id, 3600.0, dumps(_CANCELLED))] if self.keeps_result else []
        found = await self._store.cancel(self.tier, self.task_id, self.entry_id, told)
        return found != "unknown"


def decode_result(task_id: str, payload: bytes) -> Any:
    """Return a kept result. Raises TaskFailedError if it is that of a failure."""
    value = orjson.loads(payload)
    if "ok" in value:
        return value["ok"]
    raise TaskFailedError(
        task_id, reason=value["reason"], error_type=value["error_type"],
        error=value["error"], traceback=value["traceback"],
    )  # fmt: skip
