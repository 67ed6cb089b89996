"""What the demo knows of its run: rows that the worker recorded, and the figures that follow from them. No I/O.

Everything in the summary is counted from these rows and from the dead letter stream; nothing
is assumed.
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
class Ledger:
    """All runs so far, and who is still to come. `killed_at` is when a worker was killed (Unix seconds)."""

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

    def bury(self, letters: Iterable[dict[str, Any]]) -> None:
        """Add dead letters, by the file that they are about."""
        for letter in letters:
            args = letter.get("args")
            name = str(args[1]) if isinstance(args, list) and len(args) > 1 else letter["entry_id"]
            self.dead[name] = letter

    @property
    def enqueued(self) -> int:
        """How many files there are."""
        return sum(map(len, self.files.values()))

    @property
    def settled(self) -> int:
        """How many files have ended: with an effect, or dead."""
        return sum(map(len, self.done.values())) + len(self.dead)

    @property
    def retries(self) -> int:
        """Runs that were second attempts or later."""
        return sum(run.attempt > 1 for run in self.runs)

    @property
    def repeated(self) -> int:
        """Runs of files that had succeeded before: what `at least once` means after a crash."""
        return sum(count - 1 for count in Counter(run.name for run in self.runs if run.ok).values())

    def missing(self, effects: Iterable[str]) -> list[str]:
        """Return the files that have neither an effect nor a dead letter: lost ones."""
        found = set(effects) | self.dead.keys()
        return sorted(name for names in self.files.values() for name in names if name not in found)

    def shares(self) -> tuple[int, dict[str, int]]:
        """Return how many tasks started while every tier was backlogged, in all and by tier.

        That is until the first tier started its last file, or until a worker was killed, whose
        unfinished runs have left no row.
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
        """Return seconds from enqueue to success, ascending, of one tier or of all."""
        return sorted(run.ended - run.enqueued for run in self.runs if run.ok and tier in (None, run.tier))

    def durations(self) -> list[float]:
        """Return seconds that successful runs took, ascending."""
        return sorted(run.ended - run.started for run in self.runs if run.ok)

    @property
    def span(self) -> float:
        """Seconds from the first start to the last end."""
        if not self.runs:
            return 0.0
        return max(run.ended for run in self.runs) - min(run.started for run in self.runs)


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the value that this share of the others does not exceed; 0.0 of none."""
    if not ascending:
        return 0.0
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
