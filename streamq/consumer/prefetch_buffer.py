"""The deliveries that one consumer holds: prefetched, suspect, running. Pure state, no I/O.

Decides what starts next (fair over tiers, suspects in isolation), how much to read, and what to release.

The prefetch follows Little's law: hold as many deliveries as will start within `HORIZON` seconds. The estimate is how
many runs finished within one horizon lately. Tasks that start together end together, which an average would hide, so
the busiest horizon counts. More exactly the second busiest: the busiest one may be the end of tasks that took minutes.
So fast tasks are read by the hundred, and a worker whose tasks take minutes holds nothing that an idle one could run.

Bytes count as well: deliveries of more than `LARGE` bytes, waiting and running, take at most `prefetch_bytes` together.
The server cannot be asked how long an entry is, so a read takes as many as would fit if all were as large as the
largest of the last read. It begins with few, and takes eight times as many after each read of small ones. A read that
meets larger entries than the reads before may pass the bound; nothing more is read then. One delivery is always read.

A suspect is a delivery that was held by `suspect_after` workers when they died. It runs in isolation: nothing else
starts while it waits or runs, so a crash proves that it is the cause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil

from streamq.consumer.capacity import Capacity
from streamq.wire.delivery import Delivery
from streamq.wire.tiers import FairChooser

HORIZON = 0.02  # seconds of work to hold beyond the free slots; some ten round trips
STUCK_AFTER = 1.0  # seconds without a start after which prefetched deliveries are released
PREFETCH_BYTES = 64 << 20  # the default of `prefetch_bytes`
LARGE = 4 << 10  # bytes of a delivery that is not small; the number of all bounds the small ones
_FIRST_READ = 16  # entries of the first read, at most, unless there is room for more of
_FIRST_EXPECTED = 4 << 20  # bytes each
_JOINED = b"".join
_WINDOW = 0.25  # seconds that a horizon counts; two bursts of starts within half of it keep the prefetch up


class PrefetchBuffer:
    """The deliveries of one consumer.

    `slots` is how many may run at once. `suspect_after` is how many workers must have died holding a delivery before it
    is a suspect. `suspect_wait` is how long (s) a suspect waits for the other runs to end; then it starts beside them.
    """

    def __init__(
        self, weights: Sequence[int], *, slots: int, max_prefetch: int,
        suspect_after: int, suspect_wait: float, clock: Callable[[], float], prefetch_bytes: int = PREFETCH_BYTES,
    ) -> None:  # fmt: skip
        self.slots = slots
        self.prefetch_bytes = prefetch_bytes
        self.held_bytes = 0  # of the large deliveries that are held
        self._large: dict[bytes, int] = {}  # entry -> bytes
        self._expected = min(
            prefetch_bytes // _FIRST_READ, _FIRST_EXPECTED
        )  # bytes of an entry that is read next, at most
        self.max_prefetch = max_prefetch
        self.suspect_after = suspect_after
        self.suspect_wait = suspect_wait
        self.running = 0
        self.finished = 0
        self.runs = 0  # handlers that have run to their end, well or not; the one place that counts them
        self.held: list[dict[bytes, Delivery]] = [{} for _ in weights]
        self.backlog = [True] * len(weights)  # by tier: are more entries to be read, as far as known?
        self.barred: frozenset[int] = frozenset()  # tiers that are not read for now (see `reads`)
        self.closed = False
        self.capacity: Capacity | None = None  # of tasks that run in processes of their own
        self._clock = clock
        self._chooser = FairChooser(weights)
        self._buffers: list[deque[Delivery]] = [deque() for _ in weights]
        self._buffered = 0
        self._suspects: deque[Delivery] = deque()
        self._running_suspect: Delivery | None = None
        self._suspect_since = 0.0
        self.last_start = clock()
        self._horizon_began = self.last_start  # when the horizon began whose runs `finished` counts
        self._read_at = 0  # how many deliveries are left in the buffers when it is time to read more
        self.read_due = False  # that mark was passed and no read planned since: the rest can run while the server works
        # Earlier horizons: when each began, how many runs finished. No more of them fit into `_WINDOW`.
        self._horizons: deque[tuple[float, int]] = deque(maxlen=ceil(_WINDOW / HORIZON))

    def __repr__(self) -> str:
        return (
            f"<PrefetchBuffer running={self.running}/{self.slots} buffered={self._buffered} "
            f"suspects={len(self._suspects)} prefetch={self.prefetch()}>"
        )

    # --- in ----------------------------------------------------------------------------------

    def accept(self, tier: int, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Add deliveries; return those that are new (a sweep may find deliveries that are held here already)."""
        held = self.held[tier]
        buffer = self._buffers[tier]
        if held or self.capacity is not None:
            deliveries = self._to_be_held(held, deliveries)
        if not self._buffered:
            self.last_start = self._clock()
        before = len(buffer)
        largest = 0
        for delivery in deliveries:
            held[delivery.entry_id] = delivery
            size = len(_JOINED(delivery.flat))  # the copy costs a third of adding up the lengths
            if size > largest:  # noqa: PLR1730 - max() is a call for each delivery
                largest = size
            if size > LARGE:
                self._large[delivery.entry_id] = size
                self.held_bytes += size
            if delivery.crashed_workers and len(delivery.crashed_workers) >= self.suspect_after:
                if not self._suspects:
                    self._suspect_since = self._clock()
                self._suspects.append(delivery)
                continue
            buffer.append(delivery)
        if deliveries:
            self._expected = max(largest, self._expected // 8, 1)
        self._buffered += len(buffer) - before
        self._read_at = self._buffered * 2 // 5  # less than half, or `plan_reads` would find it too early
        if buffer:
            self._chooser.ready(tier)
        return list(deliveries)

    def _to_be_held(self, held: dict[bytes, Delivery], deliveries: Sequence[Delivery]) -> list[Delivery]:
        new = [delivery for delivery in deliveries if delivery.entry_id not in held]
        return new if self.capacity is None else [delivery for delivery in new if self.capacity.takes(delivery)]

    def note_read(self, tier: int, *, more: bool) -> None:
        """Note that a read of this tier showed whether more entries wait."""
        self.backlog[tier] = more
        if not more and not self._buffers[tier]:
            self._chooser.idle(tier)

    # --- out ---------------------------------------------------------------------------------

    def take(self) -> Delivery | None:
        """Return the delivery to start now, or None; its run ends with `run_ended`."""
        now = self._clock()
        if now >= self._horizon_began + HORIZON:
            self._horizons.append((self._horizon_began, self.finished))
            self._horizon_began, self.finished = now, 0
        if self._suspects or self._running_suspect is not None:
            return self._take_suspect(now)
        tier = self._chooser.choose() if self._buffered and not self.closed else None
        if tier is None:
            return None
        buffer = self._buffers[tier]
        delivery = buffer.popleft()
        if not buffer:
            self._chooser.not_ready(tier)
        self._buffered -= 1
        if self._buffered == self._read_at:
            self.read_due = True
        self.running += 1
        self.last_start = now
        return delivery

    def _take_suspect(self, now: float) -> Delivery | None:
        if not self._suspect_may_start():
            return None
        delivery = self._suspects.popleft()
        delivery.isolated = not self.running
        self._running_suspect = delivery
        self._suspect_since = self.last_start = now
        self.running += 1
        return delivery

    def _suspect_may_start(self) -> bool:
        """May a suspect start? Yes if nothing else runs, or if the other runs have taken too long."""
        if self.closed or self._running_suspect is not None or not self._suspects:
            return False
        return not self.running or self._clock() >= self._suspect_since + self.suspect_wait

    def run_ended(self, delivery: Delivery) -> None:
        """Note that the run of a delivery ended; the delivery stays held until it is settled."""
        self.running -= 1
        self.finished += 1
        if delivery is self._running_suspect:
            self._running_suspect = None
            self._suspect_since = self._clock()

    def forget(self, tier: int, entry_id: bytes) -> None:
        """Hold a delivery no longer: it was settled or released, or its lease is lost."""
        self.held[tier].pop(entry_id, None)
        if self._large:
            self.held_bytes -= self._large.pop(entry_id, 0)
        if self.capacity is not None:
            self.capacity.forget(entry_id)

    def settled(self, tier: int, deliveries: Sequence[Delivery]) -> None:
        """Hold deliveries of a tier no longer: they were settled."""
        pop = self.held[tier].pop
        for delivery in deliveries:
            pop(delivery.entry_id, None)
        if self._large:
            self.held_bytes -= sum(self._large.pop(delivery.entry_id, 0) for delivery in deliveries)
        if self.capacity is not None:
            for delivery in deliveries:
                self.capacity.forget(delivery.entry_id)

    def remove_unstarted(self, delivery: Delivery) -> bool:
        """Take out a delivery that has not started; False if it has."""
        buffer = self._buffers[delivery.tier]
        if delivery in self._suspects:
            self._suspects.remove(delivery)
            return True
        if delivery not in buffer:
            return False
        buffer.remove(delivery)
        self._buffered -= 1
        if not buffer:
            self._chooser.not_ready(delivery.tier)
        return True

    def take_unstarted(self) -> list[Delivery]:
        """Take out and return everything that has not started."""
        found = [*self._suspects, *([] if self.capacity is None else self.capacity.take_surplus())]
        self._suspects.clear()
        for tier, buffer in enumerate(self._buffers):
            found += buffer
            buffer.clear()
            self._chooser.not_ready(tier)
        self._buffered = 0
        return found

    def take_stuck(self) -> list[Delivery]:
        """Take out and return prefetched deliveries that could not start for a while (see STUCK_AFTER), and surplus."""
        surplus = [] if self.capacity is None else self.capacity.take_surplus()
        if not self._buffered or self._clock() < self.last_start + STUCK_AFTER:
            return surplus
        waiting = list(self._suspects)
        self._suspects.clear()
        found = [*surplus, *self.take_unstarted()]
        self._suspects.extend(waiting)
        self._horizons.clear()  # or there would be room to read them again at once
        self.finished = 0
        return found

    @property
    def isolating(self) -> bool:
        """Is there a suspect, waiting or running in isolation?"""
        return bool(self._suspects) or self._running_suspect is not None

    def next_check(self) -> float | None:
        """Return when to look again: prefetched deliveries are stuck then, or a suspect has waited long enough."""
        times = [self.last_start + STUCK_AFTER] if self._buffered else []
        if self.capacity is not None and self.capacity.has_surplus:
            times.append(self._clock())
        gate = self._suspect_since + self.suspect_wait
        if self._suspects and self._running_suspect is None and gate > self._clock():
            times.append(gate)
        return min(times, default=None)

    # --- how much ----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many deliveries have not started."""
        return self._buffered + len(self._suspects)

    @property
    def startable(self) -> bool:
        """Would `take` return a delivery now?"""
        if self._suspects or self._running_suspect is not None:
            return self._suspect_may_start()
        return self._buffered > 0 and not self.closed

    @property
    def idle(self) -> bool:
        """Does nothing run, and nothing wait?"""
        return not self.running and not self._buffered and not self._suspects

    def prefetch(self) -> int:
        """Return how many deliveries to hold beyond the free slots."""
        since, horizons = self._clock() - _WINDOW, self._horizons
        while horizons and horizons[0][0] < since:
            horizons.popleft()
        most = self.finished if self._horizon_began >= since else 0
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
        room = max(0, self.slots - self.running) + self.prefetch() - self._buffered
        left = (self.prefetch_bytes - self.held_bytes) // self._expected
        return room if room <= left else left if left > 0 else 0 if self.held_bytes else min(room, 1)

    def nothing_to_read(self) -> bool:
        """Is there a tier that may be read, and have all of these no entries, as far as known?"""
        open_to_read = [more for tier, more in enumerate(self.backlog) if tier not in self.barred]
        return bool(open_to_read) and not any(open_to_read)

    def read_sent(self) -> None:
        """Note that a read was sent: until its reply comes, it is not time to read more."""
        self._read_at, self.read_due = -1, False

    def plan_reads(self) -> dict[int, list[int]]:
        """Return what to read: for each COUNT the tiers to read with it, in one command.

        Empty while the buffers hold more than half of the wanted number. Tiers with a backlog share that number by
        weight; each other tier is asked for what its share would be, at least one.
        """
        self.read_due = False
        room = self.room()
        wanted = room + self._buffered
        known = [tier for tier, more in enumerate(self.backlog) if more]
        if self.barred:
            known = [tier for tier in known if tier not in self.barred]
        if room <= 0 or 2 * room < wanted or not known:
            return {}
        shares = self._chooser.forecast(wanted, known)
        if len(known) < len(self.backlog):
            for tier, share in self._chooser.forecast(wanted, range(len(self.backlog))).items():
                shares.setdefault(tier, max(1, share))
        if self.barred:
            shares = {tier: share for tier, share in shares.items() if tier not in self.barred}
        reads: dict[int, list[int]] = {}
        for tier, share in sorted(shares.items()):
            if (count := share - len(self._buffers[tier])) > 0:
                reads.setdefault(count, []).append(tier)
        return reads
