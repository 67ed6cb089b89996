"""`run_tasks` of the pytest plugin: runs what waits in the queue until nothing is left, and says what became of it.

Theory. A delay is a time in Redis, so where the clock of the server is the test's nobody need wait: a worker runs all
that is due; then the clock is moved to the next due time, and so on (see `until_done`). The worker ends when nothing is
left, and when a handler has sent a task that it does not know: then another one begins, which does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import Any

import anyio

from streamq.broker import RedisBroker
from streamq.consumer.events import Event, Settled
from streamq.diagnostics.unawaited import name_remedies, name_remedy
from streamq.errors import ConfigurationError, TaskFailedError
from streamq.middleware.chain import Context, MiddlewareChain, as_chain
from streamq.tasks.batch import BatchTask
from streamq.tasks.outcome import Ack, DeadLetter
from streamq.tasks.task import Task
from streamq.testing.not_ended import not_ended_error
from streamq.testing.suite_clock import SuiteClock, refuse_frozen_loop
from streamq.testing.until_done import PRECISION, UntilDone, next_due

_CONCURRENCY = 20  # of a worker: the start of each costs as much as its runners are
_UNKNOWN_WAIT = 1.0  # seconds: no worker is to come that knows more, but the next one of the same test


@dataclass(frozen=True, slots=True)
class EndedTask:
    """What became of a task.

    `args` and `kwargs` are what was sent, in the types of the handler's parameters; JSON if the task is not known
    or they do not fit. `runs` counts the calls of its handler. `result` is what the last of them returned, and `errors`
    are what the others raised. `outcome` is its end: `Ack`, or `DeadLetter` with a reason. `error` is None if it
    succeeded or was cancelled, or else the exception that it died of.
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
        self._worker: UntilDone | None = None  # the last one
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

        A time that jumps costs what runs in it: 10 to 20 ms of CPU for each tick and each retry. The schedules of all
        tasks tick that the fixture knows, those of imported modules too.

        Raises the exception of a task that died, or a group of them if several did: after all others have ended. Not
        with `check=False`. Raises TimeoutError if the tasks do not end, which says how far the clock came and what is
        left; and ConfigurationError if no task is known, if the fixture `worker` runs, if the clock cannot be moved,
        and if freezegun has stopped that of the event loop.
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
        began, before = (None if clock is None else clock.now()), len(self._ended)
        until = None if began is None or seconds is None else began + seconds
        async with self._lock:
            with anyio.move_on_after(inf if limit is None or virtual else limit) as scope:
                await self._run_all(clock, until)
        if scope.cancelled_caught:
            left = [f"{one.name} {task_id} ({one.runs} runs)" for task_id, one in self._running.items()]
            raise await not_ended_error(
                self._broker, limit, began=began, until=until, ended=len(self._ended) - before, running=left
            )

    async def _run_all(self, clock: SuiteClock | None, until: float | None) -> None:
        looked_again = False
        while True:
            await self._run_due(clock, until)
            if clock is None:
                return
            listed = [] if until is None else await self._broker.schedules()
            due = min(await next_due(self._broker, until, listed))
            if due < inf:
                looked_again = False
                await clock.move_to(due + PRECISION)
            elif looked_again or await self._broker.store.drained(0.0):
                break
            else:  # a task came due as the worker ended
                looked_again = True
        if until is not None:
            await clock.move_to(until)

    def _known_now(self) -> dict[str, Task[Any, Any]]:
        return self._known | getattr(self._broker, "sent", {})

    async def _run_due(self, clock: SuiteClock | None, until: float | None) -> None:
        """Run a worker until nothing is due, nor comes due where the clock can be moved."""
        known = self._known_now()
        if not known:
            raise ConfigurationError(
                "no task is known: send one through the fixture `broker`, import one into the module of the test, or "
                "name some by @pytest.mark.streamq(tasks=[...])"
            )
        batches = (task.batch.size for task in known.values() if isinstance(task, BatchTask))
        options = {"concurrency": max(_CONCURRENCY, *batches, 1), "unknown_wait": _UNKNOWN_WAIT} | self._options
        worker = UntilDone(
            self._broker, known.values(), listeners=(self._hear, *self._listeners),
            middleware=MiddlewareChain(self._watch, *as_chain(self._middleware)), burst=True,
            clock=clock, until=until,
            may_go_on=lambda: self._known_now().keys() == known.keys(), **options,
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
            self._worker.note_settled()
        if isinstance(event, Settled) and isinstance(event.outcome, Ack | DeadLetter):
            delivery, outcome = event.delivery, event.outcome
            noted = self._running.pop(delivery.task_id, _Runs())
            try:
                name, args, kwargs = delivery.task, delivery.args, delivery.kwargs
            except ValueError:  # it was no message
                name, args, kwargs = "", [], {}
            typed = _typed(self._known_now().get(name), args, kwargs)
            error = _error_of(delivery.task_id, outcome)
            self._ended.append(
                EndedTask(name, delivery.task_id, *typed, outcome, noted.runs, noted.result, tuple(noted.errors), error)
            )


def _typed(
    task: Task[Any, Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return arguments as the handler gets them, or as they are if it gets none."""
    if task is None or (converter := task.arguments.converter) is None:
        return args, kwargs
    try:
        typed, named = converter(args, kwargs)
    except Exception:  # noqa: BLE001 - of the user's types; the run has raised it
        return args, kwargs
    return [*typed], {**named}


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


name_remedies(RunTasks, "run_tasks")
name_remedy(RunTasks.__call__, "run_tasks(...)")
