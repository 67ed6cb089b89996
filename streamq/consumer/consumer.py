"""The consumer: reads deliveries and settles them, in as few round trips as possible.

One loop, `round_trips`, settles and reads. Each round trip carries all outcomes since the last one, and reads as many
entries as there is room for. When no tier has entries, a second loop, `blocking_reads`, blocks on a connection of its
own. Policy is elsewhere: `PrefetchBuffer` decides what to read and what to start, `tasks.outcome` decides what becomes
of a run, `Settler` builds the commands that settle. Knows no task and no handler.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel

from streamq.consumer.containment import outcome_of
from streamq.consumer.events import Listener, Listeners, Reclaimed
from streamq.consumer.outage import LONGEST_PAUSE, Outage
from streamq.consumer.prefetch_buffer import PrefetchBuffer
from streamq.consumer.reads import Reads
from streamq.consumer.round_trip import RoundTrip
from streamq.consumer.settling import Settler
from streamq.consumer.tier_refusals import TierRefusals
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, OutcomeUnknownError, WrongLoopError
from streamq.queue.lease_commands import mark_only_one, remove_consumers
from streamq.queue.store import Store
from streamq.tasks.outcome import DeadLetter, Outcome, Reason
from streamq.wire.dead_letter_fields import Failure
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

BLOCK = 5.0  # seconds of one blocking read, at most
_UNBLOCK_AGAIN = 0.05  # seconds until a read that is still blocked is unblocked once more


class Consumer:
    """One member of the consumer group.

    `visibility_timeout` (s) is how long a lease lasts after its last renewal. `on_ready` is called when deliveries can
    start, `on_lost` when the lease of a running delivery is lost. `keep` returns how long (s) the result of a delivery
    is kept, None for not at all.
    """

    def __init__(
        self, store: Store, buffer: PrefetchBuffer, *, name: str, visibility_timeout: float,
        on_ready: Callable[[], None], on_lost: Callable[[Delivery], None] = lambda _: None,
        max_crashes: int = 3, keep: Callable[[Delivery], float | None] = lambda _: None,
        listeners: tuple[Listener, ...] = (), uniform: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.buffer = buffer
        self._clock = store.clock
        self.name = name
        self.visibility_timeout = visibility_timeout
        self.max_crashes = max_crashes
        self.listeners = Listeners(listeners)
        self.fatal: set[bytes] = set()  # entries that took this worker down: not released, left as evidence of a crash
        self._random = uniform or random.Random()
        self.settler = Settler(
            store, buffer, name=name, visibility_timeout=visibility_timeout, listeners=self.listeners,
            on_first=self.wake_up, uniform=self._random,
        )  # fmt: skip
        self.outage = Outage(name, self.listeners, self._random, store.clock, store.keys)
        self.reads = Reads(
            store, buffer, name, refusals=self.tier_refusals("reading"), set_aside=self.settler.set_aside,
            on_ready=on_ready,
        )  # fmt: skip
        self.settler.set_aside.on_change = self.bar_tiers
        self._on_ready = on_ready
        self._on_lost = on_lost
        self.keep = keep
        self._woken = anyio.Event()
        self._round_trip_ended = anyio.Event()
        self._in_flight = False
        self._block = anyio.Event()
        self._blocked = False
        self._unblocked = anyio.Event()
        self._reading = True
        self.is_registered = False  # see `registered`
        self._ended = False
        self._left = False
        self._blocking = store.client.blocking()

    def __repr__(self) -> str:
        state = "in trouble" if self.outage else "reading" if self._reading else "draining"
        return f"<Consumer {self.name} {state} {self.buffer!r}>"

    # --- called by the other loops -----------------------------------------------------------------------

    def settle(self, delivery: Delivery, outcome: Outcome, *, duration: float = 0.0, keep: float | None = None) -> None:
        """Note the outcome of a delivery (see `Settler.settle`)."""
        self.settler.settle(delivery, outcome, duration=duration, keep=keep)

    def convict(self, delivery: Delivery, error: BaseException) -> None:
        """Settle a delivery with which streamq itself failed: a mistake of ours, or of code of the user's.

        Who waits for its result is told. If even that cannot be done it is left to its lease: another one takes it.
        """
        keep = None
        try:
            with suppress(Exception):  # the mistake may lie there
                keep = self.keep(delivery)
            self.settle(delivery, outcome_of(delivery, error), keep=keep)
        except Exception as second:
            log.exception("%r cannot be dead-lettered either: it is left to its lease", delivery,
                          event="internal_error", of=delivery, error=second)  # fmt: skip
            self.buffer.forget(delivery.tier, delivery.entry_id)

    def release(self, deliveries: list[Delivery]) -> None:
        """Release deliveries: any consumer may take them at once."""
        self.settler.release(deliveries)

    def wake_up(self) -> None:
        """Wake the loop of round trips: there may be something to settle or to read."""
        self._woken.set()

    def accept_reclaimed(self, deliveries: list[Delivery]) -> None:
        """Accept the deliveries that a sweep reclaimed; dead-letter those that are proven to crash their workers."""
        for delivery in deliveries:
            if self.listeners:
                self.listeners.emit(Reclaimed(delivery, delivery.owner_died))
            if delivery.crash_proven and len(delivery.crashed_workers) >= self.max_crashes:
                workers = ", ".join(delivery.crashed_workers)
                failure = Failure("CrashLoop", f"it took down {len(delivery.crashed_workers)} workers: {workers}")
                try:
                    self.settle(delivery, DeadLetter(Reason.CRASH_LOOP, failure), keep=self.keep(delivery))
                except Exception as error:  # noqa: BLE001 - a mistake of ours belongs to this delivery
                    self.convict(delivery, error)
                continue
            self.buffer.accept(delivery.tier, [delivery])
        if deliveries:
            self._on_ready()

    def lease_lost(self, tier: int, entry_id: bytes) -> None:
        """Drop a delivery whose lease this consumer has lost: it does not start, and a run of it ends."""
        if (delivery := self.buffer.held[tier].get(entry_id)) is None:
            return
        self.buffer.forget(tier, entry_id)
        if not self.buffer.remove_unstarted(delivery):
            self._on_lost(delivery)

    def registered(self) -> None:
        """Note that the server counts this consumer as alive, and that its clock is known: it may read."""
        if not self.is_registered:
            self.is_registered = True
            self.wake_up()

    def note_promoted(self) -> None:
        """Note that delayed messages were moved to the streams: there may be something to read."""
        if not self._blocked:
            self.buffer.backlog = [True] * len(self.buffer.backlog)
            self.wake_up()

    @property
    def unsettled(self) -> bool:
        """Does anything wait for the next round trip?"""
        return self.settler.pending

    def now(self) -> float:
        """Return the server's Unix time, as of the last comparison of clocks."""
        return self.settler.now()

    @property
    def loops(self) -> tuple[Callable[[], Coroutine[Any, Any, None]], ...]:
        """The loops of this consumer; each runs beside the others."""
        return self.round_trips, self.blocking_reads, self.retry_refused

    # --- round trips -----------------------------------------------------------------------------

    async def round_trips(self) -> None:
        """Settle and read until `finish` was called and everything is settled."""
        while not (self._ended and not self.unsettled):
            await self._wait_until_needed()
            self.release(self.buffer.take_stuck())
            if self.buffer.startable:
                self._on_ready()
            trip = self._next_round_trip()
            if trip.commands:
                await self._carry_out(trip)
            elif self._wants_to_block():
                self._blocked = True
                self._unblocked = anyio.Event()
                self._block.set()
            else:
                await anyio.lowlevel.checkpoint()

    async def _wait_until_needed(self) -> None:
        """Wait until there is something to settle or to read."""
        while not self._may_read() or not (self.buffer.plan_reads() or self._wants_to_block()):
            times = [self.settler.due_at(idle=self.buffer.idle), self.buffer.next_check()]
            if self.buffer.barred and self._may_read():
                times += self.reads.resume_at
            due = min((at for at in times if at is not None), default=None)
            if self._ended or (due is not None and due <= self._clock.elapsed()):
                return
            self._woken = anyio.Event()
            with anyio.move_on_after(None if due is None else due - self._clock.elapsed()) as timer:
                await self._woken.wait()
            if timer.cancelled_caught:  # a suspect that may start by now is no `next_check` any more
                return

    def _may_read(self) -> bool:
        return self._reading and self.is_registered and not self._blocked

    def _wants_to_block(self) -> bool:
        if self.buffer.barred:
            return self._may_read() and self.buffer.nothing_to_read() and self.buffer.room() > 0
        return self._may_read() and not any(self.buffer.backlog) and self.buffer.room() > 0

    def _next_round_trip(self) -> RoundTrip:
        trip = RoundTrip()
        self.settler.load(trip, all_counters=self._ended)
        if self._may_read():
            if self.buffer.barred:
                self.reads.bar()
            for count, tiers in self.buffer.plan_reads().items():
                self.buffer.read_sent()
                if self.reads.alone:
                    self.reads.load_apart(trip, tiers, count)
                    continue
                command = self.store.read_commands.new_entries(self.name, tiers, count)
                trip.add(command, self.reads.replied, (tiers, count))
        return trip

    async def _carry_out(self, trip: RoundTrip) -> None:
        self._in_flight = True
        try:
            replies = await self.store.attempt(trip.commands)
        except BrokerError as error:
            replies = [error] * len(trip.commands)
        except BaseException:  # cancelled: nobody knows which were carried out, so all are sent again
            for handler in trip.handlers:
                handler(OutcomeUnknownError("cancelled"))
            self.settler.note_resending(resending=True)
            raise
        finally:
            self._in_flight = False
            self._round_trip_ended.set()
            self._round_trip_ended = anyio.Event()
        worst: BrokerError | None = None
        for reply, handler in zip(replies, trip.take_handlers(), strict=True):
            try:
                if handler(reply):
                    worst = reply
            except Exception:  # what follows from one reply must not keep the others from being heard
                log.exception("%s: a reply of the server could not be taken in", self.name, event="internal_error")
        if self.reads.group_missing:
            await self.restore_groups()
        self.settler.note_resending(resending=worst is not None)
        if worst is None:
            self.outage.over("round trips")
        else:
            await self.recover("round trips", worst)

    async def retry_refused(self) -> None:
        """Try refused settlements again, apart from the round trips, until cancelled."""
        aside = self.settler.set_aside
        while True:
            await aside.wait_until_due()
            trip = RoundTrip()
            aside.load(trip)
            worst = await trip.carry_out(self.store)
            if self.reads.group_missing:
                await self.restore_groups()
            await aside.name_refused(self.store)
            if worst is not None:
                await self.recover("refused settlements", worst)
            else:
                self.outage.over("refused settlements")

    def bar_tiers(self) -> None:
        """Read other tiers than before."""
        self.reads.bar()
        self.wake_up()

    # --- blocking reads -------------------------------------------------------------------------

    async def blocking_reads(self) -> None:
        """Block on all streams while no tier has entries, until reading ends."""
        block = min(BLOCK, max(0.1, self.visibility_timeout / 3))
        async with self._blocking:
            while self._reading:
                await self._block.wait()
                self._block = anyio.Event()
                if self._reading:
                    trouble = await self.reads.block(self._blocking, block)
                    if self.reads.note_block(trouble) and trouble is not None:
                        await self.recover("blocking read", trouble)
                        if self._reading:  # without blocking: it shows at once that the server answers again
                            trouble = await self.reads.block(self._blocking, None)
                    if trouble is None:
                        self.outage.over("blocking read")
                self._blocked = False  # only now: `stop_reading` must not wait for a loop that waits for the server
                self._unblocked.set()
                self.wake_up()

    # --- the end ----------------------------------------------------------------------------------

    async def stop_reading(self) -> None:
        """Stop reading. Entries that a blocked read gets at this moment are accepted."""
        self._reading = False
        self.buffer.closed = True
        self._block.set()
        while self._blocked:
            # Repeatedly: the read may be about to begin, or the connection about to dial.
            await self._blocking.unblock()
            with anyio.move_on_after(_UNBLOCK_AGAIN):
                await self._unblocked.wait()
        self.wake_up()

    def finish(self) -> None:
        """Let the loop of round trips end once everything is settled."""
        self._ended = True
        self.wake_up()

    async def wait_until_settled(self) -> None:
        """Wait until every outcome so far has had its round trip.

        Raises OutcomeUnknownError if this consumer has left before.
        """
        while self.unsettled or self._in_flight:
            if self._left:
                raise OutcomeUnknownError(f"{self.name} has left before this was settled; its leases end by themselves")
            await self._round_trip_ended.wait()

    async def leave(self, *, crashed: bool = False) -> None:
        """Send the last settlements, release everything else, and leave the group.

        Call it when the loops have ended. If it fails, other consumers reclaim the deliveries when the leases end.
        `crashed`: an error of our own ended the loops, and nobody knows which delivery it was about. So nothing is
        released: the leases end, and this counts as a crash of all that was held.
        """
        self._ended = True
        try:
            if crashed:
                await self._settle_last()
                return await mark_only_one(self.store, self.name)
            try:
                await self._leave_once()
            except BrokerError as error:  # a cut connection, a server that is no primary any more
                log.info("%s: %s; trying to leave once more", self.name, error, event="group_kept")
                await self._leave_once()
        except BrokerError as error:
            log.warning("%s: could not leave the group (%s); its leases end by themselves", self.name, error,
                        event="group_kept")  # fmt: skip
        except WrongLoopError:  # the child of a fork: what it holds is its parent's
            pass
        finally:
            self._left = True
            self._in_flight = False
            self._round_trip_ended.set()

    async def _leave_once(self) -> None:
        await self._settle_last()
        await self.tier_refusals("releasing").carry_out(
            lambda tiers: self.store.release_all(self.name, self.visibility_timeout, but=self.fatal, tiers=tiers)
        )
        await self.tier_refusals("leaving").carry_out(
            lambda tiers: remove_consumers(self.store, self.name, tiers=tiers)
        )

    async def _settle_last(self) -> None:
        trip, more = self._next_round_trip(), True
        self.settler.set_aside.load(trip, last=True)
        while more and trip.commands:
            if (worst := await trip.carry_out(self.store)) is not None:
                raise worst
            more, trip = self.unsettled, self._next_round_trip()
        if trip.commands:  # the counters of what was settled just now
            await trip.carry_out(self.store)
        self.settler.set_aside.log_given_up(self.name)

    # --- outages ----------------------------------------------------------------------------------

    def tier_refusals(self, what: str) -> TierRefusals:
        """Return what keeps a tier for which the server refuses a step of a loop from stopping the others."""
        streams = [keys.stream for keys in self.store.keys.tiers]
        return TierRefusals(what, streams, self.outage, self._clock, self.restore_groups, self._random)

    async def restore_groups(self) -> BrokerError | None:
        """Create streams and groups that are missing, and say so. Returns the error if the server refuses that."""
        self.reads.group_missing = False
        try:
            ensured = await self.store.ensure_groups()
        except BrokerError as error:
            log.info("%s: not all groups can be created: %s", self.name, error, event="groups_missing")
            return error
        self.outage.note_restored(ensured.streams, ensured.groups)
        return None

    async def recover(self, loop: str, error: BrokerError, *, longest: float = LONGEST_PAUSE) -> None:
        """Create missing groups again, then wait with backoff, at most `longest` seconds, before the next try."""
        if error.code == "NOGROUP":
            error = await self.restore_groups() or error
        await self.outage.wait(loop, error, longest)
