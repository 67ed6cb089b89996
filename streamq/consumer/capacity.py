"""How many deliveries a worker may hold of those tasks that run in processes of their own: as many as can run.

A worker with a hundred slots and two processes would else take a hundred such tasks, while another worker has two
processes with nothing to do. What it reads beyond its processes is a surplus, which it releases: any worker takes that.
It takes back itself what it can run, as soon as one of its runs has ended.

What it has released it would find at once if it swept now, so it sweeps on its usual times alone while it is full. And
each surplus that it reads is one more pending entry: after as many as it has slots it reads no more of the tiers that
have them, until a sweep finds nothing left of what was released. Other tiers are read all the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from streamq.wire.delivery import Delivery


class Capacity:
    """The deliveries of such tasks that one consumer holds.

    `costs` is what part of a process one delivery of a task takes: a message of a batch a part of it. `processes` is
    how many run at a time, `slots` how many deliveries of all tasks. `on_change` is called when there is something to
    release, or other tiers may be read than before, `on_free` when there is something to take.
    """

    __slots__ = ("_costs", "_held", "_on_change", "_on_free", "_processes", "_released", "_slots", "_surplus", "_used")

    def __init__(
        self, costs: Mapping[bytes, float], *, processes: int, slots: int,
        on_change: Callable[[], None] = lambda: None, on_free: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._costs = costs
        self._processes = processes
        self._slots = slots
        self._on_change = on_change
        self._on_free = on_free
        self._held: dict[bytes, float] = {}  # entry -> its part of a process
        self._used = 0.0
        self._surplus: list[Delivery] = []
        self._released: Counter[int] = Counter()  # tier -> of the surplus, since a sweep found nothing more

    def __repr__(self) -> str:
        return f"<Capacity {self._used:g} of {self._processes} held, {self._released.total()} released>"

    def takes(self, delivery: Delivery) -> bool:
        """Count a delivery that was read; return whether it may wait here. If not it is surplus."""
        cost = self._costs.get(delivery.fields.get(b"task", b""))
        if cost is None:
            return True
        if self._used + cost > self._processes + 1e-9:
            self._surplus.append(delivery)
            self._released[delivery.tier] += 1
            self._on_change()
            return False
        self._held[delivery.entry_id] = cost
        self._used += cost
        return True

    def forget(self, entry_id: bytes) -> None:
        """Hold a delivery no longer."""
        cost = self._held.pop(entry_id, None)
        if cost is None:
            return
        self._used = self._used - cost if self._held else 0.0
        if self._released:
            self._on_free()

    def take_surplus(self) -> list[Delivery]:
        """Take out and return what is to be released."""
        found, self._surplus = self._surplus, []
        return found

    @property
    def has_surplus(self) -> bool:
        """Is there something to release?"""
        return bool(self._surplus)

    @property
    def full(self) -> bool:
        """Has a surplus been released, and is there no process for any of it?"""
        return bool(self._released) and not self.free

    @property
    def barred(self) -> frozenset[int]:
        """The tiers of which so much was released that no more is read."""
        return frozenset(self._released) if self._released.total() >= self._slots else frozenset()

    @property
    def free(self) -> int:
        """How many processes have nothing to run."""
        return int(self._processes - self._used + 1e-9)

    def room_to_sweep(self, room: int, *, full: bool) -> int:
        """Return how many deliveries a sweep may take: what was released before, as far as it can run.

        `full` as it began: it looks for those of dead workers, whatever they are.
        """
        return room if full or not self._released else min(room, self.free)

    def swept(self) -> None:
        """Note that a sweep has found all there is: nothing that was released is left."""
        if self._released and not self.full:
            self._released.clear()
            self._on_change()
