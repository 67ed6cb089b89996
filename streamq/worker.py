"""The worker: builds the loops of one member of the consumer group, starts, drains and stops them. No policy here.

In a program of one's own:

    async with RedisBroker() as broker:
        await Worker(broker, tasks=[send]).run()
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import anyio
import anyio.abc

from streamq.broker import RedisBroker
from streamq.client import Owner
from streamq.consumer.cancellation import by_a_stranger
from streamq.consumer.consumer import Consumer
from streamq.consumer.consumer_name import consumer_name
from streamq.consumer.containment import Loops, is_own_error, live_forever, single_exception
from streamq.consumer.events import Listener
from streamq.consumer.handler import Handler
from streamq.consumer.joining import check_reading, create_groups, register
from streamq.consumer.leases import LeaseKeeper
from streamq.consumer.leaving import Leaving, cancellation_stops, running
from streamq.consumer.lifespan import check_lifespan, check_manager
from streamq.consumer.loop_watchdog import Watchdog
from streamq.consumer.on_exhausted import OnExhausted
from streamq.consumer.outcome_log import log_done, logs_done
from streamq.consumer.prefetch_buffer import PREFETCH_BYTES, PrefetchBuffer
from streamq.consumer.preparing import prepare_later
from streamq.consumer.process_pool import Processes
from streamq.consumer.progress_reporter import ProgressReporter
from streamq.consumer.promoter import Promoter
from streamq.consumer.runner_pool import Runners
from streamq.consumer.scheduler import Scheduler
from streamq.consumer.threads import Threads
from streamq.consumer.worker_arguments import check_batch, served_tiers, tasks_by_name
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import BrokerError, ConfigurationError, LifespanEndedError
from streamq.middleware.chain import MiddlewareChain, Resident, as_chain
from streamq.queue.store import Store
from streamq.tasks.task import Task
from streamq.wire import bounds
from streamq.wire.argument_types import check_callable, check_items, check_level, check_type
from streamq.wire.keys import Keys

log = SafeLog("streamq")

_BURST_CHECK_EVERY = 0.05  # seconds between two looks whether the queue is empty
_BURST_HORIZON = 60.0  # seconds: a burst worker waits for tasks that are delayed by less
_SUSPECT_AFTER = 2

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
    """The health of a worker. `trouble` is the error that keeps it from the server, or the first of `refused`.

    `refused` says what the server refuses while everything else goes on: the settlement of which task, the step of
    which loop, what a limit asks for, a right to announce, and why. At most 10 settlements are named. None and () if
    there is nothing.

    It is `ready` while it runs, without an outage, and the server has answered within the last visibility timeout.
    `running` and `waiting` count deliveries, `superseded` those that another consumer settled first, or reclaimed.
    """

    state: State
    trouble: str | None
    running: int
    waiting: int
    superseded: int
    refused: tuple[str, ...] = ()
    ready: bool = False


class Worker:
    """Runs tasks of a broker's queue, at most `concurrency` at once.

    `tasks` are the tasks it knows. `middleware` wraps every run, inside the broker's middleware. `visibility_timeout`
    (s) is how soon other workers reclaim its deliveries if it does not renew their leases; a task may run for much
    longer. `grace_period` (s) is how long `stop` waits for running tasks. `tiers` maps the names of the tiers it serves
    to weights; None serves all, with the broker's weights. `max_crashes` is how many workers a task may crash.
    `unknown_wait` (s) is how long a task that no worker knows is kept. `max_prefetch` is how many deliveries it holds
    beyond the running ones, at most; `prefetch_bytes` is how many bytes of large deliveries it holds, running ones
    included. `processes` is how many runs of tasks with `run_in="process"` go on at once, None as many as there are
    usable cores; a process ends after `max_tasks_per_process` runs, and after one that leaves it with more than
    `max_rss` bytes, and begins with a call of `initializer`. `lifespan(worker)` is an async context manager around the
    whole run; the value it yields is each delivery's `state`. `listeners` get every event. With `burst` the worker ends
    once the queue is empty. `log_failures` is the level of the line that is logged for each failed attempt
    (docs/logs.md): "debug", "info", "warning" or "error". `seed` seeds the jitter, for tests.

    Raises ConfigurationError or TaskNameError if an argument cannot be used.
    """

    def __init__(
        self, broker: RedisBroker, tasks: Iterable[Task[Any, Any]], *, middleware: MiddlewareChain | None = None,
        concurrency: int = 100, visibility_timeout: float = 30.0, grace_period: float = 25.0,
        tiers: Mapping[str, int] | None = None, max_crashes: int = 3, unknown_wait: float = 300.0,
        max_prefetch: int = 500, prefetch_bytes: int = PREFETCH_BYTES, processes: int | None = None,
        max_tasks_per_process: int | None = None, max_rss: int | None = None,
        initializer: Callable[[], object] | None = None,
        lifespan: Lifespan | None = None, listeners: Iterable[Listener] = (),
        name: str | None = None, burst: bool = False, log_failures: str = "info", seed: int | None = None,
    ) -> None:  # fmt: skip
        self.broker = check_type("broker", broker, RedisBroker, "a RedisBroker")
        self.name = consumer_name(name)
        self.tasks = tasks_by_name(tasks)
        self._declared = broker.declared(self.tasks.values())
        self.tiers = served_tiers(broker.tiers, tiers)
        self.concurrency = bounds.CONCURRENCY.check(concurrency)
        self.visibility_timeout = bounds.VISIBILITY_TIMEOUT.check(visibility_timeout)
        self.grace_period = bounds.GRACE_PERIOD.check(grace_period)
        self.max_crashes = bounds.MAX_CRASHES.check(max_crashes)
        self.unknown_wait = bounds.UNKNOWN_WAIT.check(unknown_wait)
        self.max_prefetch = bounds.MAX_PREFETCH.check(max_prefetch)
        self.prefetch_bytes = bounds.PREFETCH_BYTES.check(prefetch_bytes)
        self.middleware = as_chain(middleware)
        self._chains = {
            name: broker.middleware.joined(self.middleware, task.middleware) for name, task in self.tasks.items()
        }
        for task in self.tasks.values():
            check_batch(task, self.concurrency)
        self.burst = check_type("burst", burst, bool, "True or False")
        self._failure_level = check_level("log_failures", log_failures)
        self.state = State.NEW
        self._lifespan = None if lifespan is None else check_lifespan(lifespan)
        given = check_items("listeners", listeners, "a list of functions of one argument, an event")
        self._listeners = tuple(
            check_callable("a listener", one, "a function of one argument, an event") for one in given
        )
        self._random = random.Random(check_type("seed", seed, int | None, "an integer"))
        self._stop = anyio.Event()
        self._stop_now = anyio.Event()
        self._consumer: Consumer | None = None
        self._threads: Threads | None = None
        self._processes = Processes(
            processes, tasks=self.tasks.values(), max_tasks=max_tasks_per_process, max_rss=max_rss,
            initializer=initializer,
        )  # fmt: skip
        self._owner: Owner | None = None  # where it runs
        self._start_trouble: str | None = None  # what keeps it from the server before it has a consumer

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.state} tasks={len(self.tasks)} concurrency={self.concurrency}>"

    @property
    def health(self) -> Health:
        """The state of the worker, and the error that keeps it from the server, if any."""
        consumer, threads = self._consumer, self._threads
        if consumer is None or threads is None:
            return Health(self.state, self._start_trouble, 0, 0, 0)
        error, buffer = consumer.outage.error, consumer.buffer
        asked_in_vain = consumer.store.refusals.named()
        refused = (*consumer.settler.set_aside.named(), *consumer.outage.refused, *asked_in_vain)
        own = refused[0] if refused else threads.trouble or self._processes.trouble
        trouble = own if error is None else str(error)
        ready = self.state is State.RUNNING and error is None and consumer.outage.silence < self.visibility_timeout
        return Health(self.state, trouble, buffer.running, buffer.waiting, consumer.settler.superseded, refused, ready)

    @property
    def runs(self) -> int:
        """How many runs have ended so far, well or not: in the event loop, in threads and in processes.

        Each task of a batch counts, and each attempt. What never began does not: a task that is held back, expired, or
        unknown. May be read in any thread.
        """
        return 0 if self._consumer is None else self._consumer.buffer.runs

    def stop(self) -> None:
        """Drain: stop reading, release deliveries that have not started, finish the running ones, end.

        A second call cancels and releases the running ones too, and ends at once. May be called in any thread, and in
        a signal handler. Raises WrongLoopError in the child of a fork.
        """
        owner = self._owner
        if owner is None:  # it has not started
            self._set_stop()
            return
        if owner.was_forked:
            raise owner.error()
        if owner.is_here:
            self._set_stop()
            owner.call_soon(_nothing)  # in a signal handler: the loop may wait for its selector
        else:
            owner.call_soon(self._set_stop)

    def _set_stop(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    def _stop_at_once(self) -> None:
        self._stop.set()
        self._stop_now.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run tasks until cancelled, drained by `stop`, or, with `burst`, until the queue is empty.

        In a task group or nursery: `await group.start(worker.run)` returns once the worker reads.
        Raises BrokerError at the start if waiting would not help: the server could never be reached, refuses the login
        or a right, or has a key of another type. It waits for a server that is full, read-only or still loading.
        """
        if self.state is not State.NEW:
            raise ConfigurationError(f"{self!r} has run already: make another worker")
        self._owner = self.broker.client.owner
        self._owner.check()
        self.state = State.STARTING
        failed: BaseException | None = LifespanEndedError()
        try:
            async with check_manager(self._lifespan(self)) if self._lifespan else nullcontext() as state:
                try:
                    await self._work(state, task_status)
                    failed = None
                except BrokerError as error:  # a task group of the lifespan would wrap it
                    failed = error
                except BaseExceptionGroup as group:
                    failed = single_exception(group)
                    if failed is group:
                        raise
        finally:
            self.state = State.STOPPED
        if failed is not None:
            raise failed

    async def _work(self, state: Any, task_status: anyio.abc.TaskStatus[None]) -> None:
        store = self._store()
        await create_groups(store, self._note_start_trouble)
        threads, reporter = Threads(self.concurrency), ProgressReporter(store)
        consumer, runners = self._assemble(store, threads, reporter, state)
        self._consumer, self._threads = consumer, threads
        on_exhausted = OnExhausted(self.tasks.values(), store, keys=self.broker.keys, tiers=self.broker.tiers)
        if on_exhausted:
            consumer.settler.dead_letters.effects = on_exhausted
        leases = LeaseKeeper(consumer, on_cancel=runners.cancel, uniform=self._random)
        scheduler = Scheduler(consumer, self._declared)
        consumer.buffer.capacity = self._processes.capacity(self.concurrency, consumer.bar_tiers, leases.sweep_soon)
        promoter = Promoter(
            consumer, on_released=leases.sweep_soon, on_cancel=runners.cancel, on_schedules=scheduler.changed
        )
        watchdog = Watchdog(self.name, self.tasks.values(), visibility_timeout=self.visibility_timeout)
        await register(leases)
        if consumer.is_registered:
            await check_reading(store, self.name)
        crashed, leaving = False, Leaving(self._stop_now)
        try:
            async with cancellation_stops(self._stop_at_once), Loops() as loops:
                for loop in (
                    *consumer.loops, leases.renew_forever, leases.sweep_forever, promoter.promote_forever,
                    promoter.listen_forever, watchdog.watch_forever, scheduler.tick_forever, threads.watch_forever,
                    reporter.report_forever, runners.timeouts.watch_forever, runners.overdue.watch_forever,
                    self._processes.serve, lambda: prepare_later(self.tasks.values()),
                ):  # fmt: skip
                    loops.start_soon(loop)
                if on_exhausted:
                    loops.start_soon(on_exhausted.serve)
                for resident in self._residents():
                    loops.start_soon(live_forever, resident, store)
                for batches in runners.batches:
                    await loops.start(batches.serve)
                async with running(runners, self.concurrency):
                    self.state = State.RUNNING
                    task_status.started()
                    await self._until_stopped(store, consumer)
                    self.state = State.DRAINING
                    leases.sweeping = False
                    await self._drain(consumer, runners, leaving)
                await leaving.finish(consumer, on_exhausted)
                loops.end()
        except BaseException as error:
            crashed = not consumer.fatal and (is_own_error(error) or by_a_stranger(error))
            raise
        finally:
            await leaving.leave(consumer, crashed=crashed)

    def _store(self) -> Store:
        keys = Keys.of(
            self.broker.keys.namespace, self.broker.keys.group, self.tiers, also=self.broker.keys.streams
        )  # fmt: skip
        return Store(
            self.broker.client, keys, self.tiers, bound=lambda: self.broker.dead_letters,
            clock=self.broker.server_clock, max_payload=self.broker.max_payload, signing=self.broker.signing,
            role="worker",
        )  # fmt: skip

    def _note_start_trouble(self, error: BrokerError | None) -> None:
        self._start_trouble = None if error is None else str(error)

    def _assemble(
        self, store: Store, threads: Threads, reporter: ProgressReporter, state: Any
    ) -> tuple[Consumer, Runners]:
        slots, max_prefetch = self._processes.bound(self.concurrency, self.max_prefetch, tasks=len(self.tasks))
        buffer = PrefetchBuffer(
            [tier.weight for tier in self.tiers], slots=slots, max_prefetch=max_prefetch,
            suspect_after=min(_SUSPECT_AFTER, self.max_crashes - 1), suspect_wait=self.visibility_timeout,
            clock=self.broker.clock.elapsed, prefetch_bytes=self.prefetch_bytes,
        )  # fmt: skip
        listeners = (*self._listeners, *([log_done] if logs_done() else []))
        consumer = Consumer(
            store, buffer, name=self.name, visibility_timeout=self.visibility_timeout,
            on_ready=lambda: runners.wake(),  # noqa: PLW0108 - the pool is made below, from this consumer
            on_lost=lambda delivery: runners.end_run(delivery),  # noqa: PLW0108
            keep=lambda delivery: runners.keep(delivery),  # noqa: PLW0108
            max_crashes=self.max_crashes, listeners=listeners, uniform=self._random,
        )  # fmt: skip
        handlers = [
            Handler(task, self._chains[name], threads, self._processes, store, failure_level=self._failure_level)
            for name, task in self.tasks.items()
        ]
        runners = Runners(
            consumer, handlers, reporter=reporter, unknown_wait=self.unknown_wait, state=state, uniform=self._random,
            listening=bool(listeners),
        )  # fmt: skip
        return consumer, runners

    def _residents(self) -> list[Resident]:
        """Return the middleware that has a loop of its own, each once."""
        found = {id(resident): resident for chain in self._chains.values() for resident in chain.residents()}
        return list(found.values())

    async def _until_stopped(self, store: Store, consumer: Consumer) -> None:
        if not self.burst:
            await self._stop.wait()
            return
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when, self._stop, group.cancel_scope)  # the server may not answer
            await self._until_drained(store, consumer)
            group.cancel_scope.cancel()

    async def _until_drained(self, store: Store, consumer: Consumer) -> None:
        while True:
            await anyio.sleep(_BURST_CHECK_EVERY)
            aside = consumer.settler.set_aside
            if consumer.buffer.idle and not consumer.unsettled and not aside.trying:
                try:
                    if await store.drained(_BURST_HORIZON, left=aside.left_by_tier()):
                        return
                except BrokerError as error:
                    await consumer.recover("burst", error)
                else:
                    consumer.outage.over("burst")

    async def _drain(self, consumer: Consumer, runners: Runners, leaving: Leaving) -> None:
        """Release deliveries that have not started; wait for running ones, for the grace period at most."""
        for batches in runners.batches:
            batches.stop_waiting(for_good=True)
        await leaving.stop_reading(consumer)
        consumer.release(consumer.buffer.take_unstarted())
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when, self._stop_now, group.cancel_scope)
            with anyio.move_on_after(self.grace_period):
                await runners.wait_until_idle()
            group.cancel_scope.cancel()
        runners.log_cut_off("it is to stop at once" if self._stop_now.is_set() else "the grace period is over")


async def _cancel_when(asked: anyio.Event, scope: anyio.CancelScope) -> None:
    await asked.wait()
    scope.cancel()


def _nothing() -> None:
    """Wake an event loop."""


name_remedies(Worker, "worker")
