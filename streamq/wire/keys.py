"""Every key of the queue, in one place. Nothing else in streamq builds a key name.

`docs/wire-format.md` has the table: type, owner and lifetime of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from streamq.errors import ConfigurationError
from streamq.wire.tiers import Tier

STATS_WINDOW = 10  # seconds that one bucket of counters covers
STATS_KEPT = 900  # seconds that a bucket lives
PARKED = "released"  # the consumer that holds what was handed back

_NAMESPACE = re.compile(r"[^\s*?\[\]]+")


@dataclass(frozen=True, slots=True)
class TierKeys:
    """The keys of one tier."""

    stream: str
    delayed: str  # sorted set: task id -> due time in ms
    messages: str  # hash: task id -> message, for what is in `delayed`
    alive: str  # sorted set, of one group: consumer -> until when (ms) it counts as alive
    leases: str  # hash, of one group: consumer -> its visibility timeout (ms)
    crashes: str  # hash, of one group: entry id -> the workers that died holding it

    @classmethod
    def of(cls, stream: str, group: str) -> TierKeys:
        """Return the keys beside a stream."""
        return cls(
            stream=stream,
            delayed=f"{stream}:delayed",
            messages=f"{stream}:messages",
            alive=f"{stream}:alive:{group}",
            leases=f"{stream}:leases:{group}",
            crashes=f"{stream}:crashes:{group}",
        )


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one namespace, as one consumer group sees them."""

    namespace: str
    group: str
    tiers: tuple[TierKeys, ...]

    @classmethod
    def of(cls, namespace: str, group: str, tiers: Sequence[Tier]) -> Keys:
        """Raises ConfigurationError if the namespace or the group cannot be part of a key."""
        for what, value in (("namespace", namespace), ("group", group)):
            if not _NAMESPACE.fullmatch(value):
                raise ConfigurationError(f"{what} {value!r} cannot be used: no white space and none of * ? [ ]")
        streams = [tier.stream or f"{namespace}:{tier.name}" for tier in tiers]
        return cls(namespace, group, tuple(TierKeys.of(stream, group) for stream in streams))

    @property
    def dead(self) -> str:
        """The dead letter stream."""
        return f"{self.namespace}:dead"

    @property
    def durable(self) -> str:
        """What is written before WAIT, so that there is a write of this connection to wait for."""
        return f"{self.namespace}:durable"

    @property
    def schedules(self) -> str:
        """The hash of what recurs: name -> definition."""
        return f"{self.namespace}:schedules"

    @property
    def ticks(self) -> str:
        """The sorted set of what recurs: name -> next tick in ms."""
        return f"{self.namespace}:ticks"

    @property
    def ticked(self) -> str:
        """The hash of what recurs: name -> the last tick that was sent, in ms."""
        return f"{self.namespace}:ticked"

    @property
    def wake(self) -> str:
        """The channel that tells sleeping workers of something they do not block on."""
        return f"{self.namespace}:wake"

    @property
    def circuits(self) -> str:
        """The sorted set of the circuits that are not closed: name -> until when (ms) it is worth a look."""
        return f"{self.namespace}:circuits"

    def circuit(self, name: str) -> str:
        """Return the hash of one circuit: of the fleet, or as one process reports its own."""
        return f"{self.namespace}:circuit:{name}"

    def rate(self, name: str) -> str:
        """Return the hash of the token bucket that a fleet shares."""
        return f"{self.namespace}:rate:{name}"

    @property
    def limits(self) -> str:
        """The sorted set of the concurrency limits in use: name -> when (ms) to look after its permits."""
        return f"{self.namespace}:limits"

    def permits(self, name: str) -> str:
        """Return the sorted set of the runs under a concurrency limit: run -> until when (ms) its permit is leased."""
        return f"{self.namespace}:permits:{name}"

    def called(self, name: str) -> str:
        """Return the sorted set of those who were called: place -> until when (ms) a permit is kept for it."""
        return f"{self.namespace}:called:{name}"

    def line(self, name: str) -> str:
        """Return the sorted set of those who wait for a permit: place -> since when (microseconds)."""
        return f"{self.namespace}:line:{name}"

    def stats(self, seconds: float) -> str:
        """Return the hash of counters for the window that holds this time."""
        return f"{self.namespace}:stats:{self.group}:{int(seconds // STATS_WINDOW)}"

    def result(self, task_id: str) -> str:
        """Return the key, and the channel, of a task's result."""
        return f"{self.namespace}:result:{task_id}"

    def progress(self, task_id: str) -> str:
        """Return the key, and the channel, of what a task reports of itself."""
        return f"{self.namespace}:progress:{task_id}"

    def accepted(self, task_id: str) -> str:
        """Return the key that makes an enqueue with a task id repeatable."""
        return f"{self.namespace}:id:{task_id}"

    def dedup(self, key: str) -> str:
        """Return the key that holds the winner of a deduplication key."""
        return f"{self.namespace}:dedup:{key}"

    def latest(self, key: str) -> str:
        """Return the hash beside a deduplication key for which the newest wins."""
        return f"{self.namespace}:latest:{key}"

    def join(self, callback_id: str) -> str:
        """Return the hash of the results of a group's members, as long as not all of them are there."""
        return f"{self.namespace}:join:{self.group}:{callback_id}"

    def once(self, key: str) -> str:
        """Return the key, and the channel, of an effect that happens once."""
        return f"{self.namespace}:once:{key}"

    def seen(self, task_id: str) -> str:
        """Return the key that `is_duplicate` sets."""
        return f"{self.namespace}:seen:{task_id}"
