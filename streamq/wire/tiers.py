"""Priority tiers and the fair choice between them. Pure: knows no Redis, no clock, no I/O.

The chooser is weighted fair queueing over unit-sized tasks (Demers, Keshav and Shenker 1989;
with integer strides as in Waldspurger's stride scheduling, 1995). A tier of weight w holds a
virtual finish tag; each start advances it by L/w, L being the least common multiple of all
weights, and the smallest tag starts next. Tags are integers, so nothing drifts.

What follows from it, and is property-tested:

- while every tier has tasks ready, any window of sum(weights) starts holds each tier's weight,
  give or take one;
- the task with k-1 tasks of its tier before it starts within ceil(k / w) * sum(weights) starts
  plus one per other tier;
- a tier alone gets every start, and owes nothing for it afterwards.

Cost: O(log tiers) for a choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush, heapreplace
from math import lcm

from streamq.errors import ConfigurationError


class Priority(IntEnum):
    """Names for numeric priorities; any integer is allowed and picks the tier by threshold."""

    CRITICAL = 100
    HIGH = 50
    NORMAL = 10
    LOW = 1


@dataclass(frozen=True, slots=True)
class Tier:
    """One priority tier: a stream of its own and a share of the starts.

    `threshold` is the smallest priority that belongs here (None takes all the rest). `stream`
    overrides the stream's key, which is otherwise `namespace:name`.
    """

    name: str
    weight: int = 1
    threshold: int | None = None
    stream: str | None = None


DEFAULT_TIERS = (
    Tier("critical", weight=6, threshold=50),
    Tier("standard", weight=3, threshold=10),
    Tier("bulk", weight=1),
)

# Names that would make a stream collide with another key of the namespace (see keys.py).
RESERVED = frozenset({
    "called", "dead", "dedup", "id", "limits", "line", "permits",
    "progress", "rate", "result", "seen", "stats", "wake",
})  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_.@-]+")
_LARGEST_WEIGHT = 10_000


def check_tiers(tiers: Iterable[Tier]) -> tuple[Tier, ...]:
    """Return the tiers, highest threshold first.

    Raises ConfigurationError if there are none, two share a name or a threshold, a name is
    reserved, or a weight is not an integer from 1 to 10,000.
    """
    given = tuple(tiers)
    if not given:
        raise ConfigurationError("tiers is empty: give at least one Tier(name, weight)")
    for tier in given:
        if tier.stream is None and (tier.name in RESERVED or not _NAME.fullmatch(tier.name)):
            raise ConfigurationError(
                f"tier name {tier.name!r} cannot be used: letters, digits, '_', '.', '@' and '-', "
                f"and none of {', '.join(sorted(RESERVED))}"
            )
        if type(tier.weight) is not int or not 1 <= tier.weight <= _LARGEST_WEIGHT:
            raise ConfigurationError(
                f"tier {tier.name!r} has weight {tier.weight!r}: give an integer from 1 to {_LARGEST_WEIGHT}"
            )
    for what in ("name", "threshold"):
        values = [getattr(tier, what) for tier in given]
        if len(set(values)) < len(values):
            raise ConfigurationError(f"two tiers have the same {what}: {values}")
    return tuple(sorted(given, key=lambda t: (t.threshold is None, -(t.threshold or 0))))


def pick_tier(tiers: Sequence[Tier], priority: int) -> int:
    """Return the index of the tier for a priority; the last tier takes what no threshold admits."""
    for index, tier in enumerate(tiers):
        if tier.threshold is None or priority >= tier.threshold:
            return index
    return len(tiers) - 1


class FairChooser:
    """Chooses the tier of the next start. Tiers are indices into the weights it was made with.

    A tier takes part while it is `ready` (something of it can start now). One that ran dry is
    either `idle` (it has nothing: it comes back with no credit) or merely waits for the next
    read (it keeps its place, and catches up by at most `credit` starts of its own).
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
        """Something of this tier can start."""
        if not self._ready[tier]:
            self._ready[tier] = True
            stride = self._strides[tier]
            earliest = self._virtual + stride - self._credit * stride
            self._tags[tier] = max(self._tags[tier], earliest)
            heappush(self._heap, (self._tags[tier], tier))

    def idle(self, tier: int) -> None:
        """This tier has nothing anywhere: what it did not use is not owed to it."""
        self._tags[tier] = max(self._tags[tier], self._virtual + self._strides[tier])

    def choose(self) -> int | None:
        """Return the tier of the next start and count it, or None if no tier is ready."""
        if not self._heap:
            return None
        tag, tier = self._heap[0]
        stride = self._strides[tier]
        # The virtual time is the finish of what started last: a tier that comes in gets its first
        # tag one stride later, as at the beginning. (With the start instead, it could slip in a
        # whole stride of another tier before that one's turn.) Catching up does not pull it back.
        if tag > self._virtual:  # noqa: PLR1730 - asked for each task, and `max` takes thrice as long
            self._virtual = tag
        self._tags[tier] = tag + stride
        heapreplace(self._heap, (tag + stride, tier))
        return tier

    def dry(self, tier: int) -> None:
        """Nothing of this tier can start for now."""
        if self._ready[tier]:
            self._ready[tier] = False
            self._heap = [entry for entry in self._heap if entry[1] != tier]
            heapify(self._heap)

    def forecast(self, starts: int, tiers: Iterable[int]) -> dict[int, int]:
        """Return how many of the next `starts` each of these tiers would get if all had enough."""
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
