"""Every key of the queue, in one place. Nothing else in streamq builds a key name.

`docs/wire-format.md` has the table: type, owner and lifetime of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from streamq.errors import ConfigurationError
from streamq.tiers import Tier

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
    def wake(self) -> str:
        """The channel that tells sleeping workers of something they do not block on."""
        return f"{self.namespace}:wake"

    def stats(self, seconds: float) -> str:
        """Return the hash of counters for the window that holds this time."""
        return f"{self.namespace}:stats:{self.group}:{int(seconds // STATS_WINDOW)}"

    def result(self, task_id: str) -> str:
        """Return the key, and the channel, of a task's result."""
        return f"{self.namespace}:result:{task_id}"

    def accepted(self, task_id: str) -> str:
        """Return the key that makes an enqueue with a task id repeatable."""
        return f"{self.namespace}:id:{task_id}"

    def dedup(self, key: str) -> str:
        """Return the key that holds the winner of a deduplication key."""
        return f"{self.namespace}:dedup:{key}"

    def seen(self, task_id: str) -> str:
        """Return the key that `is_duplicate` sets."""
        return f"{self.namespace}:seen:{task_id}"
