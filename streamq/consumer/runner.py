"""Runners: a fixed pool of loops, each of which takes a delivery, runs it, and says what became of it.

A run is a straight line: take, decode, call (middleware around the handler), decide, settle.
No task is spawned and no cancel scope entered per run: a run that must end (its time is over,
its lease was lost, it was cancelled) ends with its runner's own scope, and the runner opens the next.
Only a run that middleware, a thread or a batch has a part in has a scope for its timeout.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from math import inf
from typing import Any

import anyio
import anyio.lowlevel

from streamq.consumer.consumer import Consumer
from streamq.consumer.events import Started
from streamq.consumer.handler import Prepared, timed_out
from streamq.consumer.progress_reporter import Reporter
from streamq.consumer.timeouts import Slot, Timeouts
from streamq.errors import BrokerError, MessageError, UndecodableError
from streamq.handlers.context import queue, reporter, running
from streamq.queue.lease_commands import alone
from streamq.tasks.outcome import EXPIRED, Ack, DeadLetter, Outcome, Postpone, Reason, Skip, decide, failure_of
from streamq.wire.delivery import Delivery, Failure
from streamq.wire.message import dumps
from streamq.wire.next_step import encoded_result
from streamq.wire.side_effects import THEN

log = logging.getLogger("streamq")

STREAK = 16  # runs that one runner makes, at least, before others get their turn:
SLICE = 0.005  # once it has been at it for so many seconds
_UNKNOWN_PAUSE = 2.0  # seconds between two looks at a task that no one here knows
_PLAIN = frozenset((b"task", b"args", b"kwargs", b"id"))  # fields that are checked as they are used
_PRIORITISED = _PLAIN | {b"priority"}
_DONE = Ack()
_DONE_WITH_NONE = Ack(b'{"ok":null}')
_CANCELLED = dumps(
    {"error_type": "Cancelled", "error": "cancelled while it ran", "reason": "cancelled", "traceback": ""}
)


class Runners:
    """The pool: as many runners as may run at once.

    `reporter` is told of the end of runs that report progress. `unknown_wait` (s) is how long a task
    that no worker knows is kept for one that does;
    `state` is what handlers find as the delivery's `state`.
    """

    def __init__(
        self, consumer: Consumer, tasks: Iterable[Prepared], *, reporter: Reporter, unknown_wait: float, state: Any,
        uniform: random.Random, listening: bool,
    ) -> None:  # fmt: skip
        self._consumer = consumer
        self._settler = consumer.settler
        self._intake = consumer.intake
        self._elapsed = consumer.store.clock.elapsed
        self._tasks = {prepared.task.name.encode(): prepared for prepared in tasks}
        self._group = consumer.store.keys.group.encode()
        self.batches = [one.batches for one in self._tasks.values() if one.batches is not None]
        self._unknown_wait = unknown_wait
        self._state = state
        self._random = uniform
        self._reporter = reporter
        self._listening = listening
        self._idle: list[anyio.Event] = []
        self._woken = 0  # of those that were idle: not yet at work
        self._running: dict[Delivery, Slot] = {}
        limits = [one.limit for one in self._tasks.values() if one.limit is not None]
        self.timeouts = Timeouts(consumer.store.clock, self._running.values, shortest=min(limits, default=inf))
        self._warned: set[bytes] = set()
        self._ended: anyio.Event | None = None  # while somebody waits for the last run to end

    def __repr__(self) -> str:
        return f"<Runners {len(self._running)} running, {len(self._idle)} idle>"

    # --- from outside ------------------------------------------------------------------------

    def wake(self) -> None:
        """Something can start: as many runners are on their way as there are runs, one at least, and each wakes others.

        Where handlers do not wait, so that no run is under way, one runner thus hands on to the next; where they do,
        twice as many wake each time.
        """
        if self._idle and self._intake.startable:
            while self._idle and (not self._woken or self._woken < self._intake.running):
                self._woken += 1
                self._idle.pop().set()
        elif self.batches and self._intake.isolating:  # a suspect waits for what runs, so that must not wait for more
            for batches in self.batches:
                batches.hurry()

    async def all_ended(self) -> None:
        """Wait until nothing runs."""
        while self._intake.running:
            self._ended = anyio.Event()
            await self._ended.wait()

    def give_up(self, delivery: Delivery, reason: str = "lost") -> None:
        """End the run of a delivery: it was lost, or it was cancelled."""
        slot = self._running.get(delivery)
        if slot is not None:
            slot.give_up(reason)

    def cancel(self, entry_id: bytes) -> None:
        """End the run of the delivery with this entry id, if it is here, as its sender wishes."""
        for by_id in self._intake.held:
            delivery = by_id.get(entry_id)
            if delivery is None:
                continue
            if self._intake.drop(delivery):
                self._settle_cancelled(delivery)
            else:
                self.give_up(delivery, "cancelled")

    # --- the loop ----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Be one runner, until cancelled."""
        queue.set(self._consumer.store)
        reporter.set(self._reporter)
        while True:
            with anyio.CancelScope() as scope:
                await self._runs(Slot(scope))

    async def _runs(self, slot: Slot) -> None:
        intake, running_now = self._intake, self._running
        streak, since = 0, self._elapsed()
        while True:
            delivery = intake.take()
            if delivery is None:
                self._consumer.kick()  # there is room; and if all others wait as well, what was settled may go
                await self._park()
                streak, since = 0, self._elapsed()
                continue
            if self._idle:
                self.wake()
            running_now[delivery] = slot
            try:
                await self._run(delivery, slot)
                if delivery.alone:
                    # Nothing else may start, and take the worker down, before this is settled: it
                    # would be convicted of that.
                    await self._consumer.flushed()
            finally:
                del running_now[delivery]
                intake.done(delivery)
                if self._ended is not None and not intake.running:
                    self._ended.set()
            if slot.spent:
                return
            streak += 1
            if intake.passed:  # let the loop of turns have the server bring the next, while the rest runs
                self._consumer.kick()
                await anyio.lowlevel.checkpoint()
            elif streak >= STREAK and intake.last_take >= since + SLICE:
                await (self._park() if self._woken else anyio.lowlevel.checkpoint())
                streak, since = 0, self._elapsed()

    async def _park(self) -> None:
        """Wait to be woken."""
        event = anyio.Event()
        self._idle.append(event)
        try:
            await event.wait()
        finally:
            if event.is_set():
                self._woken -= 1
            else:
                self._idle.remove(event)

    async def _run(self, delivery: Delivery, slot: Slot) -> None:
        """Run one delivery: decode, call, decide, settle."""
        fields = delivery.fields
        prepared = self._tasks.get(fields.get(b"task", b""))
        if prepared is not None and (
            fields.keys() <= _PLAIN or (fields.keys() <= _PRIORITISED and _is_small(fields[b"priority"]))
        ):
            delivery.plain = True
        elif (prepared := self._admitted(delivery, prepared)) is None:
            return
        if delivery.alone and not await self._alone(delivery):
            return
        delivery.state = self._state
        if self._listening:
            self._consumer.emit(Started(delivery))
        started = self._elapsed()
        try:
            args, kwargs = delivery.arguments()
            if prepared.limit is not None and delivery.plain and not delivery.alone:
                self.timeouts.begin(slot, started + prepared.limit)
            token = running.set(delivery)
            try:
                result = await prepared.call(delivery, args, kwargs)
            finally:
                running.reset(token)
                if slot.due != inf:
                    slot.over()
                if self._reporter.open:  # some run reports progress
                    await self._reporter.close(delivery)
        except BaseException as error:  # noqa: BLE001 - `_failed` raises what is no failure
            outcome = self._failed(delivery, prepared, slot, error, started)
        else:
            outcome = _success(prepared, delivery, result, self._consumer.store.max_payload)
        self._settle(delivery, outcome, prepared, self._elapsed() - started)

    def _settle(self, delivery: Delivery, outcome: Outcome, prepared: Prepared | None, duration: float) -> None:
        try:
            self._settler.settle(delivery, outcome, duration=duration, keep=_keep(delivery, prepared))
        except Exception as error:  # a message that cannot be settled as it wants must not cost the worker
            log.exception("%r could not be settled as %s", delivery, type(outcome).__name__)
            self._settler.settle(delivery, DeadLetter(Reason.UNDECODABLE, failure_of(error)))

    # --- before the run ------------------------------------------------------------------------

    def _admitted(self, delivery: Delivery, prepared: Prepared | None) -> Prepared | None:
        """Return the task of a delivery that may start; say what becomes of any other."""
        if (early := self._refused(delivery)) is None:
            if prepared is not None:
                return prepared
            early = self._unknown(delivery)
        self._settle(delivery, early, prepared, 0.0)
        return None

    def _refused(self, delivery: Delivery) -> Outcome | None:
        """Return what becomes of a delivery that must not start, None for all others."""
        if delivery.fields.get(b"group", self._group) != self._group:
            return Skip()
        try:
            delivery.check()
        except UndecodableError as error:
            return DeadLetter(Reason.UNDECODABLE, failure_of(error))
        if delivery.expires is not None and delivery.expires < self._consumer.now():
            return DeadLetter(Reason.EXPIRED, EXPIRED)
        return None

    def _unknown(self, delivery: Delivery) -> Outcome:
        """Return a task that is not known here to the others, until it has waited for long enough."""
        since, now = delivery.unknown_since, self._consumer.now()
        waited = 0.0 if since is None else now - since
        name = delivery.task
        if waited >= self._unknown_wait:
            known = ", ".join(sorted(task.decode() for task in self._tasks))
            text = f"no worker knew the task {name!r} for {waited:.0f} s; this one knows {known}"
            return DeadLetter(Reason.UNKNOWN_TASK, Failure("UnknownTask", text))
        if name.encode() not in self._warned and len(self._warned) < 1000:
            self._warned.add(name.encode())
            log.warning("task %r is not known here; given back for %g s at most", name, self._unknown_wait)
        pause = min(_UNKNOWN_PAUSE, max(0.05, self._unknown_wait / 5))
        return Postpone(pause, "unknown here", unknown=True)

    async def _alone(self, delivery: Delivery) -> bool:
        """Note that a suspect starts with nothing beside it; False if it is not ours any more."""
        # What is known of others, that one of them is dead say, must not be lost with this worker.
        await self._consumer.flushed()
        try:
            held = await alone(self._consumer.store, self._consumer.name, delivery)
        except BrokerError as error:
            log.warning("%r runs alone, but that could not be noted: %s", delivery, error)
            return True
        if not held:
            self._intake.forget(delivery.tier, delivery.entry_id)
        return held

    # --- after the run ---------------------------------------------------------------------------

    def _decide(self, delivery: Delivery, prepared: Prepared, error: BaseException) -> Outcome:
        outcome = decide(
            prepared.task.policy, attempt=delivery.attempt, retries=delivery.retries, error=error, random=self._random
        )
        log.info("task %s %s: %r: %s", delivery.task, delivery.task_id, error, type(outcome).__name__)
        return outcome

    def _is_failure(self, error: BaseException) -> bool:
        """Is this the handler's own, and not somebody ending the run or the program?"""
        if isinstance(error, Exception):
            return True
        if isinstance(error, KeyboardInterrupt | GeneratorExit):
            return False
        if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt):
            return False
        # A cancellation that no scope around us asked for was raised by the handler itself.
        return anyio.current_effective_deadline() != float("-inf")

    def _failed(
        self, delivery: Delivery, prepared: Prepared, slot: Slot, error: BaseException, started: float
    ) -> Outcome:
        """Return what becomes of a run that raised.

        Raises what ended it before its time. What the handler raised as it was cancelled (a nursery of trio's puts
        both into one group) would end the worker, and is left out.
        """
        if self._is_failure(error):
            return self._decide(delivery, prepared, error)
        cancelled, rest = _cancelled_and_rest(error)
        if cancelled is None or not (rest is None or isinstance(rest, Exception)):
            # It ends the worker. Its lease is left to end, so that a loop of these is seen as one.
            self._consumer.fatal.add(delivery.entry_id)
            cancelled = error
        elif slot.spent and not slot.reason and prepared.limit is not None:
            failure = rest or timed_out(prepared.task.name, prepared.limit, cancelled)
            self._settle(delivery, self._decide(delivery, prepared, failure), prepared, self._elapsed() - started)
        elif rest is not None:
            log.warning("task %s %s was cancelled, and raised %r", delivery.task, delivery.task_id, rest)
        if slot.reason == "lost":
            self._consumer.settler.count_superseded(delivery)
        elif slot.reason == "cancelled":
            self._settle_cancelled(delivery)
        raise cancelled

    def _settle_cancelled(self, delivery: Delivery) -> None:
        self._settle(delivery, Ack(_CANCELLED, cancelled=True), self._tasks.get(delivery.fields.get(b"task", b"")), 0.0)

    def keep(self, delivery: Delivery) -> float | None:
        """Return for how long (s) the result of a delivery is wanted, None for not at all."""
        return _keep(delivery, self._tasks.get(delivery.fields.get(b"task", b"")))


