"""The state of each task that the checker keeps while it reads a log.

There may be millions of tasks. A task without open runs is a single integer; a `Task` object exists only
while a worker has a run of it. Pure: checks no promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, IntFlag


class TaskFlag(IntFlag):
    """Facts about a task that do not change any more."""

    ACCEPTED = 1
    UNKNOWN = 2  # sent, outcome unknown
    REFUSED = 4
    WITHDRAWN = 8
    ACKED = 16  # or its run was cancelled by its producer
    DEAD = 32
    CULPRIT = 64
    FORGIVEN = 128  # the server lost its data after this task was accepted or settled


ENDED = TaskFlag.WITHDRAWN | TaskFlag.ACKED | TaskFlag.DEAD
# The same as plain integers: an IntFlag is slow, and this runs once per record.
_FLAGS = 8
_COUNTER_MAX = 255  # counters stop here
NO_BUDGET = _COUNTER_MAX


class Lost(IntEnum):
    """Has a run lost its delivery to another run? `PERHAPS`: the log does not show the order."""

    NO = 0
    PERHAPS = 1
    YES = 2


class Run:
    """One delivery that one worker holds, from its first record."""

    __slots__ = ("entry", "had_effect", "lost", "orphaned", "stalled_since", "started", "who")

    def __init__(self, who: str, entry: str, *, started: bool) -> None:
        self.who = who
        self.entry = entry
        self.started = started  # False: only reclaimed so far
        self.had_effect = False  # an effect was recorded
        self.lost = Lost.NO
        self.orphaned = False  # its worker died, or the server lost the task
        self.stalled_since: float | None = None  # the `Uptime` since which its worker cannot go on

    def __repr__(self) -> str:
        return f"<Run of {self.entry} by {self.who} started={self.started} {self.lost.name}>"


class Task:
    """A task at the current point of the log. `changed` (whole ms) is when it was accepted or last settled."""

    __slots__ = ("budget", "changed", "effects", "ends", "flags", "holder", "retried", "runs", "starts", "tier")

    def __init__(self, packed: int = NO_BUDGET << 40) -> None:
        self.runs: list[Run] = []
        self.flags = packed & 0xFF
        self.ends = packed >> 8 & 0xFF  # final settlements that the server did not lose
        self.effects = packed >> 16 & 0xFF
        self.starts = packed >> 24 & 0xFF
        self.retried = packed >> 32 & 0xFF
        self.budget = packed >> 40 & 0xFF
        self.tier = packed >> 48 & 0xFF
        self.holder = packed >> 56 & 0xFFFF  # number of the worker that held it last
        self.changed = packed >> 72

    def __repr__(self) -> str:
        return (
            f"<Task {TaskFlag(self.flags)!r} ends={self.ends} starts={self.starts} effects={self.effects} {self.runs}>"
        )

    def packed(self) -> int:
        """Return all fields except the runs as one integer."""
        return (
            self.flags
            | min(self.ends, _COUNTER_MAX) << 8
            | min(self.effects, _COUNTER_MAX) << 16
            | min(self.starts, _COUNTER_MAX) << 24
            | min(self.retried, _COUNTER_MAX) << 32
            | self.budget << 40
            | self.tier << 48
            | self.holder << 56
            | self.changed << 72
        )

    def run_of(self, who: str, entry: str) -> Run | None:
        """Return a worker's run of a delivery, one that has not lost the delivery if there is one."""
        findings = None
        for run in self.runs:
            if run.who == who and run.entry == entry:
                if run.lost is Lost.NO:
                    return run
                findings = run
        return findings


class Tasks:
    """All tasks by id: those with open runs as objects, the others as integers."""

    def __init__(self) -> None:
        self._packed: dict[str, int] = {}
        self._open: dict[str, Task] = {}
        self.held: dict[str, set[str]] = {}  # worker -> ids of tasks with open runs

    def __len__(self) -> int:
        return len(self._packed)

    def __repr__(self) -> str:
        return f"<Tasks {len(self._packed)}, {len(self._open)} of them open>"

    def take(self, task_id: str) -> Task:
        """Return a task. Change it and then `put` it back."""
        task = self._open.get(task_id)
        if task is None:
            packed = self._packed.get(task_id)
            return Task() if packed is None else Task(packed)
        return task

    def put(self, task_id: str, task: Task) -> None:
        """Store a changed task."""
        self._packed[task_id] = task.packed()
        if task.runs:
            self._open[task_id] = task
        else:
            self._open.pop(task_id, None)

    def opened(self, task_id: str, task: Task, run: Run) -> None:
        """Add an open run."""
        task.runs.append(run)
        self.held.setdefault(run.who, set()).add(task_id)

    def closed(self, task_id: str, task: Task, run: Run) -> None:
        """Remove an open run."""
        task.runs.remove(run)
        if not any(other.who == run.who for other in task.runs):
            self.held[run.who].discard(task_id)

    def of(self, who: str) -> Iterator[tuple[str, Task, Run]]:
        """Yield the open runs of a worker. The caller may close them."""
        for task_id in tuple(self.held.get(who, ())):
            task = self._open[task_id]
            for run in tuple(task.runs):
                if run.who == who:
                    yield task_id, task, run

    def forgive(self, since: float | None) -> None:
        """Forgive the tasks that the server lost: those changed after `since` (s), or all if it is None."""
        for task_id, packed in self._packed.items():
            # The time of a task without an `accepted` record is unknown.
            if since is None or packed >> 72 >= since * 1000 or not packed & TaskFlag.ACCEPTED:
                # Reset ends and retries. Effects and starts stay.
                self._packed[task_id] = (packed | int(TaskFlag.FORGIVEN)) & ~(0xFF << 8) & ~(0xFF << 32)
        for task_id, task in self._open.items():
            for run in task.runs:
                run.orphaned, run.stalled_since = True, None
            forgiven = Task(self._packed[task_id])
            task.flags, task.ends, task.retried = forgiven.flags, forgiven.ends, forgiven.retried

    def ids(self) -> Iterator[str]:
        """Yield the ids of all tasks."""
        yield from self._packed

    def all(self) -> Iterator[tuple[str, int]]:
        """Yield all tasks, packed."""
        yield from self._packed.items()
