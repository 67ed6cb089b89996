"""`on_exhausted`: what a worker does when it has dead-lettered a task. It sends a task, or calls a function.

A task is sent in the same atomic step that writes the dead letter. A function is called after the server has confirmed
that step. It runs beside the handlers: it holds no slot, and nothing waits for it. The confirmation may be lost with
its connection, and the worker may die, so a function is called at most once.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import EventLoopToken

from streamq.consumer.async_library import AsyncLibrary
from streamq.consumer.calls_from_thread import calls_closed, closing_token
from streamq.consumer.left_behind import RunScope
from streamq.consumer.run_context import RunContext
from streamq.consumer.shortage import NotStartedError, pause_after
from streamq.consumer.thread_start import call_in_thread
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import ConfigurationError, UndecodableError
from streamq.errors.readable import readable
from streamq.handlers.context import delivery_var, store_var
from streamq.queue.sending import new_task_id
from streamq.queue.store import Store
from streamq.tasks.exhausted import Exhausted
from streamq.tasks.function import is_async
from streamq.tasks.outcome import DeadLetter, Reason
from streamq.tasks.task import Task
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import Message
from streamq.wire.side_effects import DelayTask, SendTask, SideEffect
from streamq.wire.tiers import Priority, Tier, pick_tier

log = SafeLog("streamq")

CALL_TIMEOUT = 10.0  # seconds for one call
MOST_CALLS = 8  # calls at the same time
MOST_WAITING = 1000  # calls that may wait; further ones are dropped, and logged
# With the other reasons the arguments cannot be read, or no worker knows the task.
_REASONS = frozenset((
    Reason.RETRIES_EXHAUSTED, Reason.REJECTED, Reason.CRASH_LOOP, Reason.EXPIRED, Reason.REFUSED
))  # fmt: skip


class OnExhausted:
    """The `on_exhausted` of the tasks of one worker. `tiers` and `keys` are those of its broker.

    Raises ConfigurationError or EncodingError for a task that cannot be sent as its options say.
    """

    def __init__(self, tasks: Iterable[Task[Any, Any]], store: Store, *, keys: Keys, tiers: Sequence[Tier]) -> None:
        self._on_exhausted = {task.name.encode(): task.on_exhausted for task in tasks if task.on_exhausted is not None}
        self._store = store
        self._keys = keys
        self._tiers = tuple(tiers)
        self._waiting: deque[tuple[Callable[[Exhausted], object], Exhausted]] = deque()
        self._wake = anyio.Event()
        self._closing = False
        self._ended = anyio.Event()
        self._limiter = anyio.CapacityLimiter(MOST_CALLS)
        for target in self._on_exhausted.values():
            if isinstance(target, Task):
                self._send_effect(target, {})  # raise now if it cannot be sent

    def __repr__(self) -> str:
        return f"<OnExhausted of {len(self._on_exhausted)} tasks, {len(self._waiting)} calls waiting>"

    def __bool__(self) -> bool:
        """Has any task an `on_exhausted`?"""
        return bool(self._on_exhausted)

    # --- called by the settler -----------------------------------------------------------------

    def side_effects(self, delivery: Delivery, outcome: DeadLetter) -> list[SideEffect]:
        """Return the task that is sent in the step that writes the dead letter, if any."""
        target = self._target(delivery, outcome)
        if not isinstance(target, Task):
            return []
        try:
            argument = Exhausted(delivery, outcome.reason, outcome.failure).as_dict()
            return [self._send_effect(target, argument)]
        except UndecodableError:  # it crashed its workers before it was decoded
            return []
        except Exception as error:
            log.exception(
                "on_exhausted of %r cannot be sent", delivery, event="on_exhausted_failed", of=delivery, error=error
            )
            return []

    def confirmed(self, delivery: Delivery, outcome: DeadLetter) -> None:
        """Queue the call of the function: the dead letter is written."""
        target = self._target(delivery, outcome)
        if target is None or isinstance(target, Task):
            return
        if len(self._waiting) >= MOST_WAITING or self._ended.is_set():
            log.error(
                "on_exhausted of %r is not called: %d calls wait already",
                delivery,
                len(self._waiting),
                event="on_exhausted_failed",
                of=delivery,
            )
            return
        self._waiting.append((target, Exhausted(delivery.copy(), outcome.reason, outcome.failure)))
        self._wake.set()

    def _target(self, delivery: Delivery, outcome: DeadLetter) -> Any:
        if outcome.reason not in _REASONS:
            return None
        return self._on_exhausted.get(delivery.fields.get(b"task", b""))

    def _send_effect(self, target: Task[..., Any], argument: dict[str, Any]) -> SendTask | DelayTask:
        options = target.send_options
        name, priority = target.placed
        tier = pick_tier(self._tiers, Priority.NORMAL if priority is None else priority)
        if name is not None:
            names = [tier.name for tier in self._tiers]
            if name not in names:
                raise ConfigurationError(f"on_exhausted {target.name!r}: tier={name!r} is none of {names}")
            tier = names.index(name)
        message = Message(
            task=target.name, args=(argument,), kwargs={}, task_id=new_task_id(), priority=priority,
            retries=options.retries, timeout=options.timeout, result_ttl=options.result_ttl, headers=options.headers,
        )  # fmt: skip
        # The dead task was within the size limit, so this is. Other groups have dead letters of their own.
        fields = [*message.fields(limit=sys.maxsize), "group", self._keys.group]
        delay = options.delay.total_seconds() if isinstance(options.delay, timedelta) else options.delay
        stream = self._keys.tiers[tier].stream
        return DelayTask(stream, message.task_id, fields, delay) if delay else SendTask(stream, fields)

    # --- the calls -------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Make the calls, until `finish` or cancellation."""
        store_var.set(self._store)
        async with anyio.create_task_group() as group:
            for _ in range(MOST_CALLS):
                group.start_soon(self._calls)
        self._ended.set()

    async def finish(self) -> None:
        """Wait until all waiting calls are made."""
        self._closing = True
        self._wake.set()
        await self._ended.wait()

    async def _calls(self) -> None:
        context = RunContext()
        while True:
            while self._waiting:  # each call in a task of its own: what it leaves behind ends with it
                async with anyio.create_task_group() as group:
                    context.run(group.start_soon, self._call, *self._waiting.popleft(), context.copy_decimal)
            if self._closing:
                return
            if self._wake.is_set():
                self._wake = anyio.Event()
            await self._wake.wait()

    async def _call(
        self, function: Callable[[Exhausted], object], dead: Exhausted, copy_decimal: Callable[[], object] | None
    ) -> None:
        delivery_var.set(dead.delivery)
        if copy_decimal is not None:
            copy_decimal()
        left = None
        with anyio.CancelScope() as scope:
            run = RunScope(scope)
            with run.watched():
                await self._call_timed(function, dead)
                left = await run.close("on_exhausted")
        if left is not None:
            log.error("on_exhausted of %r: %s", dead.delivery, left, event="on_exhausted_failed", of=dead.delivery)

    async def _call_timed(self, function: Callable[[Exhausted], object], dead: Exhausted) -> None:
        library = AsyncLibrary()
        try:
            with anyio.fail_after(CALL_TIMEOUT):
                if is_async(function):
                    returned: Any = function(dead)
                else:
                    returned = await self._call_in_thread(function, dead)
                if hasattr(type(returned), "__await__"):  # not `isinstance`, which asks the object
                    await _raising_readable(returned, library)
        except BaseException as error:
            if anyio.current_effective_deadline() == float("-inf"):  # the worker ends
                raise
            log.exception(
                "on_exhausted of %r failed", dead.delivery, event="on_exhausted_failed", of=dead.delivery, error=error
            )

    async def _call_in_thread(self, function: Callable[[Exhausted], object], dead: Exhausted) -> object:
        failures = 0
        while True:
            try:
                return await call_in_thread(partial(_call_closed, closing_token(), function, dead), self._limiter)
            except NotStartedError:
                failures += 1
                await anyio.sleep(pause_after(failures))


def _call_closed(token: EventLoopToken, function: Callable[[Exhausted], object], dead: Exhausted) -> object:
    with calls_closed(token):
        return function(dead)


async def _raising_readable(running: Awaitable[object], library: AsyncLibrary) -> None:
    """Wait for a function of the user, inside of a scope, which looks at what it raises."""
    try:
        await running
    except BaseException as raised:
        if (error := readable(raised)) is raised:
            raise
        raise error from None
    finally:
        if library.thread.name != library.name:
            library.put_back("on_exhausted")