def _cancelled_and_rest(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Split what a cancelled run raised into its cancellation and all else."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)
    return (error, None) if isinstance(error, cancelled) else (None, error)


def _is_small(priority: bytes) -> bool:
    """Is this a number beyond doubt? All others are looked at more closely."""
    return priority.isdigit() and len(priority) < 10


def _keep(delivery: Delivery, prepared: Prepared | None) -> float | None:
    """Return for how long (s) the result is wanted, None for not at all: nobody waits for what is no message."""
    keep = prepared.result_ttl if prepared is not None else None
    if delivery.plain:
        return keep
    try:
        wanted = delivery.result_ttl
    except UndecodableError:
        return None
    return keep if wanted is None else wanted or None


def _success(prepared: Prepared, delivery: Delivery, result: Any, limit: int) -> Outcome:
    """Return the outcome of a run that returned; it is dead if the next step cannot be given the result."""
    if delivery.plain:
        if prepared.result_ttl is None:
            return _DONE
        return _DONE_WITH_NONE if result is None else Ack(_encoded(prepared, result))
    if THEN in delivery.fields:
        try:
            stages = delivery.then or []
            passed = encoded_result(stages, prepared.task.name, result, default=prepared.default, limit=limit)
        except MessageError as error:
            log.error("task %s: %s", prepared.task.name, error)  # noqa: TRY400
            return DeadLetter(Reason.REJECTED, failure_of(error))
        if passed:
            return Ack(b'{"ok":' + passed + b"}")
    return Ack(_encoded(prepared, result)) if _keep(delivery, prepared) else _DONE


def _encoded(prepared: Prepared, result: Any) -> bytes:
    """Return a result as waiters get it; one that is not JSON becomes an error for them."""
    try:
        return dumps({"ok": result}, prepared.default)
    except (TypeError, RecursionError) as error:
        log.error("task %s: its result cannot be kept: %s", prepared.task.name, error)  # noqa: TRY400
        told = {
            "error_type": "EncodingError", "error": f"the task succeeded, its result is not JSON: {error}",
            "reason": "result", "traceback": "",
        }  # fmt: skip
        return dumps(told)
