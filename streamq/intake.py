"""What one consumer has in its hands: prefetched, set apart, running. Pure state, no I/O.

Decides what starts next (fair over tiers, suspects alone), how much to read, and what to hand
back. The prefetch follows Little's law: hold what will start within `HORIZON` seconds at the
rate at which tasks lately finished, so fast tasks are read by the hundred and a worker whose
tasks take minutes holds nothing that an idle one could run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from streamq.delivery import Delivery
from streamq.tiers import FairChooser

HORIZON = 0.02  # seconds of work to hold beyond the free slots; some ten round trips
STUCK = 1.0  # seconds without a start after which prefetched deliveries are handed back
_SAMPLE = 0.01  # seconds between two looks at the rate


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
        self._last_take = clock()
        self._rate = 0.0
        self._sampled = self._last_take

    def __repr__(self) -> str:
        return (
            f"<Intake running={self.running}/{self.slots} buffered={self._buffered} "
            f"suspects={len(self._suspects)} rate={self._rate:.0f}/s>"
        )

    # --- in ----------------------------------------------------------------------------------

    def accept(self, tier: int, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Take deliveries in and return those that were not here already (a sweep may find our own)."""
        held = self.held[tier]
        buffer = self._buffers[tier]
        if held:
            deliveries = [delivery for delivery in deliveries if delivery.entry_id not in held]
        if not self._buffered:
            self._last_take = self._clock()
        for delivery in deliveries:
            held[delivery.entry_id] = delivery
            if len(delivery.crashes) >= self.suspect_after:
                if not self._suspects:
                    self._gate_since = self._clock()
                self._suspects.append(delivery)
                continue
            buffer.append(delivery)
            self._buffered += 1
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
        if self._suspects or self._solo is not None:
            return self._take_suspect()
        tier = self._chooser.choose() if self._buffered and not self.closed else None
        if tier is None:
            return None
        buffer = self._buffers[tier]
        delivery = buffer.popleft()
        if not buffer:
            self._chooser.dry(tier)
        self._buffered -= 1
        self.running += 1
        return self._taken(delivery)

    def _take_suspect(self) -> Delivery | None:
        if not self._gate_open():
            return None
        delivery = self._suspects.popleft()
        delivery.alone = not self.running
        self._solo = delivery
        self._gate_since = self._clock()
        self.running += 1
        return self._taken(delivery)

    def _gate_open(self) -> bool:
        """May a suspect start? Once nothing runs beside it, or what runs has taken too long."""
        if self.closed or self._solo is not None or not self._suspects:
            return False
        return not self.running or self._clock() >= self._gate_since + self.patience

    def _taken(self, delivery: Delivery) -> Delivery:
        self._last_take = self._clock()
        return delivery

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
        if not self._buffered or self._clock() < self._last_take + STUCK:
            return []
        waiting = list(self._suspects)
        self._suspects.clear()
        found = self.unstarted()
        self._suspects.extend(waiting)
        self._rate, self.finished, self._sampled = 0.0, 0, self._clock()  # or there would be room to take it back
        return found

    @property
    def isolating(self) -> bool:
        """Is a suspect here, running or waiting to run alone?"""
        return bool(self._suspects) or self._solo is not None

    def overdue(self) -> float | None:
        """Return when to look again: what is prefetched is stuck, or a suspect has waited enough."""
        times = [self._last_take + STUCK] if self._buffered else []
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
        now = self._clock()
        elapsed = now - self._sampled
        if elapsed >= _SAMPLE:
            self._rate += (self.finished / elapsed - self._rate) / 2
            self.finished = 0
            self._sampled = now
        return min(self.max_prefetch, int(self._rate * HORIZON))

    def room(self) -> int:
        """Return how many more deliveries are worth having."""
        if self.closed or self.isolating:
            return 0
        return max(0, self.slots - self.running) + self.prefetch() - self._buffered

    def plan(self) -> dict[int, list[int]]:
        """Return what to read: for each COUNT the tiers to read with it, in one command.

        Empty while there is more than half of what is wanted. Tiers with a backlog share what
        is wanted by weight; the others are asked for what would be theirs, at least one.
        """
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
