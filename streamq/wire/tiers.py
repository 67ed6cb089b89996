"""Priority tiers, and the fair choice between them. Pure: knows no Redis, no clock, no I/O.

The choice is weighted fair queueing over tasks of unit size (Demers, Keshav and Shenker 1989), with integer strides as
in Waldspurger's stride scheduling, 1995. Each tier has a virtual finish tag. The tier with the smallest tag starts
next. A start advances the tag of a tier of weight w by L/w, where L is the least common multiple of all weights. Tags
are integers, so nothing drifts.

Property tests check what follows from that:

- While every tier has tasks ready, any window of sum(weights) starts contains each tier as often as its weight, plus or
  minus one.
- A task with k-1 tasks of its tier before it starts within ceil(k / w) * sum(weights) starts, plus one for each other
  tier.
- A tier that is alone gets every start, and that does not count against it later.

Cost: O(log tiers) for each choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush, heapreplace
from math import lcm

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.wire import bounds
from streamq.wire.argument_types import check_items
from streamq.wire.names import check_name


class Priority(IntEnum):
    """Names for numeric priorities. Any integer can be used; it picks the tier by its threshold."""

    CRITICAL = 100
    HIGH = 50
    NORMAL = 10
    LOW = 1


@dataclass(frozen=True, slots=True)
class Tier:
    """One priority tier: a stream of its own, and a share of the starts by its `weight`.

    `threshold` is the smallest priority of this tier. None: it takes all priorities that no other tier takes. `stream`
    is the key of the stream; by default `<namespace>:<name>`. Raises ConfigurationError if a name cannot be used, or if
    the weight is not an integer from 1 to 10,000.
    """

    name: str
    weight: int = 1
    threshold: int | None = None
    stream: str | None = None

    def __post_init__(self) -> None:
        check_name("tier", self.name)
        if self.stream is not None:
            check_name("stream", self.stream)
        if self.threshold is not None:
            bounds.PRIORITY.check(self.threshold, f"tier {self.name!r}: threshold")
        if type(self.weight) is not int or self.weight not in bounds.WEIGHT:
            raise ConfigurationError(
                f"tier {self.name!r} has weight {repr_of(self.weight)}: give an integer from {bounds.WEIGHT.range}"
            )


DEFAULT_TIERS = (
    Tier("critical", weight=6, threshold=50),
    Tier("standard", weight=3, threshold=10),
    Tier("bulk", weight=1),
)


def check_tiers(tiers: Iterable[Tier]) -> tuple[Tier, ...]:
    """Return the tiers, highest threshold first.

    Raises ConfigurationError if there is none, or if two have the same name or threshold. `Keys.of` refuses the names
    that are reserved.
    """
    given = check_items("tiers", tiers, "a list of Tier(name, weight)")
    if strangers := [type(tier).__name__ for tier in given if not isinstance(tier, Tier)]:
        raise ConfigurationError(f"tiers has a {strangers[0]}: give Tier(name, weight)")
    if not given:
        raise ConfigurationError("tiers is empty: give at least one Tier(name, weight)")
    for what in ("name", "threshold"):
        values = [getattr(tier, what) for tier in given]
        if len(set(values)) < len(values):
            raise ConfigurationError(f"two tiers have the same {what}: {values}")
    return tuple(sorted(given, key=lambda t: (t.threshold is None, -(t.threshold or 0))))


def pick_tier(tiers: Sequence[Tier], priority: int) -> int:
    """Return the index of the tier for a priority. The last tier takes priorities below every threshold."""
    for index, tier in enumerate(tiers):
        if tier.threshold is None or priority >= tier.threshold:
            return index
    return len(tiers) - 1


class FairChooser:
    """Chooses the tier of the next start. A tier is an index into `weights`.

    A tier takes part while it is `ready`: one of its tasks can start now. A tier that is `not_ready` keeps its tag
    until the next read, and can then catch up by at most `credit` starts. A tier that is `idle` has no task anywhere:
    it comes back without credit.
    """

    __slots__ = ("_credit", "_heap", "_ready", "_strides", "_tags", "_virtual", "weights")

    def __init__(self, weights: Sequence[int], *, credit: int = 100) -> None:
        self.weights = tuple(weights)
        least = lcm(*self.weights)
        self._strides = [least // weight for weight in self.weights]
        self._credit = credit
        self._tags = list(self._strides)
        self._virtual = 0
        self._ready = [False] * len(self.weights)
        self._heap: list[tuple[int, int]] = []

    def __repr__(self) -> str:
        return f"<FairChooser weights={self.weights} ready={[i for i, r in enumerate(self._ready) if r]}>"

    def ready(self, tier: int) -> None:
        """Note that a task of this tier can start now."""
        if not self._ready[tier]:
            self._ready[tier] = True
            stride = self._strides[tier]
            earliest = self._virtual + stride - self._credit * stride
            self._tags[tier] = max(self._tags[tier], earliest)
            heappush(self._heap, (self._tags[tier], tier))

    def idle(self, tier: int) -> None:
        """Note that this tier has no task anywhere. The starts that it did not use are lost."""
        self._tags[tier] = max(self._tags[tier], self._virtual + self._strides[tier])

    def choose(self) -> int | None:
        """Return the tier of the next start, and count the start. None if no tier is ready."""
        if not self._heap:
            return None
        tag, tier = self._heap[0]
        stride = self._strides[tier]
        # The virtual time is the finish tag of the last start. A tier that becomes ready gets its first tag one stride
        # later, as at the beginning. (If the virtual time were the start tag, that tier could start a whole stride of
        # another tier too early.) A tier that catches up does not move the virtual time back.
        if tag > self._virtual:  # noqa: PLR1730 - runs for each task, and `max` takes three times as long
            self._virtual = tag
        self._tags[tier] = tag + stride
        heapreplace(self._heap, (tag + stride, tier))
        return tier

    def not_ready(self, tier: int) -> None:
        """Note that no task of this tier can start for now."""
        if self._ready[tier]:
            self._ready[tier] = False
            self._heap = [entry for entry in self._heap if entry[1] != tier]
            heapify(self._heap)

    def forecast(self, starts: int, tiers: Iterable[int]) -> dict[int, int]:
        """Return how many of the next `starts` each of these tiers would get if all had enough tasks."""
        among = list(tiers)
        whole = sum(self.weights[tier] for tier in among)
        if not among or starts <= 0:
            return dict.fromkeys(among, 0)
        rounds, rest = divmod(starts, whole)
        shares = {tier: rounds * self.weights[tier] for tier in among}
        heap = [(max(self._tags[tier], self._virtual), tier) for tier in among]
        heapify(heap)
        for _ in range(rest):
            tag, tier = heappop(heap)
            shares[tier] += 1
            heappush(heap, (tag + self._strides[tier], tier))
        return shares
