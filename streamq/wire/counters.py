"""The counters of a consumer group, by tier and task, and their fields in Redis.

The script that settles a delivery adds what that counts to the hash of a window of time, in the same step: so each
settlement counts exactly once, whatever dies or is sent again. A monitor reads the hashes. The name of a field is
`tier|task|what`.

A batch of acknowledgements adds its sums, one amount for each field. Beside them it has the share of each entry, which
the script reads only if some had been settled before: it takes their shares out of the sums.

Times are counted in buckets, `PER_OCTAVE` for each doubling. The value that stands for a bucket is the one with the
smallest worst error, 2ab / (a + b) for a bucket from a to b. That error is (r - 1) / (r + 1) for r = b / a: 6.9 % with
five buckets per octave, 8.7 % with four.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log2
from typing import Final

import orjson

from streamq.wire.stored_numbers import stored_count

MOST_NAMES = 2_000  # tasks and tiers of one window that a monitor tells apart
OTHER = "(other)"  # what all further ones are counted as, and those that a worker does not know and has no room for
PER_OCTAVE: Final = 5  # buckets of times for each power of two of a microsecond
_LAST_BUCKET: Final = 1 + PER_OCTAVE * 64  # of any time that a worker can have counted


def bucket_of(us: int) -> int:
    """Return the bucket of a time in microseconds: 0 for less than one."""
    return 1 + int(log2(us) * PER_OCTAVE) if us > 0 else 0


def seconds_of(bucket: int) -> float:
    """Return the time in seconds that stands for a bucket."""
    if bucket <= 0:
        return 0.0
    low, high = math.exp2((bucket - 1) / PER_OCTAVE), math.exp2(bucket / PER_OCTAVE)
    return 2 * low * high / (low + high) / 1e6


Share = tuple[int, bool, int, int, int, int]
"""What one acknowledgement counts: the number that its worker has given to its tier and task, was it cancelled, the
latency and run in microseconds, the buckets of latency and of wait. `_late.lua` reads it by place."""


def share_of(task: int, latency: float, run: float, *, cancelled: bool = False) -> Share:
    """Return the share of a run that succeeded, or was `cancelled`. `latency` and `run` are in seconds.

    Latency is the time from the entry to the end of its run, wait to the start. On the way of each task: so nothing is
    called here, as `bucket_of` says it.
    """
    latency_us, run_us = int(latency * 1e6) if latency > 0 else 0, int(run * 1e6)
    wait_us = latency_us - run_us if latency_us > run_us else 0
    return (
        task, cancelled, latency_us, run_us,
        1 + int(log2(latency_us) * PER_OCTAVE) if latency_us else 0,
        1 + int(log2(wait_us) * PER_OCTAVE) if wait_us else 0,
    )  # fmt: skip


@dataclass(slots=True)
class Counters:
    """Counts of one task in one tier. Latency is the time from the entry to the end of its run, wait to its start."""

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
    waits: dict[int, int] = field(default_factory=dict)  # bucket -> how many

    @property
    def wait_us(self) -> int:
        """The sum over `done` of the waits: from the entry to the start of its run."""
        return max(0, self.latency_us - self.run_us)

    def add(self, other: Counters) -> None:
        """Add the counts of `other` to these."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.latencies, other.latencies), (self.waits, other.waits)):
            for bucket, count in theirs.items():
                mine[bucket] = mine.get(bucket, 0) + count

    def fields(self, prefix: str) -> list[str]:
        """Return the fields that are not 0, each name followed by its amount. `prefix` is that of tier and task."""
        flat: list[str] = []
        for name in COUNTS:
            if value := getattr(self, name):
                flat += (prefix + name, str(value))
        for letter, buckets in (("l", self.latencies), ("w", self.waits)):
            for bucket, count in buckets.items():
                flat += (f"{prefix}{letter}{bucket}", str(count))
        return flat


def percentile(buckets: Mapping[int, int], share: float) -> float:
    """Return the time (s) that this share of the counted ones did not exceed, within 7 %. 0.0 if none is counted."""
    left = max(1, math.ceil(share * sum(buckets.values()) - 1e-9))
    for bucket, count in sorted(buckets.items()):
        left -= count
        if left <= 0:
            return seconds_of(bucket)
    return 0.0


