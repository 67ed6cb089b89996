"""The figures of a snapshot, and how they are computed from the workers' counters. Pure.

All are frozen values. The end of a name is its unit: `_s` seconds, `_ms` milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from streamq.wire import bounds
from streamq.wire.counters import Counters, percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The runs of a window: of the whole queue, of a tier, or of a task.

    `done` counts runs that succeeded, `failed` runs that did not. A failed run is then `retried` or `died` (a
    task that dies without a run, because it is expired or undecodable, counts as died and not as failed).
    `postponed` runs used no attempt. For `superseded` runs another worker had settled the task first.
    `cancelled` counts tasks that a worker ended on request: neither done nor failed. Latency is the time from
    the arrival in the stream to the end of the run, wait to its start, both for runs that are done; percentiles
    are accurate within 7 %. `error_rate` is failed / (done + failed). All are 0 if nothing ran.
    """

    done: int = 0
    failed: int = 0
    retried: int = 0
    postponed: int = 0
    died: int = 0
    superseded: int = 0
    cancelled: int = 0
    throughput_per_sec: float = 0.0
    avg_latency_ms: float = 0.0
    p50_latency_ms: float = 0.0
    p95_latency_ms: float = 0.0
    p99_latency_ms: float = 0.0
    avg_wait_ms: float = 0.0
    p50_wait_ms: float = 0.0
    p95_wait_ms: float = 0.0
    p99_wait_ms: float = 0.0
    avg_run_ms: float = 0.0
    error_rate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetrics(Figures):
    """The runs of one task, in all tiers."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMetrics(Figures):
    """One tier: its tasks now, and its runs. The fields are those of `QueueMetrics`."""

    name: str
    depth: int = 0
    processing: int = 0
    delayed: int = 0
    oldest_wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerMetrics:
    """One worker, as the server knows it.

    `pending` counts the tasks that it runs or has prefetched. `idle_s` is the time since it last used a
    stream. `alive_s` is how long its last heartbeat is still valid. When that is negative, it is not
    `alive`, and other workers take over its tasks.
    """

    name: str
    pending: int
    idle_s: float
    alive_s: float
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitMetrics:
    """A circuit breaker's circuit that is not closed.

    `name` is the breaker's name and the key. `scope` is "fleet" for a circuit that all workers share, "process"
    for one of a single process, which `worker` names (host and process id; None for the fleet). `state` is
    "open" or "half_open", since `since`. `failures` counts failures in a row; `error_type` is that of the last.
    """

    name: str
    scope: str
    worker: str | None
    state: str
    failures: int
    error_type: str
    error: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMetrics(Figures):
    """One snapshot of the whole queue, as one consumer group sees it.

    `depth` counts the tasks that wait to be started, `processing` those that workers hold, `delayed` those
    that are not yet due, `dead_letter_count` the dead letters, `dead_letters_dropped` those that a bound has
    removed (0 again once 30 days pass without another). `oldest_wait_s` is the age of the oldest waiting task.
    The other figures cover the last `covered_s` seconds. `taken_at` is the server's time.
    """

    taken_at: datetime
    covered_s: float
    depth: int = 0
    processing: int = 0
    delayed: int = 0
    dead_letter_count: int = 0
    dead_letters_dropped: int = 0
    oldest_wait_s: float = 0.0
    tiers: Mapping[str, TierMetrics] = field(default_factory=dict)
    tasks: Mapping[str, TaskMetrics] = field(default_factory=dict)
    consumers: tuple[ConsumerMetrics, ...] = ()
    circuits: tuple[CircuitMetrics, ...] = ()

    @property
    def workers(self) -> int:
        """How many consumers are alive."""
        return sum(consumer.alive for consumer in self.consumers)

    @property
    def drain_seconds(self) -> float | None:
        """Seconds until all waiting tasks are done at this throughput if none is added; None if nothing gets done."""
        if not self.depth:
            return 0.0
        return self.depth / self.throughput_per_sec if self.throughput_per_sec else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that have JSON: the fields, `workers` and `drain_seconds`. Times are ISO 8601, in UTC."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return found | {
            "taken_at": _iso(self.taken_at),
            "workers": self.workers,
            "drain_seconds": self.drain_seconds,
            "tiers": {name: asdict(tier) for name, tier in self.tiers.items()},
            "tasks": {name: asdict(task) for name, task in self.tasks.items()},
            "consumers": [asdict(one) for one in self.consumers],
            "circuits": [asdict(one) | {"since": _iso(one.since)} for one in self.circuits],
        }

    def wanted_workers(self, within: float | timedelta = 60.0) -> int | None:
        """Return how many workers would start all waiting tasks within `within` seconds.

        Assumes that each worker gets as much done as the current ones did in the window. That holds for a queue with a
        backlog. Where runs last longer than `within`, none of them makes room in that time. Then each worker is assumed
        to hold as many tasks as the fullest one does, those that run count as well as those that wait, and no worker
        that runs something is to go. None if that cannot be known: nothing got done and nothing runs, or no worker is
        alive. Raises ConfigurationError for a time that cannot be used.
        """
        seconds = float(bounds.WANTED_WITHIN.check(within))
        if self.processing and (not self.done or self.avg_run_ms > seconds * 1000):
            held = [consumer.pending for consumer in self.consumers if consumer.alive and consumer.pending]
            return max(len(held), math.ceil((self.processing + self.depth) / max(held))) if held else None
        if not self.depth:
            return min(1, self.workers)
        each = self.throughput_per_sec / self.workers if self.workers else 0.0
        return math.ceil(self.depth / seconds / each) if each else None


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def figures(counters: Counters, covered: float) -> dict[str, Any]:
    """Return the fields of `Figures` for counters of `covered` seconds."""
    runs = counters.done + counters.failed
    done = counters.done or 1
    return {
        "done": counters.done, "failed": counters.failed, "retried": counters.retried, "postponed": counters.postponed,
        "died": counters.dead, "superseded": counters.superseded, "cancelled": counters.cancelled,
        "throughput_per_sec": counters.done / covered,
        "avg_latency_ms": counters.latency_us / done / 1000,
        "p50_latency_ms": percentile(counters.latencies, 0.50) * 1000,
        "p95_latency_ms": percentile(counters.latencies, 0.95) * 1000,
        "p99_latency_ms": percentile(counters.latencies, 0.99) * 1000,
        "avg_wait_ms": counters.wait_us / done / 1000,
        "p50_wait_ms": percentile(counters.waits, 0.50) * 1000,
        "p95_wait_ms": percentile(counters.waits, 0.95) * 1000,
        "p99_wait_ms": percentile(counters.waits, 0.99) * 1000,
        "avg_run_ms": counters.run_us / done / 1000,
        "error_rate": counters.failed / runs if runs else 0.0,
    }  # fmt: skip
