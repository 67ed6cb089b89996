"""Leases: keep what this consumer holds, and take over what nobody keeps.

Two timers, neither gated by traffic. *Renew* runs every third of the visibility timeout and
covers everything in hand, prefetched deliveries included. *Sweep* takes over what was handed
back, what dead consumers held and what went stale; it is bounded per step, keeps its cursor,
and takes no more than there is room for. It surveys first, in one round trip of plain commands: where nothing
is pending there is nothing to take over, and an idle worker has no more to do. Both also learn the server's
clock and remove dead consumers that hold nothing.
"""

from __future__ import annotations

import random
from itertools import cycle

import anyio

from streamq.consumer.consumer import Consumer
from streamq.consumer.outage import LONGEST_PAUSE
from streamq.errors import BrokerError
from streamq.queue.lease_commands import depart, reclaim, renew, survey

SWEEP_STEP = 100  # entries that one step of a sweep takes at most
_NO_ROOM = 0.25  # seconds until a sweep that found no room looks again
_NEXT_SUSPECT = 0.02  # the same, when a suspect has all the room: others may wait for their turn
_IN_FULL = 3600.0  # seconds after which a tier is told again what hardly changes (see renew.lua)
_START = b"0-0"
_NEVER = 365 * 24 * 3600.0  # seconds: idle for so long is nobody


class Leases:
    """The two loops that stand for one consumer."""

    def __init__(self, consumer: Consumer, *, uniform: random.Random | None = None) -> None:
        self._consumer = consumer
        self._store = consumer.store
        self._clock = consumer.store.clock
        self._random = uniform or random.Random()
        self._cursors = [_START for _ in consumer.store.tiers]
        self._wake = anyio.Event()
        self._renewed = self._clock.elapsed()
        self._in_full_at = [float("-inf") for _ in consumer.store.tiers]
        self._turns = cycle(range(len(consumer.store.tiers)))  # whose consumers the next survey asks after
        self._surveyed = float("-inf")
        self._others_until = 0.0  # until when the others may still be on their way back
        self.sweeping = True

    def __repr__(self) -> str:
        return f"<Leases of {self._consumer.name} every {self.interval:g} s>"

    @property
    def interval(self) -> float:
        """Seconds between renewals, and between sweeps."""
        return self._consumer.visibility_timeout / 3

    # --- renew -------------------------------------------------------------------------------

    async def renew_forever(self) -> None:
        """Renew in time until cancelled."""
        while True:
            started = self._clock.elapsed()
            try:
                await self.renew()
            except BrokerError as error:
                await self._consumer.recover("renew", error, longest=self.interval / 2)
                continue
            self._consumer.outage.over("renew")
            await anyio.sleep(max(0.0, started + self.interval - self._clock.elapsed()))

    async def renew(self) -> None:
        """Renew every lease once; deliveries that turn out to be lost are given up."""
        consumer = self._consumer
        held = [list(by_id) for by_id in consumer.intake.held]
        in_full = [tier for tier, at in enumerate(self._in_full_at) if at <= self._clock.elapsed()]
        sent = self._clock.now()
        now, lost = await renew(self._store, consumer.name, consumer.visibility_timeout, held, in_full=in_full)
        self._note_in_full(in_full)
        self._note_gap()
        consumer.settler.clock_offset = now - (sent + self._clock.now()) / 2
        for tier, ids in enumerate(lost):
            for entry_id in ids:
                consumer.lost(tier, entry_id)

    def _note_in_full(self, told: list[int]) -> None:
        """Set when these tiers are told in full again: not all of them at once."""
        now, tiers = self._clock.elapsed(), len(self._in_full_at)
        for place, tier in enumerate(told):
            self._in_full_at[tier] = now + _IN_FULL * (1 - place / tiers)

    def _note_gap(self) -> None:
        """Notice that nothing could be renewed for long: then the others could not either.

        When a server was away for as long as a lease, all leases have ended, and whoever comes back first
        would take what the others still run. They get the time to come back and renew.
        """
        now = self._clock.elapsed()
        if now - self._renewed > self.interval * 2:
            self._others_until = now + self.interval + LONGEST_PAUSE
        self._renewed = now

    # --- sweep -------------------------------------------------------------------------------

    def sweep_soon(self) -> None:
        """Something was handed back: sweep as soon as there is room."""
        self._wake.set()

    async def sweep_forever(self) -> None:
        """Sweep in time, or when told, until cancelled."""
        part = self._random.random()  # of the first interval: who starts with others does not sweep with them
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
                pause = min(self.interval, _NEXT_SUSPECT if self._consumer.intake.isolating else _NO_ROOM)
            with anyio.move_on_after(pause) as timer:
                await self._wake.wait()
            if timer.cancelled_caught and complete:
                part = 1.0

    async def _sweep(self) -> bool:
        """Sweep every tier where anything is pending to its end; False if room ran out before."""
        consumer = self._consumer
        if self._room() <= 0 and self._clock.elapsed() < self._surveyed + self.interval:
            return False
        forgotten = 2 * consumer.visibility_timeout
        pending, gone = await survey(self._store, next(self._turns), now=consumer.now(), forgotten=forgotten)
        self._surveyed = self._clock.elapsed()
        complete = True
        for tier, number in enumerate(pending):
            if not number:
                self._cursors[tier] = _START
                continue
            to_the_end, died = await self._sweep_tier(tier)
            complete, gone = complete and to_the_end, gone or died
        if gone:
            await depart(self._store, forgotten=forgotten)
        return complete

    async def _sweep_tier(self, tier: int) -> tuple[bool, bool]:
        """Sweep one tier. Returns False if room ran out before its end, and whether owners were found dead."""
        consumer = self._consumer
        patient = self._clock.elapsed() < self._others_until
        died = False
        while (room := self._room()) > 0:
            count = min(SWEEP_STEP, room)
            cursor, found, more_suspects = await reclaim(
                self._store,
                consumer.name,
                tier,
                idle=_NEVER if patient else consumer.visibility_timeout,
                margin=self.interval,
                cursor=self._cursors[tier],
                count=count,
                max_crashes=consumer.max_crashes,
                suspect_after=consumer.intake.suspect_after,
                deadline=consumer.now() + self.interval,
            )
            self._cursors[tier] = cursor
            died = died or any(delivery.orphaned for delivery in found)
            consumer.reclaimed(found)
            if more_suspects:
                return False, died
            if cursor == _START and len(found) < count:
                return True, died
        return False, died

    def _room(self) -> int:
        return self._consumer.intake.room() if self.sweeping else 0
