"""What the checker remembers of each task while it goes through a log.

There may be millions of tasks. One that nobody has in hand is a single integer; a `Task` lives only while
somebody runs it. Pure: decides nothing about promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, IntFlag


class Is(IntFlag):
    """What is known of a task for good."""

    ACCEPTED = 1
    UNKNOWN = 2  # sent, outcome unknown
    REFUSED = 4
    WITHDRAWN = 8
    ACKED = 16  # or its run was cancelled, as its sender wished
    DEAD = 32
    CULPRIT = 64
    FORGIVEN = 128  # the server lost its data after this task was accepted or settled


ENDED = Is.WITHDRAWN | Is.ACKED | Is.DEAD
# The same as plain integers: an IntFlag is slow, and this runs once per record.
_FLAGS = 8
_MANY = 255  # counters stop here
NO_BUDGET = _MANY


class Lost(IntEnum):
    """Has a run lost its delivery to another? `PERHAPS`: the log cannot tell the order."""

    NO = 0
    PERHAPS = 1
    YES = 2


class Run:
    """One delivery in the hands of one worker, from the moment the log knows of it."""

    __slots__ = ("acted", "entry", "lost", "orphaned", "started", "stuck", "who")

    def __init__(self, who: str, entry: str, *, started: bool) -> None:
        self.who = who
        self.entry = entry
        self.started = started  # or else only reclaimed
        self.acted = False  # an effect was recorded
        self.lost = Lost.NO
        self.orphaned = False  # its worker died, or the server forgot it
        self.stuck: float | None = None  # since when (Uptime) its worker cannot go on

    def __repr__(self) -> str:
        return f"<Run of {self.entry} by {self.who} started={self.started} {self.lost.name}>"


class Task:
    """A task, as far as the log goes. `changed` (whole ms) is when it was accepted or last settled."""

    __slots__ = ("budget", "changed", "effects", "ends", "flags", "holder", "retried", "runs", "starts", "tier")

    def __init__(self, packed: int = NO_BUDGET << 40) -> None:
        self.runs: list[Run] = []
        self.flags = packed & 0xFF
        self.ends = packed >> 8 & 0xFF  # terminal settlements, as far as the server did not forget them
        self.effects = packed >> 16 & 0xFF
        self.starts = packed >> 24 & 0xFF
        self.retried = packed >> 32 & 0xFF
        self.budget = packed >> 40 & 0xFF
        self.tier = packed >> 48 & 0xFF
        self.holder = packed >> 56 & 0xFFFF  # the worker that had it last
        self.changed = packed >> 72

    def __repr__(self) -> str:
        return f"<Task {Is(self.flags)!r} ends={self.ends} starts={self.starts} effects={self.effects} {self.runs}>"

    def packed(self) -> int:
        """Return everything but the runs."""
        return (
            self.flags
            | min(self.ends, _MANY) << 8
            | min(self.effects, _MANY) << 16
            | min(self.starts, _MANY) << 24
            | min(self.retried, _MANY) << 32
            | self.budget << 40
            | self.tier << 48
            | self.holder << 56
            | self.changed << 72
        )

    def run_of(self, who: str, entry: str) -> Run | None:
        """Return the run of a delivery by a worker; one that was not lost before one that was."""
        found = None
        for run in self.runs:
            if run.who == who and run.entry == entry:
                if run.lost is Lost.NO:
                    return run
                found = run
        return found


class Tasks:
    """All tasks by id: those in somebody's hands as objects, the others packed."""

    def __init__(self) -> None:
        self._packed: dict[str, int] = {}
        self._open: dict[str, Task] = {}
        self.held: dict[str, set[str]] = {}  # by worker: the tasks it has runs of

    def __len__(self) -> int:
        return len(self._packed)

    def __repr__(self) -> str:
        return f"<Tasks {len(self._packed)}, {len(self._open)} of them in hand>"

    def take(self, task_id: str) -> Task:
        """Return a task, to be changed and then `put` back."""
        task = self._open.get(task_id)
        if task is None:
            packed = self._packed.get(task_id)
            return Task() if packed is None else Task(packed)
        return task

    def put(self, task_id: str, task: Task) -> None:
        """Keep what became of a task."""
        self._packed[task_id] = task.packed()
        if task.runs:
            self._open[task_id] = task
        else:
            self._open.pop(task_id, None)

    def opened(self, task_id: str, task: Task, run: Run) -> None:
        """Add a run."""
        task.runs.append(run)
        self.held.setdefault(run.who, set()).add(task_id)

    def closed(self, task_id: str, task: Task, run: Run) -> None:
        """Remove a run."""
        task.runs.remove(run)
        if not any(other.who == run.who for other in task.runs):
            self.held[run.who].discard(task_id)

    def of(self, who: str) -> Iterator[tuple[str, Task, Run]]:
        """Yield what a worker has in hand; the caller may close it."""
        for task_id in tuple(self.held.get(who, ())):
            task = self._open[task_id]
            for run in tuple(task.runs):
                if run.who == who:
                    yield task_id, task, run

    def in_hand(self) -> Iterator[tuple[str, Task]]:
        """Yield the tasks that have runs."""
        yield from tuple(self._open.items())

    def forgive(self, since: float | None) -> None:
        """The server forgot what came after `since` (s; None: everything): nothing of that counts against it."""
        for task_id, packed in self._packed.items():
            # Of a task that nobody heard to be accepted it is not known when it was sent.
            if since is None or packed >> 72 >= since * 1000 or not packed & Is.ACCEPTED:
                # No ends and no retries any more; effects and starts stay as they were.
                self._packed[task_id] = (packed | int(Is.FORGIVEN)) & ~(0xFF << 8) & ~(0xFF << 32)
        for task_id, task in self._open.items():
            for run in task.runs:
                run.orphaned, run.stuck = True, None
            kept = Task(self._packed[task_id])
            task.flags, task.ends, task.retried = kept.flags, kept.ends, kept.retried

    def ids(self) -> Iterator[str]:
        """Yield the ids of all tasks."""
        yield from self._packed

    def all(self) -> Iterator[tuple[str, int]]:
        """Yield all tasks, packed."""
        yield from self._packed.items()
