"""The figures of a snapshot, and how they come from what workers counted. Pure.

All of them are frozen values; times are in the unit that their name ends with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from streamq.wire.counters import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the runs of a window came to: of the whole queue, of a tier, or of a task.

    `done` runs succeeded and `failed` ones did not; `retried` and `died` say what became of the
    latter (a task that dies without a run, expired or undecodable, has died and not failed).
    `postponed` runs were held back and spent no attempt; of `superseded` ones somebody else had
    settled the task first. Latency is from the arrival in the stream to the end of the run, of
    those that are done; the percentiles are right within a factor of 2. `error_rate` is failed /
    (done + failed). All are 0 where nothing ran.
    """

    done: int = 0
    failed: int = 0
    retried: int = 0
    postponed: int = 0
    died: int = 0
    superseded: int = 0
    throughput_per_sec: float = 0.0
    avg_latency_ms: float = 0.0
    p50_latency_ms: float = 0.0
    p95_latency_ms: float = 0.0
    p99_latency_ms: float = 0.0
    avg_run_ms: float = 0.0
    error_rate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetrics(Figures):
    """The runs of one task, in all tiers."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMetrics(Figures):
    """One tier: what lies in it now, and its runs. Fields as in `QueueMetrics`."""

    name: str
    depth: int = 0
    processing: int = 0
    delayed: int = 0
    oldest_wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerMetrics:
    """One worker, as the server knows it.

    `pending` is what it holds: what it runs and what it has prefetched. `idle_s` is how long ago
    it last spoke to a stream. `alive_s` is for how long its last heartbeat still counts; once
    that is over (negative) it is not `alive`, and what it holds is taken over.
    """

    name: str
    pending: int
    idle_s: float
    alive_s: float
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitMetrics:
    """A circuit breaker's circuit that is not closed.

    `name` is the breaker's name and the key. `scope` is "fleet" for one that all workers share, "process" for
    one of a single process, which `worker` names (host and process id; None for the fleet). `state` is
    "open" or "half_open", since `since`; `failures` were in a row, the last of them of `error_type`.
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

    `depth` is how many tasks wait to be started, `processing` how many workers hold, `delayed` how
    many wait for their time, `dead_letter_count` how many are dead. `oldest_wait_s` is the age
    of the oldest of those that wait. The other figures are those of the last `covered_s` seconds.
    `taken_at` is the server's time.
    """

    taken_at: datetime
    covered_s: float
    depth: int = 0
    processing: int = 0
    delayed: int = 0
    dead_letter_count: int = 0
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
        """How long what waits will last at this throughput, if nothing is added; None if nothing gets done."""
        if not self.depth:
            return 0.0
        return self.depth / self.throughput_per_sec if self.throughput_per_sec else None

    def wanted_workers(self, within: float = 60.0) -> int | None:
        """Return how many workers would start all that waits `within` seconds.

        Assumes that each gets as much done as those alive did lately, which is true of a queue
        with a backlog. None if nothing got done lately, or nobody is alive.
        """
        if not self.depth:
            return min(1, self.workers)
        each = self.throughput_per_sec / self.workers if self.workers else 0.0
        return math.ceil(self.depth / within / each) if each else None


def figures(tally: Tally, covered: float) -> dict[str, Any]:
    """Return the fields of `Figures` for what was counted in `covered` seconds."""
    runs = tally.done + tally.failed
    done = tally.done or 1
    return {
        "done": tally.done, "failed": tally.failed, "retried": tally.retried, "postponed": tally.postponed,
        "died": tally.dead, "superseded": tally.superseded,
        "throughput_per_sec": tally.done / covered,
        "avg_latency_ms": tally.latency_us / done / 1000,
        "p50_latency_ms": tally.percentile(0.50) * 1000,
        "p95_latency_ms": tally.percentile(0.95) * 1000,
        "p99_latency_ms": tally.percentile(0.99) * 1000,
        "avg_run_ms": tally.run_us / done / 1000,
        "error_rate": tally.failed / runs if runs else 0.0,
    }  # fmt: skip
