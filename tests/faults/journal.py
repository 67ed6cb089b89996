"""What a scenario needs to know of its log while it runs: what was written since the last look."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson


class Journal:
    """Follows the log and counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.counts: Counter[str] = Counter()
        self.by_who: Counter[tuple[str, str]] = Counter()

    def look(self) -> Counter[str]:
        """Read on and return how many records of each kind there are."""
        for record in self._new():
            self.counts[record["what"]] += 1
            self.by_who[record["who"], record["what"]] += 1
        return self.counts

    def _new(self) -> list[dict[str, Any]]:
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole, newline, _ = file.read().rpartition(b"\n")  # the last line may be half written yet
        self._at += len(whole) + len(newline)
        return [record for line in whole.splitlines() if (record := _decoded(line)) is not None]

    def seen(self, what: str, who: str) -> bool:
        """Return whether this one has written this, reading on if need be."""
        if not self.by_who[who, what]:
            self.look()
        return self.by_who[who, what] > 0

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        """Read the whole log again and return the records of these kinds."""
        marks = [f'"what":"{kind}"'.encode() for kind in kinds]
        with self._path.open("rb") as file:
            lines = [line for line in file if any(mark in line for mark in marks)]
        return [record for line in lines if (record := _decoded(line)) is not None]

    def effects(self) -> Counter[str]:
        """Return how often the effect of each task was recorded."""
        return Counter(record["task"] for record in self.records("effect"))


def _decoded(line: bytes) -> dict[str, Any] | None:
    """Return a record; None for what a killed process left half written (the checker looks at that)."""
    try:
        return dict(orjson.loads(line))
    except (orjson.JSONDecodeError, TypeError, ValueError):
        return None
