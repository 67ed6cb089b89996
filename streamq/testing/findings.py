"""Violations and maxima that the checker finds while it reads the log. They become rows of the report."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from streamq.testing.report import PER_ROW, Row


class Question(StrEnum):
    """The questions that a report answers. The values are the names of its rows."""

    TORN = "records cut off"
    LOST = "lost"
    FORGIVEN = "lost with the server's data"
    LEFT = "left in Redis"
    DEAD = "dead without leave"
    GONE = "dead letters gone"
    REFUSED = "refused and yet run"
    TWICE = "settled twice"
    UNDONE = "acknowledged before the effect"
    REPEATED = "effects without excuse"
    EFFECTS = "tasks with more than one effect"
    LIVE = "live redeliveries"
    RECOVERY = "worst recovery"
    STALE = "stale failures that counted"
    INNOCENT = "innocents dead of a crash loop"
    CRASHES = "starts of a culprit"
    RETRIES = "retries over budget"
    EARLY_DEATH = "retries not granted"
    EARLY = "started before due"
    STOPPING = "stops that went wrong"
    PENDING = "pending for who has stopped"
    CONSUMERS = "consumers left"
    EXITS = "exits nobody asked for"
    KEYS = "keys left behind"


class Findings:
    """Counts violations by question and keeps a few examples of each."""

    def __init__(self) -> None:
        self.counts: Counter[Question] = Counter()
        self._examples: dict[Question, list[str]] = {}

    def __repr__(self) -> str:
        return f"<Findings {dict(self.counts)}>"

    def note(self, question: Question, example: str) -> None:
        """Count one violation."""
        self.counts[question] += 1
        examples = self._examples.setdefault(question, [])
        if len(examples) < PER_ROW:
            examples.append(example)

    def row(self, promise: str, question: Question, limit: float | None = 0) -> Row:
        """Return the row of a question."""
        return Row(promise, question, self.counts[question], limit, "", tuple(self._examples.get(question, ())))


class Maximum:
    """The largest of some values, with its example."""

    __slots__ = ("count", "example", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.example = ""
        self.count = 0

    def __repr__(self) -> str:
        return f"<Maximum {self.value:g} of {self.count}: {self.example}>"

    def add(self, value: float, example: str) -> None:
        """Add one value."""
        self.count += 1
        if value > self.value:
            self.value = value
            self.example = example
