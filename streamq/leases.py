"""Leases: keep what this consumer holds, and take over what nobody keeps.

Two timers, neither gated by traffic. *Renew* runs every third of the visibility timeout and
covers everything in hand, prefetched deliveries included. *Sweep* takes over what was handed
back, what dead consumers held and what went stale; it is bounded per step, keeps its cursor,
and takes no more than there is room for. Both also learn the server's clock and remove dead
consumers that hold nothing.
"""

from __future__ import annotations

import random

import anyio

from streamq.consumer import Consumer
from streamq.errors import BrokerError
from streamq.outage import LONGEST_PAUSE

SWEEP_STEP = 100  # entries that one step of a sweep takes at most
_NO_ROOM = 0.25  # seconds until a sweep that found no room looks again
_NEXT_SUSPECT = 0.02  # the same, when a suspect has all the room: others may wait for their turn
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
        sent = self._clock.now()
        now, lost = await self._store.renew(consumer.name, consumer.visibility_timeout, held)
        self._note_gap()
        consumer.settler.clock_offset = now - (sent + self._clock.now()) / 2
        for tier, ids in enumerate(lost):
            for entry_id in ids:
                consumer.lost(tier, entry_id)

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
        departed = 0.0
        while True:
            self._wake = anyio.Event()
            pause = self.interval * self._random.uniform(0.9, 1.0)
            try:
                if self._clock.elapsed() - self._renewed > self.interval * 2:
                    await self.renew()
                complete = await self._sweep()
                if not complete:
                    pause = min(pause, _NEXT_SUSPECT if self._consumer.intake.isolating else _NO_ROOM)
                if complete or self._clock.elapsed() >= departed + self.interval:
                    departed = self._clock.elapsed()
                    await self._store.depart(forgotten=3 * self._consumer.visibility_timeout)
            except BrokerError as error:
                await self._consumer.recover("sweep", error)
                continue
            self._consumer.outage.over("sweep")
            with anyio.move_on_after(pause):
                await self._wake.wait()

    async def _sweep(self) -> bool:
        """Sweep every tier to its end; False if room ran out before."""
        consumer = self._consumer
        patient = self._clock.elapsed() < self._others_until
        complete = True
        for tier in range(len(self._store.tiers)):
            while True:
                room = consumer.intake.room() if self.sweeping else 0
                if room <= 0:
                    complete = False
                    break
                count = min(SWEEP_STEP, room)
                cursor, found, more_suspects = await self._store.reclaim(
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
                consumer.reclaimed(found)
                if more_suspects:
                    complete = False
                    break
                if cursor == _START and len(found) < count:
                    break
        return complete
