"""The worker: puts the loops together, starts them, drains them, stops them. No policy here.

In a program of one's own:

    async with RedisBroker() as broker:
        await Worker(broker, tasks=[send]).run()
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import anyio
import anyio.abc

from streamq.broker import RedisBroker, consumer_name
from streamq.consumer.consumer import Consumer
from streamq.consumer.events import Listener
from streamq.consumer.handler import Prepared
from streamq.consumer.leases import Leases
from streamq.consumer.on_exhausted import Aftermath
from streamq.consumer.prefetch_buffer import Intake
from streamq.consumer.progress_reporter import Reporter
from streamq.consumer.promoter import Scheduler
from streamq.consumer.runner import Runners
from streamq.consumer.scheduler import Recurring
from streamq.consumer.threads import Threads
from streamq.consumer.watchdog import Watchdog
from streamq.errors import BrokerError, ConfigurationError, TaskNameError, check_integer, check_number
from streamq.middleware import MiddlewareChain, Resident
from streamq.queue.store import Store
from streamq.tasks.batch import BatchTask
from streamq.tasks.task import Task
from streamq.wire.keys import Keys
from streamq.wire.tiers import Tier

log = logging.getLogger("streamq")

_LEAVE = 5.0  # seconds for the last words to the server
_BURST_LOOK = 0.05  # seconds between two looks whether a burst is over
_BURST_HORIZON = 60.0  # seconds: a burst waits for what is delayed by less
_SUSPECT_AFTER = 2
_NOT_YET = frozenset({"LOADING", "MASTERDOWN"})

Lifespan = Callable[["Worker"], AbstractAsyncContextManager[Any]]


class State(StrEnum):
    """What a worker is doing."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Health:
    """A worker's state. `trouble` is the error that keeps it from the server, None if it is well."""

    state: State
    trouble: str | None
    running: int
    waiting: int
    superseded: int


