"""Runners: a fixed pool of loops. Each takes a delivery, runs it, and settles it.

A run is a straight line: take, decode, call (middleware around the handler), decide, settle. No anyio task is spawned
and no cancel scope entered per run. To end a run early (timeout, lost lease, cancellation) the runner's own scope is
cancelled, and the runner opens a new one. Only a run with middleware, a thread or a batch has a scope for its timeout.
A runner whose context a run has changed, or in which it left a scope open, ends, and another one takes its place.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterable
from contextvars import copy_context
from math import inf
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from streamq.client.owner import NOWHERE, end_child
from streamq.consumer.admission import Admission
from streamq.consumer.async_library import AsyncLibrary
from streamq.consumer.cancellation import (
    WHILE_CANCELLED,
    asked_by_nobody,
    belongs_to_delivery,
    cancelled_and_rest,
    ends_nothing,
    is_cut_off,
    is_failure,
    log_cancelled_by_others,
    log_cut_off,
    note_fatal,
    without_cancellation,
)
from streamq.consumer.consumer import Consumer
from streamq.consumer.events import Started
from streamq.consumer.handler import Handler
from streamq.consumer.left_behind import HOOKS, MISNESTED, restore_hooks, take_requests
from streamq.consumer.overdue import Overdue
from streamq.consumer.progress_reporter import ProgressReporter
from streamq.consumer.run_context import RunContext
from streamq.consumer.run_result import DONE, after_failure, after_timeout, kept_for, success
from streamq.consumer.timeouts import Slot, Timeouts
from streamq.consumer.unknown_tasks import UnknownTasks
from streamq.consumer.unrun_result import PLAIN, refuse_unrun
from streamq.consumer.warning_filters import filters
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.errors.readable import readable
from streamq.handlers.context import delivery_var, reporter_var, store_var
from streamq.queue.lease_commands import mark_isolated
from streamq.tasks.outcome import Outcome
from streamq.wire.delivery import BASIC_FIELDS, Delivery, has_small_priority
from streamq.wire.names import IS_PLAIN_ID

log = SafeLog("streamq")

RUNS_PER_TURN = 16  # runs that one runner makes, at least, before it lets others run:
TURN = 0.005  # and seconds that it runs, at least


class Runners:
    """The pool: as many runners as may run at once.

    `reporter` writes the progress of runs. `unknown_wait` (s) is how long a task that no worker knows waits for a
    worker that does. `state` is the `state` of every delivery. `listening`: listeners want `Started` events.
    """

    def __init__(
        self, consumer: Consumer, tasks: Iterable[Handler], *, reporter: ProgressReporter, unknown_wait: float,
        state: Any, uniform: random.Random, listening: bool,
    ) -> None:  # fmt: skip
        self._consumer = consumer
        self._settler = consumer.settler
        self._buffer = consumer.buffer
        self._elapsed = consumer.store.clock.elapsed
        self._handlers = {handler.task.name.encode(): handler for handler in tasks}
        self._settler.counting.known = self._handlers
        self._admission = Admission(consumer.store)
        self.batches = [one.batches for one in self._handlers.values() if one.batches is not None]
        self._signer = consumer.store.signer
        self._unknown = UnknownTasks(self._handlers, unknown_wait)
        self._owner = consumer.store.client.owner
        self._state = state
        self._random = uniform
        self._library = AsyncLibrary()
        self._reporter, self._listening = reporter, listening
        self._idle: list[anyio.Event] = []
        self._woken = 0  # how many idle runners were woken and do not run yet
        self._running: dict[Delivery, Slot] = {}
        limits = [one.runner_timeout for one in self._handlers.values() if one.runner_timeout is not None]
        self.timeouts = Timeouts(consumer.store.clock, self._running.values, shortest=min(limits, default=inf))
        self.overdue = Overdue(self._running)
        self._ended: anyio.Event | None = None  # while `wait_until_idle` waits for the last run to end
        self._start_runner: Callable[[], object]
        self._copy_decimal: Callable[[], object] | None = None
        self._said_at = -inf  # when it was last said that others have cancelled a runner

    def __repr__(self) -> str:
        return f"<Runners {len(self._running)} running, {len(self._idle)} idle>"

    # --- from outside ------------------------------------------------------------------------

    def wake(self) -> None:
        """Wake idle runners if a delivery can start: as many as there are runs under way, one at least.

        Each woken runner wakes others. So where handlers do not wait, and no run is under way, one runner wakes the
        next. Where they wait, the number that wakes doubles each time.
        """
        if self._idle and self._buffer.startable:
            while self._idle and (not self._woken or self._woken < self._buffer.running):
                self._woken += 1
                self._idle.pop().set()
        elif self.batches and self._buffer.isolating:
            # A suspect waits for the other runs, so these must not wait for more messages.
            for batches in self.batches:
                batches.stop_waiting()

    async def wait_until_idle(self) -> None:
        """Wait until nothing runs."""
        while self._buffer.running:
            self._ended = anyio.Event()
            await self._ended.wait()

    def log_cut_off(self, why: str) -> None:
        """Say which runs are still under way as the worker ends: they will be delivered again."""
        log_cut_off(self._running, why)

    def end(self) -> None:
        """Note that the worker ends: what is cut off is released as soon as its own run has ended."""
        self.overdue.worker_ends = True
        for batches in self.batches:
            batches.end()

    def end_run(self, delivery: Delivery, reason: str = "lost") -> None:
        """End the run of a delivery, which was lost or cancelled."""
        slot = self._running.get(delivery)
        if slot is not None:
            slot.end_run(reason)

    def cancel(self, tier: int, entry_id: bytes) -> None:
        """Cancel the delivery with this entry id, if it is here; its run ends."""
        if (delivery := self._buffer.held[tier].get(entry_id)) is None:
            return
        if self._buffer.remove_unstarted(delivery):
            self._settle_cancelled(delivery)
        else:
            self.end_run(delivery, "cancelled")

    # --- the loop ----------------------------------------------------------------------------

    def start(self, group: anyio.abc.TaskGroup, runners: int) -> None:
        """Start the runners in a task group. Each, and each that replaces one, begins in the context of this call."""
        context = RunContext()
        filters.adopt()
        self._copy_decimal = context.copy_decimal
        self._start_runner = lambda: context.run(group.start_soon, self._serve)
        for _ in range(runners):
            self._start_runner()

    async def _serve(self) -> None:
        """Run deliveries, one after the other, until cancelled, or until a run left something behind in this task."""
        store_var.set(self._consumer.store)
        reporter_var.set(self._reporter)
        slot = None
        try:
            while slot is None or slot.as_before():
                with anyio.CancelScope() as scope:
                    slot = Slot(scope)
                    with slot.watched():
                        await self._run_deliveries(slot)
                if slot is not None and slot.cut_off is not None:  # nobody knows why
                    self._consumer.convict(slot.cut_off, RuntimeError("the run was cancelled, and not by the worker"))
            await take_requests(slot)
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -inf:  # the worker ends
                raise
            self._said_at = log_cancelled_by_others(self._elapsed(), self._said_at)
        self._start_runner()

    async def _run_deliveries(self, slot: Slot) -> None:  # noqa: C901, PLR0912 - a call per run is dear
        buffer, running_now = self._buffer, self._running
        runs, since = 0, self._elapsed()
        while True:
            delivery = buffer.take()
            if delivery is None:
                self._consumer.wake_up()  # there is room; and if all runners wait, settlements can be sent
                delivery_var.set(None)
                await self._wait_for_work()
                if not buffer.running and (warnings.filters is not filters.list or warnings.filters != filters.known):
                    filters.adopt()
                runs, since = 0, self._elapsed()
                continue
            if self._idle:
                self.wake()
            if self._owner.thread == NOWHERE:  # the child of a fork: its handler has awaited
                end_child()
            running_now[delivery] = slot
            try:
                await self._run(delivery, slot)
                if delivery.isolated:
                    # Nothing else may start before this is settled: a crash of the worker would count against it.
                    await self._consumer.wait_until_settled()
            except BaseException as error:  # noqa: BLE001 - `_contain` raises what ends the run from outside
                self._contain(delivery, slot, error)
            finally:
                del running_now[delivery]
                buffer.run_ended(delivery)
                if self._ended is not None and not buffer.running:
                    self._ended.set()
            try:
                if warnings.filters != filters.known:
                    filters.restore(delivery.task)
                if slot.spent or slot.left_open or slot.requests() or slot.task._must_cancel:  # noqa: SLF001 - no call
                    return
                if slot.context is not None and copy_context() != slot.context:
                    return
                slot.context = None
            except Exception:  # noqa: BLE001 - the value of a variable cannot be compared: it is another one
                filters.put_back()
                return
            runs += 1
            if buffer.read_due:  # let the loop of round trips read more while the rest runs
                self._consumer.wake_up()
                await anyio.lowlevel.checkpoint()
            elif runs >= RUNS_PER_TURN and buffer.last_start >= since + TURN:
                if sys.get_asyncgen_hooks() != HOOKS:
                    restore_hooks()
                await (self._wait_for_work() if self._woken else anyio.lowlevel.checkpoint())
                runs, since = 0, self._elapsed()

    async def _wait_for_work(self) -> None:
        """Wait to be woken."""
        if sys.get_asyncgen_hooks() != HOOKS:
            restore_hooks()
        event = anyio.Event()
        self._idle.append(event)
        try:
            await event.wait()
        finally:
            if event.is_set():
                self._woken -= 1
            else:
                self._idle.remove(event)

    async def _run(self, delivery: Delivery, slot: Slot) -> None:  # noqa: C901, PLR0912 - as `_run_deliveries`
        """Run one delivery: decode, call, decide, settle."""
        handler = self._handlers.get((fields := delivery.fields).get(b"task", b""))
        if (
            handler is not None and self._signer is None
            and (fields.keys() <= BASIC_FIELDS or has_small_priority(fields))
            and (not (given := fields.get(b"id")) or (given.isalnum() and len(given) < 200) or IS_PLAIN_ID(given))
        ):  # fmt: skip
            delivery.only_basic_fields = True
        elif (handler := self._admit(delivery, handler)) is None:
            return
        if delivery.isolated and not await self._mark_isolated(delivery):
            return
        delivery.state = self._state
        delivery_var.set(delivery)
        if self._copy_decimal is not None:
            self._copy_decimal()
        slot.context = copy_context()
        if self._listening:
            self._consumer.listeners.emit(Started(delivery))
        started = self._elapsed()
        try:
            args, kwargs = delivery.arguments()
            if handler.runner_timeout is not None and delivery.only_basic_fields and not delivery.isolated:
                self.timeouts.begin(slot, started + handler.runner_timeout)
            try:
                result = await handler.call(delivery, args, kwargs)
                if type(result) not in PLAIN:
                    refuse_unrun(delivery.task, result)
            finally:
                if self._owner.thread == NOWHERE:  # the handler forked, and this is the child
                    end_child()
                if (library := self._library).thread.name != library.name:
                    library.put_back(delivery.task)
                if slot.due != inf:
                    slot.over()
                self._buffer.runs += delivery.began
                if self._reporter.open:  # some run reports progress
                    await self._reporter.close(delivery)
            if slot.inner or slot.abandoned:
                await slot.raise_left_open(delivery.task)
        except BaseException as raised:  # noqa: BLE001 - `_failed` raises what is no failure
            outcome = await self._failed(delivery, handler, slot, readable(raised), started)
        else:
            if delivery.only_basic_fields and handler.result_ttl is None:  # most runs; the calls below are dear
                self._settler.settle(delivery, DONE, duration=self._elapsed() - started)
                return
            outcome = success(handler, delivery, result, self._consumer.store.max_payload)
        self._settle(delivery, outcome, handler, self._elapsed() - started)
        del outcome  # it may have the exception, and that has this frame

    def _settle(self, delivery: Delivery, outcome: Outcome, handler: Handler | None, duration: float) -> None:
        self._settler.settle(delivery, outcome, duration=duration, keep=kept_for(delivery, handler))

    def _contain(self, delivery: Delivery, slot: Slot, error: BaseException) -> None:
        """Take what came out of a run although its handler did not raise it: a mistake of ours belongs to its delivery.

        Raises what ends the run, or the worker, from outside. If that is no cancellation, the delivery is not released:
        its lease ends, and a crash loop is found.
        """
        error = readable(error)
        if belongs_to_delivery(error) or asked_by_nobody(error, slot.requests()):
            self._consumer.convict(delivery, error)
            return
        slot.cut_off = None if slot.spent else delivery
        if cancelled_and_rest(error)[0] is None:
            note_fatal(self._consumer.fatal, delivery, error)
        elif self.overdue.releases(delivery, slot) and delivery.entry_id not in self._consumer.fatal:
            self._consumer.release([delivery])
        try:
            raise error
        finally:
            del error

    def _admit(self, delivery: Delivery, handler: Handler | None) -> Handler | None:
        """Return the handler of a delivery that may start; settle any other."""
        if (early := self._admission.early_outcome(delivery)) is None:
            if handler is not None:
                return handler
            early = self._unknown.outcome(delivery, self._consumer.now())
        self._settle(delivery, early, handler, 0.0)
        return None

    async def _mark_isolated(self, delivery: Delivery) -> bool:
        """Note on the server that a suspect starts in isolation; False if this consumer holds it no longer."""
        # Outcomes of other deliveries, a dead letter say, must not be lost if this worker crashes.
        await self._consumer.wait_until_settled()
        try:
            held = await mark_isolated(self._consumer.store, self._consumer.name, delivery)
        except BrokerError as error:
            log.warning("%r runs in isolation, which is not noted: %s", delivery, error, event="refused", of=delivery)
            return True
        if not held:
            self._buffer.forget(delivery.tier, delivery.entry_id)
        return held

    # --- after the run ---------------------------------------------------------------------------

    async def _failed(
        self, delivery: Delivery, handler: Handler, slot: Slot, error: BaseException, started: float
    ) -> Outcome:
        """Return the outcome of a run that raised.

        Raises the exception that ended the run from outside. What the handler raised while it was cancelled is left
        out, or it would end the worker (a trio nursery puts both into one group).
        """
        if slot.inner or slot.abandoned or isinstance(error, MISNESTED):
            error = await slot.close(delivery.task, error)
        slot.spent |= slot.scope.cancel_called  # also if what it left open did not end in time
        if is_failure(error):
            if not slot.spent and is_cut_off(error):
                log.warning(WHILE_CANCELLED, delivery.task, delivery.task_id, error, event="cut_off", of=delivery)
                await anyio.lowlevel.checkpoint()  # raises the cancellation: the worker ends, and releases the delivery
            if slot.reason == "cancelled":
                log.warning(WHILE_CANCELLED, delivery.task, delivery.task_id, error, event="cut_off", of=delivery)
                return self._settler.dead_letters.of_cancelled(delivery)
            return after_failure(handler, delivery, without_cancellation(error), self._random)
        cancelled, rest = cancelled_and_rest(error)
        if cancelled is None or not (rest is None or ends_nothing(rest)):
            note_fatal(self._consumer.fatal, delivery, error)
            cancelled = error
        elif slot.spent and not slot.reason and handler.runner_timeout is not None:
            outcome = after_timeout(handler, delivery, cancelled, rest, self._random)
            self._settle(delivery, outcome, handler, self._elapsed() - started)
            del outcome
        elif rest is not None:
            log.warning(WHILE_CANCELLED, delivery.task, delivery.task_id, rest, event="cut_off", of=delivery)
        if slot.reason == "lost":
            self._consumer.settler.count_superseded(delivery)
        elif slot.reason == "cancelled":
            self._settle_cancelled(delivery)
        try:
            raise cancelled
        finally:  # its traceback has this frame, which must not have it
            del cancelled, rest, error

    def _settle_cancelled(self, delivery: Delivery) -> None:
        self._settler.settle(delivery, self._settler.dead_letters.of_cancelled(delivery), keep=self.keep(delivery))

    def keep(self, delivery: Delivery) -> float | None:
        """Return how long (s) the result of a delivery is kept, None for not at all."""
        return kept_for(delivery, self._handlers.get(delivery.fields.get(b"task", b"")))
