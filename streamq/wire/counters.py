"""What a worker counts, and how it lies in Redis until a monitor reads it.

Counters are kept per tier and task in memory and added to a window's hash with an
acknowledgement, at most ten times a second. Field names: `tier|task|what`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BUCKETS = 48  # latencies in powers of two of a microsecond: up to 8 years


@dataclass(slots=True)
class Tally:
    """Counts of one task in one tier. Latency is from the entry's time to the end of its run."""

    done: int = 0
    failed: int = 0  # runs that raised
    retried: int = 0
    postponed: int = 0
    dead: int = 0
    superseded: int = 0
    latency_us: int = 0  # sum over `done`
    run_us: int = 0  # sum over `done`
    latencies: dict[int, int] = field(default_factory=dict)  # bucket -> how many

    def succeeded(self, latency: float, run: float) -> None:
        """Count a success; both in seconds."""
        us = int(latency * 1e6) if latency > 0 else 0
        self.done += 1
        self.latency_us += us
        self.run_us += int(run * 1e6)
        bucket = us.bit_length()
        self.latencies[bucket] = self.latencies.get(bucket, 0) + 1

    def add(self, other: Tally) -> None:
        """Add the counts of another."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for bucket, count in other.latencies.items():
            self.latencies[bucket] = self.latencies.get(bucket, 0) + count

    def percentile(self, share: float) -> float:
        """Return the latency (s) that this share of the successes stayed under, within a factor of 2.

        Interpolated within its bucket; 0.0 if there are none.
        """
        left = share * sum(self.latencies.values())
        for bucket, count in sorted(self.latencies.items()):
            if left <= count and count:
                low, high = (0, 1) if bucket == 0 else (1 << bucket - 1, 1 << bucket)
                return (low + (high - low) * left / count) / 1e6
            left -= count
        return 0.0


COUNTS = ("done", "failed", "retried", "postponed", "dead", "superseded", "latency_us", "run_us")


def pack(tallies: Mapping[tuple[str, bytes], Tally]) -> Counter[str]:
    """Return the fields to add for tallies by (tier, task); zeros are left out."""
    fields: Counter[str] = Counter()
    for (tier, task), tally in tallies.items():
        prefix = f"{tier}|{task.decode(errors='replace')}|"  # two names may become one
        for name in COUNTS:
            if value := getattr(tally, name):
                fields[prefix + name] += value
        for bucket, count in tally.latencies.items():
            fields[f"{prefix}l{bucket}"] += count
    return fields


def unpack(fields: Iterable[tuple[bytes, bytes]]) -> dict[tuple[str, str], Tally]:
    """Return the tallies of a window's hash; what it does not know it passes over."""
    tallies: dict[tuple[str, str], Tally] = {}
    for raw_name, raw in fields:
        tier, _, rest = raw_name.decode(errors="replace").partition("|")
        task, _, what = rest.rpartition("|")
        tally = tallies.setdefault((tier, task), Tally())
        if what in COUNTS:
            setattr(tally, what, getattr(tally, what) + int(raw))
        elif what[:1] == "l" and what[1:].isdigit():
            tally.latencies[int(what[1:])] = int(raw)
    return tallies
