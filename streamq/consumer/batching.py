"""Batches: messages that run together wait for each other here, and each goes its own way afterwards.

Every message has its own runner, with its lease, its middleware, its cancellation and its outcome; in the
innermost place of its run it joins a batch. The handler runs once for all of them, in a task of its own:
a member that is cancelled, or loses its lease, drops out and disturbs nobody. If all have, the
handler is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Any

import anyio
import anyio.abc

from streamq.errors import BatchResultError, NotOpenError, TaskTimeoutError
from streamq.handlers.context import queue
from streamq.queue.store import Store
from streamq.tasks.batch import BatchTask
from streamq.wire.delivery import Delivery

_deliveries: ContextVar[tuple[Delivery, ...]] = ContextVar("streamq_batch")


def current_batch() -> tuple[Delivery, ...]:
    """Return the deliveries of the batch that runs here, in the order of its items.

    Raises LookupError outside the handler of a batch task. Works in threads, too.
    """
    try:
        return _deliveries.get()
    except LookupError:
        raise LookupError("no batch is being handled here: call this inside the handler of a batch task") from None


class _Member:
    """One message in a batch, and what became of it."""

    __slots__ = ("delivery", "error", "item", "limit", "result", "trace")

    def __init__(self, delivery: Delivery, item: Any, limit: float | None) -> None:
        self.delivery = delivery
        self.item = item
        self.limit = limit
        self.result: Any = None
        self.error: BaseException | None = None
        self.trace: TracebackType | None = None

    def outcome(self) -> Any:
        """Return the result of this message, or raise what it failed with."""
        if self.error is not None:
            # One error may be that of many: each raises it with the traceback it came with.
            raise self.error.with_traceback(self.trace)
        return self.result

    def fail(self, error: BaseException) -> None:
        """This message failed."""
        self.error = error
        self.trace = error.__traceback__


class _Batch:
    """Messages that run together. `closed` once nobody may join, `over` once it has run."""

    __slots__ = ("closed", "members", "over", "scope")

    def __init__(self) -> None:
        self.members: dict[_Member, None] = {}  # in the order they came
        self.closed = anyio.Event()
        self.over = anyio.Event()
        self.scope = anyio.CancelScope()

    def leave(self, member: _Member) -> None:
        """This member was cancelled. If it was the last, the handler has nobody to run for."""
        del self.members[member]
        if not self.members and not self.over.is_set():
            self.closed.set()
            self.scope.cancel()


class Batches:
    """The batches of one task in one worker.

    `handle` runs the handler for a list of items, once `ready` has returned.
    """

    def __init__(
        self, task: BatchTask[Any, Any], handle: Callable[[list[Any]], Awaitable[Any]], store: Store, *,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self._task = task
        self._handle = handle
        self._ready = ready
        self._store = store
        self._start: Callable[[_Batch], object] | None = None
        self._open: _Batch | None = None  # what the next message joins
        self._hurried = False
        self._running = 0

    def __repr__(self) -> str:
        waiting = len(self._open.members) if self._open is not None else 0
        return f"<Batches of {self._task.name}: {waiting}/{self._task.batch.size} waiting, {self._running} running>"

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run the batches, until cancelled."""
        queue.set(self._store)
        context = copy_context()  # no delivery's own: a batch runs for many
        async with anyio.create_task_group() as group:
            self._start = lambda batch: context.copy().run(group.start_soon, self._lead, batch)
            task_status.started()
            await anyio.sleep_forever()

    async def run(self, delivery: Delivery, item: Any, limit: float | None) -> Any:
        """Run a message with others; return its result, or raise what it failed with.

        `limit` (s) bounds the handler. A delivery that is to run alone is a batch of one.
        """
        batch = self._open
        if batch is None or batch.closed.is_set() or delivery.alone:
            batch = _Batch()
            if self._start is None:
                raise NotOpenError(repr(self))
            self._start(batch)
            if not delivery.alone:
                self._open = batch
        member = _Member(delivery, item, limit)
        batch.members[member] = None
        if len(batch.members) >= self._task.batch.size or delivery.alone or self._hurried:
            batch.closed.set()
        try:
            await batch.over.wait()
        except BaseException:
            batch.leave(member)
            raise
        return member.outcome()

    def hurry(self, *, for_good: bool = False) -> None:
        """Run what waits without waiting for more; `for_good` if nothing more is to come."""
        self._hurried |= for_good
        if self._open is not None:
            self._open.closed.set()

    async def _lead(self, batch: _Batch) -> None:
        """Wait until a batch is full, or old enough, and run it."""
        with anyio.move_on_after(self._task.batch.wait):
            await batch.closed.wait()
        batch.closed.set()
        if self._open is batch:
            self._open = None
        members = [*batch.members]
        if not members:
            return
        _deliveries.set(tuple(member.delivery for member in members))
        self._running += 1
        try:
            with batch.scope:
                await self._run(batch, members)
        finally:
            self._running -= 1
        batch.over.set()  # not if the worker is being cancelled: then all of them are

    async def _run(self, batch: _Batch, members: Sequence[_Member]) -> None:
        limit = min((member.limit for member in members if member.limit is not None), default=None)
        try:
            if self._ready is not None:
                await self._ready()  # not timed
            with anyio.move_on_after(limit) as timer:
                self._part(members, await self._handle([member.item for member in members]))
                return
            if timer.cancelled_caught and limit is not None:
                raise TaskTimeoutError(self._task.name, limit)  # noqa: TRY301 - as what the handler raises
        except BaseException as error:
            # A cancellation of ours goes on its way; one that the handler made up is its failure, and
            # what ends the program does so from the run of a member.
            if not isinstance(error, Exception | SystemExit) and (_cancelled() or not batch.members):
                raise
            for member in members:
                member.fail(error)

    def _part(self, members: Sequence[_Member], returned: Any) -> None:
        """Give each member what is its own."""
        if returned is None:
            return
        if not isinstance(returned, list | tuple) or len(returned) != len(members):
            raise BatchResultError(self._task.name, len(members), returned)
        for member, result in zip(members, returned, strict=True):
            if isinstance(result, BaseException):
                member.fail(result)
            else:
                member.result = result


def _cancelled() -> bool:
    """Was a scope around us cancelled?"""
    return anyio.current_effective_deadline() == float("-inf")
