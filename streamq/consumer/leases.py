"""The lease keeper: renews the leases of this consumer, and reclaims deliveries that no living consumer holds.

Two loops with timers of their own, independent of traffic. *Renew* runs every third of the visibility timeout and
covers every delivery that is held, prefetched ones included. It also compares the clocks. *Sweep* reclaims deliveries
that were released, that dead consumers held, or that nobody renewed. Each step of a sweep is bounded, continues at a
cursor, and takes no more than there is room for. A sweep begins with a survey, one round trip of plain commands: where
nothing is pending there is nothing to reclaim, so an idle worker does no more. It also removes dead consumers that hold
nothing. The commands are in `queue.lease_commands`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import cycle

import anyio

from streamq.consumer.consumer import Consumer
from streamq.consumer.outage import LONGEST_PAUSE
from streamq.consumer.takeovers import TakeOvers
from streamq.consumer.tier_refusals import TierRefusals
from streamq.errors import BrokerError
from streamq.queue.lease_commands import count_pending, reclaim, remove_consumers, renew, survey, try_to_claim

SWEEP_STEP = 100  # entries that one step of a sweep takes at most
_REMOVED_AT_ONCE = 1000  # dead consumers that one step removes
_REMOVALS = 10  # such steps of one sweep
_NO_ROOM = 0.25  # seconds until the next sweep, after one that found no room
_NEXT_SUSPECT = 0.02  # the same, while a suspect blocks all slots: other suspects may wait
_IN_FULL = 3600.0  # seconds between two renewals of a tier that also write its lease and TTL (see renew.lua)
_START = b"0-0"
_NEVER = 365 * 24 * 3600.0  # seconds: no entry is idle for that long


class LeaseKeeper:
    """The two loops, renew and sweep, of one consumer.

    `on_cancel` is called, at each renewal, with the tier and the id of each entry whose run is to be cancelled.
    """

    def __init__(
        self, consumer: Consumer, *, on_cancel: Callable[[int, bytes], None] = lambda *_: None,
        uniform: random.Random | None = None,
    ) -> None:  # fmt: skip
        self._consumer = consumer
        self._on_cancel = on_cancel
        self.store = consumer.store
        self._clock = consumer.store.clock
        self._random = uniform or random.Random()
        self._cursors = [_START for _ in consumer.store.tiers]
        self._wake = anyio.Event()
        self._renewed = self._clock.elapsed()
        self._in_full_at = [float("-inf") for _ in consumer.store.tiers]
        self._next_tier = cycle(range(len(consumer.store.tiers)))  # the tier whose consumers the next survey checks
        self._surveyed = self._removed = float("-inf")
        self._renewing = consumer.tier_refusals("renewing the leases of")
        self._sweeping = consumer.tier_refusals("sweeping")
        self._counting = consumer.tier_refusals("counting the pending entries of")
        self._looking = consumer.tier_refusals("looking for dead consumers of")
        self._removing = consumer.tier_refusals("removing dead consumers of")
        self._taken_over = TakeOvers(
            consumer.name, suspect_after=consumer.buffer.suspect_after, max_crashes=consumer.max_crashes,
            interval=self.interval,
        )  # fmt: skip
        self._others_return_until = 0.0  # until when the other consumers may still reconnect after an outage
        self.sweeping = True
        self._full = False  # had it no process left as this sweep began?

    def __repr__(self) -> str:
        return f"<LeaseKeeper of {self._consumer.name} every {self.interval:g} s>"

    @property
    def interval(self) -> float:
        """Seconds between renewals, and between sweeps."""
        return self._consumer.visibility_timeout / 3

    # --- renew -------------------------------------------------------------------------------

    async def renew_forever(self) -> None:
        """Renew every third of the visibility timeout, until cancelled."""
        while True:
            started = self._clock.elapsed()
            try:
                await self.renew()
            except BrokerError as error:
                await self._consumer.recover("renew", error, longest=self.interval / 2)
                continue
            self._consumer.outage.over("renew")
            pause = started + self.interval - self._clock.elapsed()
            if self._renewing.refused:
                pause = min(pause, self._renewing.next_try())
            await anyio.sleep(max(0.0, pause))

    async def renew(self) -> None:
        """Renew every lease once; drop the deliveries whose lease was lost.

        Raises BrokerError if the server cannot be used, or if this consumer cannot begin: every tier is refused.
        """
        if self._consumer.is_registered:
            await self._renewing.carry_out(self._renew)
        else:
            await self._renewing.begin(self._renew)

    async def _renew(self, tiers: list[int]) -> None:
        consumer = self._consumer
        held = [list(consumer.buffer.held[tier]) for tier in tiers]
        in_full = [tier for tier in tiers if self._in_full_at[tier] <= self._clock.elapsed()]
        asked = self._clock.elapsed()
        now, lost, cancelled = await renew(
            self.store, consumer.name, consumer.visibility_timeout, held, in_full=in_full, tiers=tiers
        )
        for tier, ids in zip(tiers, held, strict=True):
            if not ids and tier in self._renewing.refused:  # nothing was renewed, so nothing was accepted
                await try_to_claim(self.store, consumer.name, tier)
        self._note_in_full(in_full)
        self._detect_outage()
        self._clock.compare(now, asked, self._clock.elapsed(), precision=0.001)
        consumer.registered()
        for tier, ids in zip(tiers, lost, strict=True):
            for entry_id in ids:
                consumer.lease_lost(tier, entry_id)
        for tier, ids in zip(tiers, cancelled, strict=True):
            for entry_id in ids:
                self._on_cancel(tier, entry_id)

    def _note_in_full(self, tiers: list[int]) -> None:
        """Set when these tiers are renewed in full again: not all of them at the same time."""
        now, count = self._clock.elapsed(), len(self._in_full_at)
        for place, tier in enumerate(tiers):
            self._in_full_at[tier] = now + _IN_FULL * (1 - place / count)

    def _detect_outage(self) -> None:
        """Notice that no renewal succeeded for long: then the other consumers could not renew either.

        When the server was away for as long as a lease, all leases have ended. The first consumer that reconnects
        would reclaim what the others still run. So the others get time to reconnect and renew.
        """
        now = self._clock.elapsed()
        if now - self._renewed > self.interval * 2:
            self._others_return_until = now + self.interval + LONGEST_PAUSE
        self._renewed = now

    # --- sweep -------------------------------------------------------------------------------

    def sweep_soon(self) -> None:
        """Sweep as soon as there is room: a delivery was released."""
        capacity = self._consumer.buffer.capacity
        if capacity is None or not capacity.full:  # what it has released itself it would find again
            self._wake.set()

    async def sweep_forever(self) -> None:
        """Sweep every third of the visibility timeout, and on `sweep_soon`, until cancelled."""
        part = self._random.random()  # of the first interval: workers that start together do not sweep together
        while True:
            self._wake = anyio.Event()
            started = self._clock.elapsed()
            try:
                if started - self._renewed > self.interval * 2:
                    await self.renew()
                complete = await self._sweep()
            except BrokerError as error:
                await self._consumer.recover("sweep", error)
                part = self._random.random()
                continue
            self._consumer.outage.over("sweep")
            pause = started + self.interval * part - self._clock.elapsed()
            if not complete:
                pause = min(self.interval, _NEXT_SUSPECT if self._consumer.buffer.isolating else _NO_ROOM)
            with anyio.move_on_after(pause) as timer:
                await self._wake.wait()
            if timer.cancelled_caught and complete:
                part = 1.0

    async def _sweep(self) -> bool:
        """Sweep each tier with pending entries to its end; False if room ran out before."""
        consumer = self._consumer
        self._full = consumer.buffer.capacity is not None and consumer.buffer.capacity.full
        if self._room() <= 0 and self._clock.elapsed() < self._surveyed + self.interval:
            return False
        forgotten, started = 2 * consumer.visibility_timeout, self._clock.elapsed()
        if started < self._surveyed + self.interval / 2:  # of thousands of consumers a survey is large
            pending, gone = await count_pending(self.store), False
        else:
            looked = next(self._next_tier)
            pending, found = await survey(self.store, looked, now=consumer.now(), forgotten=forgotten)
            self._surveyed = self._clock.elapsed()
            gone = await self._answered(self._looking, looked, found) and found is True
        complete = True
        for tier, number in enumerate(pending):
            if not await self._answered(self._counting, tier, number):
                continue
            if number == 0 and tier not in self._sweeping.refused:
                self._cursors[tier] = _START
            elif not self._sweeping.paused(tier):  # one that was refused is asked again, even for nothing
                try:
                    to_the_end, died = await self._sweep_tier(tier)
                except BrokerError as error:
                    await self._sweeping.take_in([tier], error)
                    continue
                complete, gone = complete and to_the_end, gone or died
        self._taken_over.say(self._clock.elapsed(), complete=complete)
        if complete and consumer.buffer.capacity is not None:
            consumer.buffer.capacity.swept()
        if (gone and (complete or started >= self._removed + self.interval)) or self._removing.due():
            self._removed = started
            await self._removing.carry_out(partial(self._remove_consumers, forgotten))
        return complete

    async def _answered(self, refusals: TierRefusals, tier: int, reply: int | BrokerError) -> bool:
        """Return whether the server answered a question about a tier; note it if it refused to."""
        if isinstance(reply, BrokerError):
            await refusals.take_in([tier], reply)
            return False
        refusals.note_accepted([tier])
        return True

    async def _remove_consumers(self, forgotten: float, tiers: list[int]) -> None:
        for _ in range(_REMOVALS):
            if not await remove_consumers(self.store, forgotten=forgotten, limit=_REMOVED_AT_ONCE, tiers=tiers):
                break

    async def _sweep_tier(self, tier: int) -> tuple[bool, bool]:
        """Sweep one tier. Return whether its end was reached, and whether dead owners were found."""
        consumer = self._consumer
        others_returning = self._clock.elapsed() < self._others_return_until
        died, whole = False, self._cursors[tier] == _START
        while (room := self._room()) > 0:
            count = min(SWEEP_STEP, room)
            cursor, found, more_suspects, cancelled = await reclaim(
                self.store,
                consumer.name,
                tier,
                idle=_NEVER if others_returning else consumer.visibility_timeout,
                margin=self.interval,
                cursor=self._cursors[tier],
                count=count,
                max_crashes=consumer.max_crashes,
                suspect_after=consumer.buffer.suspect_after,
                deadline=consumer.now() + self.interval,
            )
            self._sweeping.note_accepted([tier])
            self._cursors[tier] = cursor
            died |= self._taken_over.note((*found, *cancelled))
            consumer.accept_reclaimed(found)
            for one in cancelled:
                consumer.settle(one, consumer.settler.dead_letters.of_cancelled(one), keep=consumer.keep(one))
            if more_suspects:
                return False, died
            if cursor == _START and len(found) + len(cancelled) < count:
                if whole or consumer.buffer.capacity is None:
                    return True, died
                whole = True  # what was released meanwhile may lie before the place where this sweep began
        capacity = consumer.buffer.capacity
        return capacity is not None and capacity.full and not self._full, died

    def _room(self) -> int:
        buffer = self._consumer.buffer
        if not self.sweeping or not self._consumer.is_registered:
            return 0
        room = buffer.room()
        return room if buffer.capacity is None else buffer.capacity.room_to_sweep(room, full=self._full)
