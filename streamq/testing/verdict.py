"""What the checker is told beside the log, and what it answers: values, no logic of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PER_ROW = 20  # examples that a row keeps


@dataclass(frozen=True, slots=True)
class FinalState:
    """What lay in Redis when everything was over; all of it empty is an orderly end.

    `waiting` are the task ids in the streams by tier, pending ones included; `pending` counts those by tier
    and consumer; `delayed` are the task ids in the delayed sets, `dead` the dead letters as (task id,
    reason), oldest first; `consumers` are those left, as (tier, name, pending); `stray` are the keys that
    are not documented, or live on without the TTL they should have; `keys` are all keys.
    """

    waiting: Mapping[str, frozenset[str]] = field(default_factory=dict)
    pending: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    delayed: frozenset[str] = frozenset()
    dead: tuple[tuple[str, str], ...] = ()
    consumers: tuple[tuple[str, str, int], ...] = ()
    stray: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run is held to. Times are seconds; None reports a figure and does not judge it.

    `lease` is the visibility timeout. `slack` is what a busy machine may add to anything that is timed.
    `recovery` bounds the time that a task is stuck with a worker that died, froze or was cut off; time in
    which the server was down, or no worker was well, does not count. `waits` bounds the wait for the first
    start, by tier. `grace` is how long a worker that was told to stop may take.

    `dead_reasons` are the reasons for which tasks may die. `culprits` says of a task (id, name) whether it
    takes its workers down; without it nobody is asked about crash loops, and `crash_loop` is a reason as any
    other. `effects` says that handlers record theirs; `effects_once` that nothing excuses a second one.
    `drained` says that everything was to be worked off, `clean_exit` that all workers left in order, so that
    no consumer may be left. `dead_kept` says that no dead letter was trimmed, replayed or purged.
    """

    lease: float
    slack: float = 1.0
    recovery: float | None = None
    waits: Mapping[str, float] = field(default_factory=dict)
    grace: float | None = None
    dead_reasons: frozenset[str] = frozenset()
    culprits: Callable[[str, str], bool] | None = None
    max_crashes: int = 3
    effects: bool = True
    effects_once: bool = False
    drained: bool = True
    clean_exit: bool = False
    dead_kept: bool = True

    @property
    def window(self) -> float:
        """Seconds for which a disturbance excuses the loss of a lease: lease, one sweep, slack."""
        return self.lease * 4 / 3 + self.slack


@dataclass(frozen=True, slots=True)
class Row:
    """One answer: the promise, the question, the value found and the limit it is held to (None: none).

    `examples` say which tasks or workers, a few of them.
    """

    promise: str
    question: str
    value: float
    limit: float | None = None
    unit: str = ""
    examples: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Is the value within its limit?"""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Report:
    """The answers about one run. `effects` counts tasks by how many effects they had, `faults` by name."""

    rows: tuple[Row, ...]
    records: int = 0
    tasks: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    effects: Mapping[int, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Did every promise hold?"""
        return all(row.ok for row in self.rows)

    @property
    def violations(self) -> tuple[Row, ...]:
        """The rows that did not."""
        return tuple(row for row in self.rows if not row.ok)

    def __getitem__(self, question: str) -> Row:
        """Return the row that answers a question. Raises KeyError."""
        for row in self.rows:
            if row.question == question:
                return row
        raise KeyError(question)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        whole = asdict(self)
        whole["rows"] = [asdict(row) | {"ok": row.ok} for row in self.rows]
        whole["effects"] = {str(number): tasks for number, tasks in self.effects.items()}
        return whole | {"ok": self.ok}
