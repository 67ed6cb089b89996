"""What keeps an error from ending more than it is about: loops, tasks that others cancel, mistakes of streamq's own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import anyio

from streamq.consumer.closed_call import call_closed, is_left
from streamq.consumer.left_behind import RunScope
from streamq.consumer.shortage import is_shortage
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import str_of
from streamq.errors import BrokerError
from streamq.middleware import Resident
from streamq.queue.store import Store
from streamq.tasks.exception_groups import leaves
from streamq.tasks.outcome import DeadLetter, Postpone, Reason, failure_of
from streamq.tasks.retry_policy import Backoff
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

_AFTER_SHORTAGE = 1.0  # seconds until a task runs that the system had no descriptors or memory for
_AGAIN = Backoff(base=0.1, factor=2.0, cap=30.0)  # seconds until the loop of a middleware is started again


async def live_forever(resident: Resident, store: Store) -> None:
    """Run the loop of a middleware. What it raises is logged, and it is started again: it ends no worker."""
    failures = 0
    ends = _EndOfTask()
    while True:
        try:
            await call_closed(f"{type(resident).__name__}.live", resident.live, (store,))
            return
        except BaseException as error:
            if is_left(ends.task):
                raise GeneratorExit from error
            if ends.is_told_by(error):
                raise
            failures += 1
            pause = _AGAIN.ceiling(failures)
            log.exception(
                "the loop of %r raised; it is started again in %g s",
                resident,
                pause,
                event="internal_error",
                error=error,
            )
        await anyio.sleep(pause)


class _EndOfTask:
    """Tells the end of the task that this is made in from what a function called there raises by itself."""

    def __init__(self) -> None:
        self.task = anyio.get_current_task().id
        with anyio.CancelScope() as scope:  # noqa: ASYNC100 - it is entered to see its task
            self._requests = RunScope(scope).requests
        self._before = self._requests()

    def __repr__(self) -> str:
        return f"<_EndOfTask {self.task}>"

    def is_told_by(self, error: BaseException) -> bool:
        """Is this the cancellation of this task or of a scope around it?

        A cancellation of something that the function awaits is its own error.
        """
        if not isinstance(error, anyio.get_cancelled_exc_class()):
            return False
        return self._requests() > self._before or anyio.current_effective_deadline() == float("-inf")


class CancelledByOthersError(RuntimeError):
    """Raised by `Worker.run` if somebody else, such as a handler, has cancelled tasks of it. This counts as a crash."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was cancelled, and not by the worker: has a handler cancelled asyncio.all_tasks(), or a task or "
            "scope that is not its own? The worker ends; its leases end by themselves"
        )


class Loops:
    """The loops of one worker, in a task group beside a block, which calls `end`.

    Raises CancelledByOthersError if somebody else has cancelled one: the worker must not go on without it. Both
    backends cancel the group then. (A function around each loop would know which one it was, and would be one more call
    whenever a loop goes on.)
    """

    def __init__(self) -> None:
        self.ended = False
        self._group = anyio.create_task_group()

    def __repr__(self) -> str:
        return f"<Loops {'ended' if self.ended else 'running'}>"

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        cancelled_here = await self._group.__aexit__(kind, error, trace)
        if not self.ended and (error is None or cancelled_here):
            raise CancelledByOthersError("a loop of the worker")
        return cancelled_here

    def start_soon(self, loop: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Start a loop."""
        self._group.start_soon(loop, *args)

    async def start(self, loop: Callable[..., Coroutine[Any, Any, None]]) -> None:
        """Start a loop, and wait until it says that it has started."""
        await self._group.start(loop)

    def end(self) -> None:
        """Cancel all loops: the worker has done its work."""
        self.ended = True
        self._group.cancel_scope.cancel()


def is_own_error(error: BaseException) -> bool:
    """Is this a mistake of ours, and not a cancellation or an answer of the server?"""
    return any(isinstance(one, Exception) and not isinstance(one, BrokerError) for one in leaves(error))


def outcome_of(delivery: Delivery, error: BaseException) -> DeadLetter | Postpone:
    """Return, and log, what becomes of a delivery with which streamq itself failed: dead, or later."""
    if is_shortage(error):
        log.warning("%r waits: the system has no more (%s)", delivery, error, event="shortage", of=delivery)
        return Postpone(_AFTER_SHORTAGE, str_of(error))
    text = "%r cannot be carried on, and becomes a dead letter"
    log.exception(text, delivery, event="internal_error", of=delivery, error=error)  # noqa: LOG004 - given
    return DeadLetter(Reason.INTERNAL_ERROR, failure_of(error))


def single_exception(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception in a group of one; the group itself if there are more.

    Under asyncio KeyboardInterrupt and SystemExit stay in their group. They have left the event loop once. Raised again
    by another task they would do so again, in the middle of its end: threads that wait for work would wait for ever.
    """
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    cancelled = anyio.get_cancelled_exc_class()
    ends_loop = isinstance(found, KeyboardInterrupt | SystemExit) and not cancelled.__module__.startswith("trio")
    return group if ends_loop or isinstance(found, BaseExceptionGroup | cancelled) else found
