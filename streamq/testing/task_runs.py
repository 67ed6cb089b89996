"""`run_tasks` of the pytest plugin: runs what waits in the queue until nothing is left, and says what became of it.

Theory. A delay is a time in Redis, so where the clock of the server is the test's nobody need wait: a worker runs all
that is due, and ends; then the clock is moved to the next due time. No worker runs meanwhile, so none takes the move
for a pause in which it lost its leases. A retry, a delayed task and a tick of a schedule cost a worker each, some
milliseconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import Any

import anyio

from streamq.broker import RedisBroker
from streamq.consumer.consumer import Consumer
from streamq.consumer.events import Event, Settled
from streamq.errors import ConfigurationError, TaskFailedError
from streamq.middleware.chain import Context, MiddlewareChain, as_chain
from streamq.queue.store import Store
from streamq.tasks.batch import BatchTask
from streamq.tasks.outcome import Ack, DeadLetter
from streamq.tasks.task import Task
from streamq.testing.suite_clock import SuiteClock, refuse_frozen_loop
from streamq.worker import Worker

_LOOK_EVERY = 0.02  # seconds between two looks whether all is done, while tasks run and none ends
_SHORTEST = 0.002  # and while none runs
_CONCURRENCY = 20  # of a worker: the start of each costs as much as its runners are
_UNKNOWN_WAIT = 1.0  # seconds: no worker is to come that knows more, but the next one of the same test
_HORIZON = 60.0  # seconds: where the clock cannot be moved, a task that is delayed by less is waited for
_PRECISION = 0.001  # seconds: due times are whole milliseconds


@dataclass(frozen=True, slots=True)
class EndedTask:
    """What became of a task.

    `args` and `kwargs` are what was sent, as JSON. `runs` counts the calls of its handler. `result` is what the last of
    them returned, and `errors` are what the others raised. `outcome` is its end: `Ack`, or `DeadLetter` with a reason.
    `error` is None if it succeeded or was cancelled, or else the exception that it died of.
    """

    name: str
    task_id: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outcome: Ack | DeadLetter
    runs: int
    result: Any
    errors: tuple[BaseException, ...] = ()
    error: BaseException | None = None


@dataclass(slots=True)
class _Runs:
    """The runs of one task so far."""

    name: str = ""
    runs: int = 0
    result: Any = None
    errors: list[BaseException] = field(default_factory=list)


class RunTasks:
    """Runs the tasks of a broker's queue: `await run_tasks()`.

    `tasks` are those that are known beside what was sent through the broker. `worker_options` are options of `Worker`.
    """

    def __init__(
        self, broker: RedisBroker, tasks: Iterable[Task[Any, Any]], worker_options: Mapping[str, Any] | None = None
    ) -> None:
        self._broker = broker
        self._known = {task.name: task for task in reversed([*tasks])}
        self._options = dict(worker_options or {})
        self._listeners = tuple(self._options.pop("listeners", ()))
        self._middleware = self._options.pop("middleware", None)
        self._running: dict[str, _Runs] = {}
        self._ended: list[EndedTask] = []
        self._worker: _UntilDone | None = None  # the last one
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<RunTasks of {self._broker!r}: {len(self._ended)} ended since the last call>"

    async def __call__(
        self,
        *,
        during: float | timedelta | None = None,
        check: bool = True,
        timeout: float | None = 30.0,  # noqa: ASYNC109
    ) -> list[EndedTask]:
        """Run what waits, and what comes of it, until nothing is left. Return what became of each task, in that order.

        Delays and retries are not waited for where the clock of the server can be moved, as on `memory://`; elsewhere
        those of less than 60 s are. Schedules that tasks declare tick only with `during`: then so many seconds pass,
        all that comes due in them runs, and what is due later stays. `timeout` is in real seconds.

        Raises the exception of a task that died, or a group of them if several did: after all others have ended. Not
        with `check=False`. Raises TimeoutError if the tasks do not end, and ConfigurationError if no task is known, if
        the fixture `worker` runs, if the clock cannot be moved, and if freezegun has stopped that of the event loop.
        """
        await self._run(during, timeout)
        ended, self._ended = self._ended, []
        if check:
            raise_errors(ended)
        return ended

    async def eagerly(self) -> None:
        """Run what waits, for the eager mode: the next call returns what became of it."""
        await self._run(None, None)

    async def _run(self, during: float | timedelta | None, limit: float | None) -> None:
        refuse_frozen_loop()
        if getattr(self._broker, "served", None) is not None:
            raise ConfigurationError("a worker runs in the background and takes the tasks: ask for worker or run_tasks")
        clock = getattr(self._broker, "suite_clock", None)
        if during is not None and clock is None:
            raise ConfigurationError(f"during={during!r}: the clock of {self._broker.url} cannot be moved")
        seconds = during.total_seconds() if isinstance(during, timedelta) else during
        virtual = clock is not None and clock.is_virtual
        async with self._lock:
            with anyio.move_on_after(inf if limit is None or virtual else limit) as scope:
                await self._run_all(clock, None if clock is None or seconds is None else clock.now() + seconds)
        if scope.cancelled_caught:
            left = [f"{one.name} {task_id} ({one.runs} runs)" for task_id, one in self._running.items()]
            raise TimeoutError(f"not ended within {limit} s; under way or to run again: {', '.join(left) or 'none'}")

    async def _run_all(self, clock: SuiteClock | None, until: float | None) -> None:
        looked_again = False
        while True:
            await self._run_due(ticks=until is not None)
            if clock is None:
                return
            due = await self._next_due(until)
            if due is not None:
                looked_again = False
                await clock.move_to(due + _PRECISION)
            elif looked_again or await self._broker.store.drained(0.0):
                break
            else:  # a task came due as the worker ended
                looked_again = True
        if until is not None:
            await clock.move_to(until)

    async def _next_due(self, until: float | None) -> float | None:
        """Return the next due time (Unix s), None if there is none."""
        due = [one.due.timestamp() async for one in self._broker.scheduled(limit=1)]
        if until is not None:
            ticks = await self._broker.schedules()
            due += [one.next.timestamp() for one in ticks if one.next is not None and not one.problem]
        soonest = min(due, default=inf)
        return None if soonest == inf or (until is not None and soonest > until) else soonest

    async def _run_due(self, *, ticks: bool) -> None:
        """Run a worker until nothing is due."""
        known = self._known | getattr(self._broker, "sent", {})
        if not known:
            raise ConfigurationError(
                "no task is known: send one through the fixture `broker`, import one into the module of the test, or "
                "name some by @pytest.mark.streamq(tasks=[...])"
            )
        batches = (task.batch.size for task in known.values() if isinstance(task, BatchTask))
        options = {"concurrency": max(_CONCURRENCY, *batches, 1), "unknown_wait": _UNKNOWN_WAIT} | self._options
        worker = _UntilDone(
            self._broker, known.values(), listeners=(self._hear, *self._listeners),
            middleware=MiddlewareChain(self._watch, *as_chain(self._middleware)), burst=True, ticks=ticks, **options,
        )  # fmt: skip
        self._worker = worker
        await worker.run()

    # --- what happens -------------------------------------------------------------------------

    async def _watch(self, context: Context, call_next: Callable[[Context], Awaitable[Any]]) -> Any:
        """Note what a run returns or raises. The outermost middleware of the worker."""
        noted = self._running.setdefault(context.delivery.task_id, _Runs(context.task.name))
        noted.runs += 1
        try:
            noted.result = await call_next(context)
        except BaseException as error:
            noted.errors.append(error)
            raise
        return noted.result

    def _hear(self, event: Event) -> None:
        """Note the end of a task. A listener of the worker."""
        if isinstance(event, Settled) and self._worker is not None:
            self._worker.settled.set()
        if isinstance(event, Settled) and isinstance(event.outcome, Ack | DeadLetter):
            delivery, outcome = event.delivery, event.outcome
            noted = self._running.pop(delivery.task_id, _Runs())
            try:
                name, args, kwargs = delivery.task, delivery.args, delivery.kwargs
            except ValueError:  # it was no message
                name, args, kwargs = "", [], {}
            error = _error_of(delivery.task_id, outcome)
            self._ended.append(
                EndedTask(
                    name, delivery.task_id, args, kwargs, outcome, noted.runs, noted.result, tuple(noted.errors), error
                )
            )


class _UntilDone(Worker):
    """A worker that ends as soon as nothing is due. `ticks`: and no schedule either; else it declares none."""

    def __init__(self, *args: Any, ticks: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ticks = ticks
        if not ticks:
            self._declared = []
        self.settled = anyio.Event()  # set by the next end of a run

    async def _until_drained(self, store: Store, consumer: Consumer) -> None:
        clock = getattr(self.broker, "suite_clock", None)
        horizon = _HORIZON if clock is None else 0.0
        longest = _LOOK_EVERY if clock is None or not clock.is_virtual else _HORIZON  # time that nobody waits for
        while not await self._is_done(store, consumer, horizon):
            self.settled = anyio.Event()
            with anyio.move_on_after(_SHORTEST if consumer.buffer.idle else longest):
                await self.settled.wait()

    async def _is_done(self, store: Store, consumer: Consumer, horizon: float) -> bool:
        aside = consumer.settler.set_aside
        if not consumer.buffer.idle or consumer.unsettled or aside.trying:
            return False
        if self.ticks and not await self._has_ticked():  # before the other: a tick sends a task
            return False
        return await store.drained(horizon, left=aside.left_by_tier())

    async def _has_ticked(self) -> bool:
        now, listed = self.broker.server_clock.now(), {one.name: one for one in await self.broker.schedules()}
        return {one.name for one in self._declared} <= listed.keys() and all(
            one.problem or one.next is None or one.next.timestamp() > now for one in listed.values()
        )


def _error_of(task_id: str, outcome: Ack | DeadLetter) -> BaseException | None:
    if isinstance(outcome, Ack):
        return None
    if outcome.error is not None:
        return outcome.error
    failure = outcome.failure
    return TaskFailedError(
        task_id, reason=str(outcome.reason), error_type=failure.error_type, error=failure.error,
        traceback=failure.traceback,
    )  # fmt: skip


def raise_errors(ended: Sequence[EndedTask]) -> None:
    """Raise what a task has died of, or a group of these errors if several have."""
    errors = []
    for one in ended:
        if one.error is not None and isinstance(one.outcome, DeadLetter):
            one.error.add_note(f"task {one.name} {one.task_id} died after {one.runs} runs: {one.outcome.reason}")
            errors.append(one.error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} tasks died", errors)