class Worker:
    """Runs tasks of a broker's queue, at most `concurrency` at once.

    `tasks` are the tasks it knows, `middleware` wraps every run, inside that of the broker. `visibility_timeout` (s) is
    how soon another worker takes over if this one is not heard of; a task may run for much
    longer. `grace_period` (s) is how long `stop` waits for what runs. `tiers` maps names of
    tiers to weights and picks those that are served; all, with the broker's weights, if it is
    None. `max_crashes` is how many workers a task may take down. `unknown_wait` (s) is how long
    a task that no worker knows is kept. `lifespan(worker)` is an async context manager around
    the whole run; what it yields is each delivery's `state`. `listeners` hear every event.
    With `burst` it ends once the queue is empty.

    Raises ConfigurationError or TaskNameError for what cannot be used.
    """

    def __init__(
        self, broker: RedisBroker, tasks: Iterable[Task[Any, Any]], *, middleware: MiddlewareChain | None = None,
        concurrency: int = 100, visibility_timeout: float = 30.0, grace_period: float = 25.0,
        tiers: Mapping[str, int] | None = None, max_crashes: int = 3, unknown_wait: float = 300.0,
        max_prefetch: int = 500, lifespan: Lifespan | None = None, listeners: Iterable[Listener] = (),
        name: str | None = None, burst: bool = False, seed: int | None = None,
    ) -> None:  # fmt: skip
        self.broker = broker
        self.name = consumer_name(name)
        self.tasks = _by_name(tasks)
        self._declared = broker.declared(self.tasks.values())
        self.tiers = _chosen(broker.tiers, tiers)
        self.concurrency = check_integer("concurrency", concurrency, 1)
        self.visibility_timeout = check_number("visibility_timeout", visibility_timeout, 0.1)
        self.grace_period = check_number("grace_period", grace_period, 0.0)
        self.max_crashes = check_integer("max_crashes", max_crashes, 2)
        self.unknown_wait = check_number("unknown_wait", unknown_wait, 0.0)
        self.max_prefetch = check_integer("max_prefetch", max_prefetch, 0)
        self.middleware = middleware if middleware is not None else MiddlewareChain()
        self._chains = {
            name: broker.middleware.joined(self.middleware, task.middleware) for name, task in self.tasks.items()
        }
        for task in self.tasks.values():
            _check_batch(task, self.concurrency)
        self.burst = burst
        self.state = State.NEW
        self._lifespan = lifespan
        self._listeners = tuple(listeners)
        self._random = random.Random(seed)
        self._stop = anyio.Event()
        self._hurry = anyio.Event()
        self._consumer: Consumer | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.state} tasks={len(self.tasks)} concurrency={self.concurrency}>"

    @property
    def health(self) -> Health:
        """What the worker is doing, and whether it can."""
        consumer = self._consumer
        if consumer is None:
            return Health(self.state, None, 0, 0, 0)
        error, intake = consumer.outage.error, consumer.intake
        trouble = None if error is None else str(error)
        return Health(self.state, trouble, intake.running, intake.waiting, consumer.settler.superseded)

    def stop(self) -> None:
        """Drain: read no more, hand back what has not started, finish what runs, end.

        A second call hands back what still runs, too, and ends at once. Call it in the event
        loop's thread.
        """
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run tasks until cancelled, drained by `stop`, or done with a burst.

        In a task group or nursery: `await group.start(worker.run)` returns once it reads.
        Raises BrokerError if the server cannot be used at the start; later it waits.
        """
        if self.state is not State.NEW:
            raise ConfigurationError(f"{self!r} ran already: make another worker")
        self.state = State.STARTING
        failed: BaseException | None = None
        try:
            async with self._lifespan(self) if self._lifespan else nullcontext() as state:
                try:
                    await self._work(state, task_status)
                except BaseExceptionGroup as group:
                    failed = _only(group)
                    if failed is group:
                        raise
        finally:
            self.state = State.STOPPED
        if failed is not None:
            raise failed

    async def _work(self, state: Any, task_status: anyio.abc.TaskStatus[None]) -> None:
        keys = Keys.of(self.broker.keys.namespace, self.broker.keys.group, self.tiers)
        store = Store(
            self.broker.client, keys, self.tiers, bound=lambda: self.broker.dead_letters, clock=self.broker.clock,
            max_payload=self.broker.max_payload,
        )  # fmt: skip
        await _ready(store)
        threads, reporter = Threads(self.concurrency), Reporter(store)
        consumer, runners = self._assembled(store, threads, reporter, state)
        self._consumer = consumer
        aftermath = Aftermath(self.tasks.values(), store, keys=self.broker.keys, tiers=self.broker.tiers)
        if aftermath:
            consumer.settler.heirs = aftermath
        leases = Leases(consumer, uniform=self._random)
        recurring = Recurring(consumer, self._declared)
        scheduler = Scheduler(
            consumer, on_released=leases.sweep_soon, on_cancel=runners.cancel, on_schedules=recurring.changed
        )
        watchdog = Watchdog(self.name, self.tasks.values(), visibility_timeout=self.visibility_timeout)
        await leases.renew()
        try:
            async with anyio.create_task_group() as loops:
                for loop in (
                    consumer.turns, consumer.blocking_reads, leases.renew_forever, leases.sweep_forever,
                    scheduler.promote_forever, scheduler.listen_forever, watchdog.watch_forever, recurring.tick_forever,
                    threads.look_after_forever, reporter.report_forever, runners.timeouts.watch_forever,
                ):  # fmt: skip
                    loops.start_soon(loop)
                if aftermath:
                    loops.start_soon(aftermath.serve)
                for resident in self._residents():
                    loops.start_soon(resident.live, store)
                for batches in runners.batches:
                    await loops.start(batches.serve)
                async with _running(runners, self.concurrency):
                    self.state = State.RUNNING
                    task_status.started()
                    await self._until_stopped(store, consumer)
                    self.state = State.DRAINING
                    leases.sweeping = False
                    await self._drain(consumer, runners)
                with anyio.move_on_after(_LEAVE):
                    await consumer.flushed()
                if aftermath:
                    with anyio.move_on_after(_LEAVE):
                        await aftermath.finish()
                loops.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVE):
                await consumer.leave()

    def _assembled(self, store: Store, threads: Threads, reporter: Reporter, state: Any) -> tuple[Consumer, Runners]:
        intake = Intake(
            [tier.weight for tier in self.tiers], slots=self.concurrency, max_prefetch=self.max_prefetch,
            suspect_after=min(_SUSPECT_AFTER, self.max_crashes - 1), patience=self.visibility_timeout,
            clock=self.broker.clock.elapsed,
        )  # fmt: skip
        consumer = Consumer(
            store, intake, name=self.name, visibility_timeout=self.visibility_timeout,
            on_ready=lambda: runners.wake(),  # noqa: PLW0108 - the pool is made below, from this consumer
            on_lost=lambda delivery: runners.give_up(delivery),  # noqa: PLW0108
            keep=lambda delivery: runners.keep(delivery),  # noqa: PLW0108
            max_crashes=self.max_crashes, listeners=self._listeners, uniform=self._random,
        )  # fmt: skip
        prepared = [Prepared(task, self._chains[name], threads, store) for name, task in self.tasks.items()]
        runners = Runners(
            consumer, prepared, reporter=reporter, unknown_wait=self.unknown_wait, state=state, uniform=self._random,
            listening=bool(self._listeners),
        )  # fmt: skip
        return consumer, runners

    def _residents(self) -> list[Resident]:
        """Return the middleware that has work of its own, each once."""
        found = {id(resident): resident for chain in self._chains.values() for resident in chain.residents()}
        return list(found.values())

    async def _until_stopped(self, store: Store, consumer: Consumer) -> None:
        if not self.burst:
            await self._stop.wait()
            return
        while not self._stop.is_set():
            with anyio.move_on_after(_BURST_LOOK):
                await self._stop.wait()
            if consumer.intake.quiet and not consumer.unsettled:
                try:
                    if await store.drained(_BURST_HORIZON):
                        return
                except BrokerError as error:
                    await consumer.recover("burst", error)
                else:
                    consumer.outage.over("burst")

    async def _drain(self, consumer: Consumer, runners: Runners) -> None:
        """Hand back what has not started; wait for what runs, for the grace period at most."""
        for batches in runners.batches:
            batches.hurry(for_good=True)
        await consumer.stop_reading()
        consumer.release(consumer.intake.unstarted())
        async with anyio.create_task_group() as group:
            group.start_soon(self._hurry_up, group.cancel_scope)
            with anyio.move_on_after(self.grace_period):
                await runners.all_ended()
            group.cancel_scope.cancel()

    async def _hurry_up(self, scope: anyio.CancelScope) -> None:
        await self._hurry.wait()
        scope.cancel()


@asynccontextmanager
async def _running(runners: Runners, concurrency: int) -> AsyncIterator[None]:
    """A pool of runners; at the end those still at work are cancelled."""
    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(runners.serve)
        yield
        group.cancel_scope.cancel()


async def _ready(store: Store) -> None:
    """Make streams and groups; a server that is still loading is waited for."""
    while True:
        try:
            return await store.ensure_groups()
        except BrokerError as error:
            if error.code not in _NOT_YET:
                raise
            log.warning("%s; waiting for the server", error)
            await anyio.sleep(1.0)


def _by_name(tasks: Iterable[Task[Any, Any]]) -> dict[str, Task[Any, Any]]:
    found: dict[str, Task[Any, Any]] = {}
    for task in tasks:
        if not isinstance(task, Task):
            raise ConfigurationError(f"{task!r} is no task: decorate it with @task")
        other = found.setdefault(task.name, task)
        if other.function is not task.function:
            raise TaskNameError(
                f"two tasks are named {task.name!r}: {_place(other)} and {_place(task)}; give one @task(name=...)"
            )
    if not found:
        raise ConfigurationError("tasks is empty: a worker needs at least one task")
    return found


def _check_batch(task: Task[Any, Any], concurrency: int) -> None:
    """Raise ConfigurationError if the messages of one batch can never be here at once."""
    if isinstance(task, BatchTask) and task.batch.size > concurrency:
        raise ConfigurationError(
            f"batch task {task.name!r} has size={task.batch.size}, and the worker concurrency={concurrency}: "
            "each message takes a slot; give the worker at least as many, or the task a smaller size"
        )


def _place(task: Task[Any, Any]) -> str:
    return f"{task.function.__module__}.{task.function.__qualname__}"


def _chosen(tiers: tuple[Tier, ...], wanted: Mapping[str, int] | None) -> tuple[Tier, ...]:
    if wanted is None:
        return tiers
    names = {tier.name for tier in tiers}
    if not wanted or not set(wanted) <= names:
        raise ConfigurationError(f"tiers={dict(wanted)!r}: the broker has {', '.join(tier.name for tier in tiers)}")
    chosen = tuple(replace(tier, weight=wanted[tier.name]) for tier in tiers if tier.name in wanted)
    for tier in chosen:
        if type(tier.weight) is not int or tier.weight < 1:
            raise ConfigurationError(f"tier {tier.name!r} has weight {tier.weight!r}: give an integer of at least 1")
    return chosen


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception in a group of one; the group itself if there are more."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return group if isinstance(found, BaseExceptionGroup | anyio.get_cancelled_exc_class()) else found
