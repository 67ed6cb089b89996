"""The runs that the demo's worker recorded, and the figures computed from them. No I/O.

The summary is computed only from these rows and from the dead letter stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamq.cli.demo.corpus import TIERS


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one file. Times are Unix seconds."""

    tier: str
    name: str
    enqueued: float
    started: float
    ended: float
    attempt: int
    ok: bool
    redelivered: bool
    pid: int


@dataclass(slots=True)
class RunLog:
    """All runs so far, and all files. `killed_at` is the time at which a worker was killed (Unix seconds)."""

    files: Mapping[str, Sequence[str]]
    runs: list[Run] = field(default_factory=list)
    done: dict[str, set[str]] = field(default_factory=lambda: {tier: set() for tier in TIERS})
    dead: dict[str, dict[str, Any]] = field(default_factory=dict)
    killed_at: float | None = None

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add recorded runs."""
        for row in rows:
            run = Run(*row)
            self.runs.append(run)
            if run.ok:
                self.done[run.tier].add(run.name)

    def add_dead_letters(self, dead_letters: Iterable[dict[str, Any]]) -> None:
        """Add dead letters, each under the name of its file."""
        for dead_letter in dead_letters:
            args = dead_letter.get("args")
            name = str(args[1]) if isinstance(args, list) and len(args) > 1 else dead_letter["entry_id"]
            self.dead[name] = dead_letter

    @property
    def enqueued(self) -> int:
        """How many files there are."""
        return sum(map(len, self.files.values()))

    @property
    def settled(self) -> int:
        """How many files are settled: with an effect, or as dead letters."""
        return sum(map(len, self.done.values())) + len(self.dead)

    @property
    def retries(self) -> int:
        """How many runs were retries."""
        return sum(run.attempt > 1 for run in self.runs)

    @property
    def repeated(self) -> int:
        """How many runs repeated a file that had succeeded: at-least-once delivery after a crash."""
        return sum(count - 1 for count in Counter(run.name for run in self.runs if run.ok).values())

    def missing(self, effects: Iterable[str]) -> list[str]:
        """Return the lost files: those with neither an effect nor a dead letter."""
        found = set(effects) | self.dead.keys()
        return sorted(name for names in self.files.values() for name in names if name not in found)

    def shares(self) -> tuple[int, dict[str, int]]:
        """Return how many tasks started while all tiers had a backlog: the total, and by tier.

        Counts up to the start of the last file of any tier, or up to the kill of a worker, because its
        unfinished runs left no row.
        """
        firsts = sorted((run for run in self.runs if run.attempt == 1 and not run.redelivered), key=lambda r: r.started)
        left = {tier: len(self.files[tier]) for tier in TIERS}
        counted = dict.fromkeys(TIERS, 0)
        for run in firsts:
            if self.killed_at is not None and run.started >= self.killed_at:
                break
            counted[run.tier] += 1
            left[run.tier] -= 1
            if not left[run.tier]:
                break
        return sum(counted.values()), counted

    def latencies(self, tier: str | None = None) -> list[float]:
        """Return the seconds from enqueue to success, ascending, for one tier or for all."""
        return sorted(run.ended - run.enqueued for run in self.runs if run.ok and tier in (None, run.tier))

    def durations(self) -> list[float]:
        """Return the durations of successful runs in seconds, ascending."""
        return sorted(run.ended - run.started for run in self.runs if run.ok)

    @property
    def span(self) -> float:
        """Seconds from the first start to the last end."""
        if not self.runs:
            return 0.0
        return max(run.ended for run in self.runs) - min(run.started for run in self.runs)


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the percentile for this share (0 to 1) of ascending values, 0.0 if there are none."""
    if not ascending:
        return 0.0
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