_LETTERS: Final = ("l", "w")  # of the buckets of latency and of wait
DROPPED = "dead_dropped"  # the field of the totals of a group: dead letters that a bound has removed
MOST_DROPPED = 10**15 - 1  # a larger number is somebody else's (`_dropped.lua`)
COUNTS = (
    "done", "failed", "retried", "postponed", "dead", "superseded", "cancelled", "latency_us", "run_us"
)  # fmt: skip


def prefix_of(tier: str, task: bytes) -> str:
    """Return what the fields of a tier and task begin with. Two names that are no UTF-8 may become one."""
    return f"{tier}|{task.decode(errors='replace')}|"


def pack_one(prefix: str, what: Sequence[str], *, superseded: bool) -> bytes:
    """Return what one settlement counts: 1 for each of `what`. Only `superseded` if another consumer was first."""
    counts = {"add": [part for name in what for part in (prefix + name, "1")]}
    if superseded:
        counts["late"] = [f"{prefix}superseded", "1"]
    return orjson.dumps(counts)


def sum_shares(shares: Iterable[Share]) -> dict[int, Counters]:
    """Return the sums of shares by the number of their task."""
    sums: dict[int, Counters] = {}
    for task, cancelled, latency_us, run_us, latency_bucket, wait_bucket in shares:
        counters = sums.get(task)
        if counters is None:
            counters = sums[task] = Counters()
        if cancelled:
            counters.cancelled += 1
            continue
        counters.done += 1
        counters.latency_us += latency_us
        counters.run_us += run_us
        latencies, waits = counters.latencies, counters.waits
        latencies[latency_bucket] = latencies.get(latency_bucket, 0) + 1
        waits[wait_bucket] = waits.get(wait_bucket, 0) + 1
    return sums


def pack_shares(shares: Sequence[Share], prefixes: Sequence[str], *, superseded: bool) -> tuple[bytes, bytes]:
    """Return what a batch of acknowledgements counts, and the shares of its entries.

    `prefixes` has that of each number of a task. `superseded`: an entry that had been settled before counts as such.
    """
    sums = sum_shares(shares)
    add = [part for task, counters in sums.items() for part in counters.fields(prefixes[task])]
    tasks = {str(task): prefixes[task] for task in sums}
    return orjson.dumps({"add": add, "tasks": tasks, "superseded": superseded}), orjson.dumps(shares)


def is_counter(field: str) -> bool:
    """Whether a field of a window is one that workers write."""
    what = field.rpartition("|")[2]
    return what in COUNTS or (what[:1] in _LETTERS and stored_count(what[1:], most=_LAST_BUCKET) is not None)


def stored_dropped(value: object) -> int | None:
    """Return how many dead letters a bound has removed; None if the value is somebody else's."""
    return stored_count(value, most=MOST_DROPPED)


def unpack(fields: Iterable[tuple[bytes, bytes]], tiers: Container[str]) -> dict[tuple[str, str], Counters]:
    """Return the counters of these tiers in the hash of a window, by tier and task.

    Fields and values that no worker wrote are ignored, and take no place among the names.
    """
    counters: dict[tuple[str, str], Counters] = {}
    for raw_name, raw in fields:
        tier, _, rest = raw_name.decode(errors="replace").partition("|")
        task, _, what = rest.rpartition("|")
        amount = stored_count(raw)
        bucket = stored_count(what[1:], most=_LAST_BUCKET) if what[:1] in _LETTERS else None
        if amount is None or tier not in tiers or (what not in COUNTS and bucket is None):
            continue
        one = counters.get((tier, task))
        if one is None:
            if len(counters) >= MOST_NAMES:
                task = OTHER
            one = counters.setdefault((tier, task), Counters())
        if bucket is None:
            setattr(one, what, getattr(one, what) + amount)
        else:
            buckets = one.latencies if what[0] == "l" else one.waits
            buckets[bucket] = buckets.get(bucket, 0) + amount
    return counters
