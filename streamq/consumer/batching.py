"""Batching: messages of a batch task wait here for each other, run together, and are settled separately.

Every message has its own runner, lease, middleware, cancellation and outcome. In the innermost part of its run it joins
a batch. The handler runs once for the whole batch, in an anyio task of its own. A message that is cancelled, or whose
lease is lost, leaves the batch without effect on the others. If all messages have left, the handler is cancelled.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import anyio
import anyio.abc

from streamq.client.owner import end_child
from streamq.consumer.async_library import AsyncLibrary
from streamq.consumer.left_behind import MISNESTED, RunScope, take_requests
from streamq.consumer.run_context import RunContext
from streamq.consumer.shortage import NotStartedError
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import frames_of
from streamq.errors import BatchResultError, NotOpenError, TaskTimeoutError
from streamq.errors.readable import readable
from streamq.handlers.context import nothing_here, store_var
from streamq.queue.store import Store
from streamq.tasks.batch import BatchTask
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

_deliveries: ContextVar[tuple[Delivery, ...]] = ContextVar("streamq_batch")


def current_batch() -> tuple[Delivery, ...]:
    """Return copies of the deliveries of the batch that is handled here, in the order of its items.

    Raises LookupError outside the handler of a batch task. Works in threads, too.
    """
    try:
        return tuple(one.copy() for one in _deliveries.get())
    except LookupError:
        raise nothing_here("no batch is being handled here: call this inside the handler of a batch task") from None


class _BatchedMessage:
    """One message in a batch, and its result or error."""

    __slots__ = ("delivery", "error", "item", "limit", "result", "traceback")

    def __init__(self, delivery: Delivery, item: Any, limit: float | None) -> None:
        self.delivery = delivery
        self.item = item
        self.limit = limit
        self.result: Any = None
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None

    def outcome(self) -> Any:
        """Return the result of this message, or raise what it failed with."""
        if self.error is not None:
            raise self._taken(self.error)
        return self.result

    def _taken(self, error: BaseException) -> BaseException:
        """Return the error with its original traceback, and keep neither: the frames in that have this message.

        Several messages may share one error.
        """
        self.error, trace, self.traceback = None, self.traceback, None
        return BaseException.with_traceback(error, trace)

    def fail(self, error: BaseException) -> None:
        """Note that this message failed."""
        self.error = readable(error)
        self.traceback = frames_of(error)


class _Batch:
    """Messages that run together.

    `closed` is set once no message may join, `done` once the batch has run, `over` once nothing of it runs any more.
    """

    __slots__ = ("closed", "done", "members", "over", "scope")

    def __init__(self) -> None:
        self.members: dict[_BatchedMessage, None] = {}  # in the order they came
        self.closed = anyio.Event()
        self.done = anyio.Event()
        self.over = anyio.Event()
        self.scope = anyio.CancelScope()

    def leave(self, member: _BatchedMessage) -> None:
        """Remove a cancelled message. If it was the last one, cancel the handler."""
        del self.members[member]
        if not self.members and not self.done.is_set():
            self.closed.set()
            self.scope.cancel()


class Batches:
    """The batches of one task in one worker.

    `handle` runs the handler with a list of items, inside of a `turn`.
    """

    def __init__(
        self, task: BatchTask[Any, Any], handle: Callable[[list[Any]], Awaitable[Any]], store: Store, *,
        turn: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
    ) -> None:  # fmt: skip
        self._task = task
        self._call_handler = handle
        self._library = AsyncLibrary()
        self._turn = turn
        self._store = store
        self._start: Callable[[_Batch], object] | None = None
        self._open: _Batch | None = None  # the batch that the next message joins
        self._never_wait = False
        self._copy_decimal: Callable[[], object] | None = None
        self._running = 0
        self._ending = False

    def __repr__(self) -> str:
        waiting = len(self._open.members) if self._open is not None else 0
        return f"<Batches of {self._task.name}: {waiting}/{self._task.batch.size} waiting, {self._running} running>"

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run the batches, until cancelled."""
        store_var.set(self._store)
        context = RunContext()  # not that of one delivery: a batch runs for many
        self._copy_decimal = context.copy_decimal
        async with anyio.create_task_group() as group:
            self._start = lambda batch: context.run(group.start_soon, self._run_when_ready, batch)
            task_status.started()
            await anyio.sleep_forever()

    async def run(self, delivery: Delivery, item: Any, limit: float | None) -> Any:
        """Run a message in a batch; return its result, or raise its error.

        `limit` (s) is the timeout of the handler. An isolated delivery is a batch of one.
        """
        batch = self._open
        if batch is None or batch.closed.is_set() or delivery.isolated:
            batch = _Batch()
            if self._start is None:
                raise NotOpenError(repr(self))
            self._start(batch)
            if not delivery.isolated:
                self._open = batch
        member = _BatchedMessage(delivery, item, limit)
        batch.members[member] = None
        if len(batch.members) >= self._task.batch.size or delivery.isolated or self._never_wait:
            batch.closed.set()
        try:
            await batch.done.wait()
        except BaseException:
            batch.leave(member)
            if self._ending:
                batch.scope.cancel()
            if batch.scope.cancel_called:
                with anyio.CancelScope(shield=True):  # while the handler cleans up, nobody else may run the message
                    await batch.over.wait()
            raise
        return member.outcome()

    def end(self) -> None:
        """Note that the worker ends: a message that is cancelled cancels its whole batch, and waits for its end."""
        self._ending = True

    def stop_waiting(self, *, for_good: bool = False) -> None:
        """Run the open batch without waiting for more messages; `for_good`: and every later batch."""
        self._never_wait |= for_good
        if self._open is not None:
            self._open.closed.set()

    async def _run_when_ready(self, batch: _Batch) -> None:
        """Wait until a batch is full, or old enough, and run it."""
        try:
            await self._wait_and_run(batch)
        finally:
            batch.over.set()

    async def _wait_and_run(self, batch: _Batch) -> None:
        with anyio.move_on_after(self._task.batch.wait):
            await batch.closed.wait()
        batch.closed.set()
        if self._open is batch:
            self._open = None
        members = [*batch.members]
        if not members:
            return
        _deliveries.set(tuple(member.delivery for member in members))
        if self._copy_decimal is not None:
            self._copy_decimal()
        self._running += 1
        try:
            with batch.scope:
                await self._run(batch, members)
        finally:
            self._running -= 1
        batch.done.set()  # not if the worker is being cancelled: then all messages are

    async def _take_requests(self, run: RunScope) -> None:
        """Take a request of the handler to cancel the task of its batch: it would end the task group of all batches."""
        try:
            await take_requests(run)
        except anyio.get_cancelled_exc_class():
            if _cancelled():
                raise
            log.warning(
                "the handler of the batch task %s has cancelled its own task", self._task.name, event="left_behind"
            )

    async def _run(self, batch: _Batch, members: Sequence[_BatchedMessage]) -> None:
        limit = min((member.limit for member in members if member.limit is not None), default=None)
        try:
            while True:
                async with self._turn():  # not timed
                    with anyio.move_on_after(limit) as timer:
                        try:
                            self._assign_results(members, await self._call([member.item for member in members], timer))
                        except NotStartedError:  # it has not begun
                            continue
                        return
                    break
            if timer.cancelled_caught and limit is not None:
                raise TaskTimeoutError(self._task.name, limit)  # noqa: TRY301 - handled like an error of the handler
        except BaseException as error:
            # A cancellation from outside is raised again. A cancellation that the handler raised itself is its
            # failure. An exception that ends the program is raised in the run of each message.
            if not issubclass(type(error), Exception | SystemExit) and (_cancelled() or not batch.members):
                raise
            for member in batch.members:  # nobody waits for the others
                member.fail(error)

    async def _call(self, items: list[Any], scope: anyio.CancelScope) -> Any:
        """Call the handler inside of a scope. Raises LeftOpenError if it leaves scopes open."""
        run, process = RunScope(scope), os.getpid()
        with run.watched():
            try:
                try:
                    returned = await self._call_handler(items)
                finally:
                    if os.getpid() != process:  # the handler forked, and this is the child
                        end_child()
                    if self._library.thread.name != self._library.name:
                        self._library.put_back(self._task.name)
            except BaseException as raised:  # noqa: BLE001 - raised again
                error = readable(raised)
                try:
                    if run.inner or run.abandoned or isinstance(error, MISNESTED):
                        raise (await run.close(self._task.name, error)) from None
                    if run.asked_to_end() and not _cancelled():
                        await self._take_requests(run)
                    if error is raised:
                        raise
                    raise error from None
                finally:
                    del error
            if run.inner or run.abandoned:
                await run.raise_left_open(self._task.name)
            if run.requests() or run.task._must_cancel:  # noqa: SLF001 - no call
                await self._take_requests(run)
        return returned

    def _assign_results(self, members: Sequence[_BatchedMessage], returned: Any) -> None:
        """Give each message its own result."""
        if returned is None:
            return
        if not issubclass(type(returned), list | tuple) or len(returned) != len(members):
            raise BatchResultError(self._task.name, len(members), returned)
        for member, result in zip(members, returned, strict=True):
            if issubclass(type(result), BaseException):  # `isinstance` asks the object, which may raise
                member.fail(result)
            else:
                member.result = result


def _cancelled() -> bool:
    """Was a scope around us cancelled?"""
    return anyio.current_effective_deadline() == float("-inf")
