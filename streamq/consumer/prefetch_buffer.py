"""What one consumer has in its hands: prefetched, set apart, running. Pure state, no I/O.

Decides what starts next (fair over tiers, suspects alone), how much to read, and what to hand
back. The prefetch follows Little's law: hold what will start within `HORIZON` seconds, as many as
lately finished within one. Tasks that start together end together, and an average would not see that:
so it is the busiest horizon that counts, or rather the second of them, for one alone may be the end of
tasks that took minutes. Fast tasks are thus read by the hundred, and a worker whose tasks take minutes
holds nothing that an idle one could run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import ceil

from streamq.wire.delivery import Delivery
from streamq.wire.tiers import FairChooser

HORIZON = 0.02  # seconds of work to hold beyond the free slots; some ten round trips
STUCK = 1.0  # seconds without a start after which prefetched deliveries are handed back
_LATELY = 0.25  # seconds that a horizon counts: what is held for the next of two starts within half of it


class Intake:
    """The deliveries of one consumer.

    `slots` is how many may run at once, `suspect_after` how many workers must have died
    holding a delivery before it runs alone, `patience` how long (s) a suspect waits for the
    runs beside it to end.
    """

    def __init__(
        self, weights: Sequence[int], *, slots: int, max_prefetch: int,
        suspect_after: int, patience: float, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.slots = slots
        self.max_prefetch = max_prefetch
        self.suspect_after = suspect_after
        self.patience = patience
        self.running = 0
        self.finished = 0
        self.held: list[dict[bytes, Delivery]] = [{} for _ in weights]
        self.backlog = [True] * len(weights)  # is there more to read, as far as known?
        self.closed = False
        self._clock = clock
        self._chooser = FairChooser(weights)
        self._buffers: list[deque[Delivery]] = [deque() for _ in weights]
        self._buffered = 0
        self._suspects: deque[Delivery] = deque()
        self._solo: Delivery | None = None
        self._gate_since = 0.0
        self.last_take = clock()
        self._begun = self.last_take  # the horizon that `finished` counts
        self._mark = 0  # deliveries that are left when it is time to read on
        self.passed = False  # that mark, and nobody has looked since: the rest is to run while the server works
        # Those before it: when one began, how many finished. No more of them fit into `_LATELY`.
        self._horizons: deque[tuple[float, int]] = deque(maxlen=ceil(_LATELY / HORIZON))

    def __repr__(self) -> str:
        return (
            f"<Intake running={self.running}/{self.slots} buffered={self._buffered} "
            f"suspects={len(self._suspects)} prefetch={self.prefetch()}>"
        )

    # --- in ----------------------------------------------------------------------------------

    def accept(self, tier: int, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Take deliveries in and return those that were not here already (a sweep may find our own)."""
        held = self.held[tier]
        buffer = self._buffers[tier]
        if held:
            deliveries = [delivery for delivery in deliveries if delivery.entry_id not in held]
        if not self._buffered:
            self.last_take = self._clock()
        before = len(buffer)
        for delivery in deliveries:
            held[delivery.entry_id] = delivery
            if delivery.crashes and len(delivery.crashes) >= self.suspect_after:
                if not self._suspects:
                    self._gate_since = self._clock()
                self._suspects.append(delivery)
                continue
            buffer.append(delivery)
        self._buffered += len(buffer) - before
        self._mark = self._buffered * 2 // 5  # less than half, or `plan` would find it too early
        if buffer:
            self._chooser.ready(tier)
        return list(deliveries)

    def seen(self, tier: int, *, more: bool) -> None:
        """A read of this tier showed whether more is waiting."""
        self.backlog[tier] = more
        if not more and not self._buffers[tier]:
            self._chooser.idle(tier)

    # --- out ---------------------------------------------------------------------------------

    def take(self) -> Delivery | None:
        """Return the delivery to start now, or None; its run ends with `done`."""
        now = self._clock()
        if now >= self._begun + HORIZON:
            self._horizons.append((self._begun, self.finished))
            self._begun, self.finished = now, 0
        if self._suspects or self._solo is not None:
            return self._take_suspect(now)
        tier = self._chooser.choose() if self._buffered and not self.closed else None
        if tier is None:
            return None
        buffer = self._buffers[tier]
        delivery = buffer.popleft()
        if not buffer:
            self._chooser.dry(tier)
        self._buffered -= 1
        if self._buffered == self._mark:
            self.passed = True
        self.running += 1
        self.last_take = now
        return delivery

    def _take_suspect(self, now: float) -> Delivery | None:
        if not self._gate_open():
            return None
        delivery = self._suspects.popleft()
        delivery.alone = not self.running
        self._solo = delivery
        self._gate_since = self.last_take = now
        self.running += 1
        return delivery

    def _gate_open(self) -> bool:
        """May a suspect start? Once nothing runs beside it, or what runs has taken too long."""
        if self.closed or self._solo is not None or not self._suspects:
            return False
        return not self.running or self._clock() >= self._gate_since + self.patience

    def done(self, delivery: Delivery) -> None:
        """The run of this delivery ended; it stays held until it is settled."""
        self.running -= 1
        self.finished += 1
        if delivery is self._solo:
            self._solo = None
            self._gate_since = self._clock()

    def forget(self, tier: int, entry_id: bytes) -> None:
        """This delivery is settled, handed back or lost."""
        self.held[tier].pop(entry_id, None)

    def settled(self, tier: int, deliveries: Iterable[Delivery]) -> None:
        """These deliveries of a tier are settled."""
        pop = self.held[tier].pop
        for delivery in deliveries:
            pop(delivery.entry_id, None)

    def drop(self, delivery: Delivery) -> bool:
        """Take back a delivery that has not started; False if it has."""
        buffer = self._buffers[delivery.tier]
        if delivery in self._suspects:
            self._suspects.remove(delivery)
            return True
        if delivery not in buffer:
            return False
        buffer.remove(delivery)
        self._buffered -= 1
        if not buffer:
            self._chooser.dry(delivery.tier)
        return True

    def unstarted(self) -> list[Delivery]:
        """Take back everything that has not started."""
        found = [*self._suspects]
        self._suspects.clear()
        for tier, buffer in enumerate(self._buffers):
            found += buffer
            buffer.clear()
            self._chooser.dry(tier)
        self._buffered = 0
        return found

    def stuck(self) -> list[Delivery]:
        """Take back what was prefetched and could not start for a while (see STUCK)."""
        if not self._buffered or self._clock() < self.last_take + STUCK:
            return []
        waiting = list(self._suspects)
        self._suspects.clear()
        found = self.unstarted()
        self._suspects.extend(waiting)
        self._horizons.clear()  # or there would be room to take it back
        self.finished = 0
        return found

    @property
    def isolating(self) -> bool:
        """Is a suspect here, running or waiting to run alone?"""
        return bool(self._suspects) or self._solo is not None

    def overdue(self) -> float | None:
        """Return when to look again: what is prefetched is stuck, or a suspect has waited enough."""
        times = [self.last_take + STUCK] if self._buffered else []
        gate = self._gate_since + self.patience
        if self._suspects and self._solo is None and gate > self._clock():
            times.append(gate)
        return min(times, default=None)

    # --- how much ----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many deliveries have not started."""
        return self._buffered + len(self._suspects)

    @property
    def startable(self) -> bool:
        """Could `take` give something now?"""
        if self._suspects or self._solo is not None:
            return self._gate_open()
        return self._buffered > 0 and not self.closed

    @property
    def quiet(self) -> bool:
        """Nothing runs and nothing waits here."""
        return not self.running and not self._buffered and not self._suspects

    def prefetch(self) -> int:
        """Return how many deliveries to hold beyond the free slots."""
        since, horizons = self._clock() - _LATELY, self._horizons
        while horizons and horizons[0][0] < since:
            horizons.popleft()
        most = self.finished if self._begun >= since else 0
        second = 0
        for _, finished in horizons:
            if finished > most:
                most, second = finished, most
            elif finished > second:
                second = finished
        return min(self.max_prefetch, second)

    def room(self) -> int:
        """Return how many more deliveries are worth having."""
        if self.closed or self.isolating:
            return 0
        return max(0, self.slots - self.running) + self.prefetch() - self._buffered

    def read_on(self) -> None:
        """What comes next is on its way: nobody need say that it is time for it."""
        self._mark, self.passed = -1, False

    def plan(self) -> dict[int, list[int]]:
        """Return what to read: for each COUNT the tiers to read with it, in one command.

        Empty while there is more than half of what is wanted. Tiers with a backlog share what
        is wanted by weight; the others are asked for what would be theirs, at least one.
        """
        self.passed = False
        room = self.room()
        wanted = room + self._buffered
        known = [tier for tier, more in enumerate(self.backlog) if more]
        if room <= 0 or 2 * room < wanted or not known:
            return {}
        shares = self._chooser.forecast(wanted, known)
        if len(known) < len(self.backlog):
            for tier, share in self._chooser.forecast(wanted, range(len(self.backlog))).items():
                shares.setdefault(tier, max(1, share))
        reads: dict[int, list[int]] = {}
        for tier, share in sorted(shares.items()):
            if (count := share - len(self._buffers[tier])) > 0:
                reads.setdefault(count, []).append(tier)
        return reads
