"""The values that the checker takes beside the log, `FinalState` and `Limits`, and its result, `Report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PER_ROW = 20  # most examples in a row


@dataclass(frozen=True, slots=True)
class FinalState:
    """The state of Redis after a run. Everything is empty after a normal end.

    `waiting` are the task ids in the streams by tier, pending ones included. `pending` counts pending entries
    by tier and consumer. `delayed` are the task ids in the delayed sets. `dead` are the dead letters as
    (task id, reason), oldest first. `consumers` are those left, as (tier, name, pending). `stray` are the
    keys that are not documented, or that have lost their TTL. `keys` are all keys.
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
    """The limits for a run. Times are seconds. With None a value is reported and has no limit.

    `lease` is the visibility timeout. `slack` is the time that a busy machine may add to each limit.
    `recovery` limits the time that a task waits for a worker that died, froze or was cut off. Time in which
    the server was down, or no worker was well, does not count. `waits` limits the wait for the first
    start, by tier. `grace` is how long a worker may take to stop.

    `dead_reasons` are the allowed reasons for dead letters. `culprits` takes a task (id, name) and returns whether
    it crashes its workers; without it crash loops are not checked, and `crash_loop` is a reason like any
    other. `max_crashes` is the most starts of such a task. `effects` says that handlers record effects;
    `effects_once` that a second effect is always a violation. `drained` says that no task may be left,
    `clean_exit` that all workers stopped normally, so that no consumer may be left. `dead_kept` says that no
    dead letter was trimmed, replayed or purged.
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
        """Seconds for which a disturbance excuses a lost lease: the lease, one sweep, and the slack."""
        return self.lease * 4 / 3 + self.slack


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a report: the promise, the question, the value, and its limit (None: no limit).

    `examples` name a few of the tasks or workers.
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
    """The result of checking one run.

    `effects` counts the tasks by their number of effects, `faults` the faults by name, `counts` other events.
    `seconds` is the duration of the log.
    """

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
        """The rows whose value is above the limit."""
        return tuple(row for row in self.rows if not row.ok)

    def __getitem__(self, question: str) -> Row:
        """Return the row of a question. Raises KeyError if there is none."""
        for row in self.rows:
            if row.question == question:
                return row
        raise KeyError(question)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that have JSON."""
        whole = asdict(self)
        whole["rows"] = [asdict(row) | {"ok": row.ok} for row in self.rows]
        whole["effects"] = {str(number): tasks for number, tasks in self.effects.items()}
        return whole | {"ok": self.ok}
