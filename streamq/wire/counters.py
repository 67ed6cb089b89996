"""The counters of a worker, by tier and task, and their fields in Redis.

A worker adds them up in memory, and writes them to the hash of a window of time at most ten times a second. A monitor
reads them. The name of a field is `tier|task|what`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from streamq.wire.stored_numbers import stored_count

MOST_NAMES = 2_000  # tasks and tiers of one window that a monitor tells apart
OTHER = "(other)"  # what all further ones are counted as, and those that a worker does not know and has no room for
BUCKETS = 48  # of latency, by powers of two of a microsecond: up to 8 years


_LAST_BUCKET = 64  # of any time that a worker can have counted


@dataclass(slots=True)
class Counters:
    """Counts of one task in one tier. Latency is the time from the entry to the end of its run."""

    done: int = 0
    failed: int = 0  # runs that raised
    retried: int = 0
    postponed: int = 0
    dead: int = 0
    superseded: int = 0
    cancelled: int = 0
    latency_us: int = 0  # sum over `done`
    run_us: int = 0  # sum over `done`
    latencies: dict[int, int] = field(default_factory=dict)  # bucket -> how many

    def acknowledged(self, latency: float, run: float, *, cancelled: bool = False) -> None:
        """Count a run that succeeded, or that was `cancelled`. `latency` and `run` are in seconds."""
        if cancelled:
            self.cancelled += 1
            return
        us = int(latency * 1e6) if latency > 0 else 0
        self.done += 1
        self.latency_us += us
        self.run_us += int(run * 1e6)
        bucket = us.bit_length()
        self.latencies[bucket] = self.latencies.get(bucket, 0) + 1

    def add(self, other: Counters) -> None:
        """Add the counts of `other` to these."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for bucket, count in other.latencies.items():
            self.latencies[bucket] = self.latencies.get(bucket, 0) + count

    def percentile(self, share: float) -> float:
        """Return the latency (s) that this share of the successes did not exceed, within a factor of 2.

        Interpolated within its bucket. 0.0 without successes.
        """
        left = share * sum(self.latencies.values())
        for bucket, count in sorted(self.latencies.items()):
            if left <= count and count:
                low, high = (0, 1) if bucket == 0 else (1 << bucket - 1, 1 << bucket)
                return (low + (high - low) * left / count) / 1e6
            left -= count
        return 0.0


DROPPED = "dead_dropped"  # the field of the totals of a group: dead letters that a bound has removed
MOST_DROPPED = 10**15 - 1  # a larger number is somebody else's (`_dropped.lua`)
COUNTS = ("done", "failed", "retried", "postponed", "dead", "superseded", "cancelled", "latency_us", "run_us")


def pack(counters: Mapping[tuple[str, bytes], Counters]) -> Counter[str]:
    """Return the fields of counters by (tier, task); zeros are left out."""
    fields: Counter[str] = Counter()
    for (tier, task), one in counters.items():
        prefix = f"{tier}|{task.decode(errors='replace')}|"  # two names that are no UTF-8 may become one
        for name in COUNTS:
            if value := getattr(one, name):
                fields[prefix + name] += value
        for bucket, count in one.latencies.items():
            fields[f"{prefix}l{bucket}"] += count
    return fields


def is_counter(field: str) -> bool:
    """Whether a field of a window is one that workers write."""
    what = field.rpartition("|")[2]
    return what in COUNTS or (what[:1] == "l" and stored_count(what[1:], most=_LAST_BUCKET) is not None)


def stored_dropped(value: object) -> int | None:
    """Return how many dead letters a bound has removed; None if the value is somebody else's."""
    return stored_count(value, most=MOST_DROPPED)


def unpack(fields: Iterable[tuple[bytes, bytes]]) -> dict[tuple[str, str], Counters]:
    """Return the counters in the hash of a window; fields and values that no worker wrote are ignored."""
    counters: dict[tuple[str, str], Counters] = {}
    for raw_name, raw in fields:
        tier, _, rest = raw_name.decode(errors="replace").partition("|")
        task, _, what = rest.rpartition("|")
        amount = stored_count(raw)
        bucket = stored_count(what[1:], most=_LAST_BUCKET) if what[:1] == "l" else None
        if amount is None or (what not in COUNTS and bucket is None):
            continue
        one = counters.get((tier, task))
        if one is None:
            if len(counters) >= MOST_NAMES:
                task = OTHER
            one = counters.setdefault((tier, task), Counters())
        if bucket is None:
            setattr(one, what, getattr(one, what) + amount)
        else:
            one.latencies[bucket] = one.latencies.get(bucket, 0) + amount
    return counters
