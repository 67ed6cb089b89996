"""The questions that can only be asked when the log is over, and the rows of the report.

Pure. Compares what the log says of each task with what lies in Redis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from streamq.testing.findings import Findings, Question, Worst
from streamq.testing.fleet import Fleet
from streamq.testing.history import ENDED, Is, Tasks
from streamq.testing.verdict import FinalState, Limits, Row

_CRASH_LOOP = "crash_loop"
_ACCEPTED, _UNKNOWN, _REFUSED = int(Is.ACCEPTED), int(Is.UNKNOWN), int(Is.REFUSED)
_DEAD, _CULPRIT, _FORGIVEN, _ENDED = int(Is.DEAD), int(Is.CULPRIT), int(Is.FORGIVEN), int(ENDED)


@dataclass(slots=True)
class Ledger:
    """What the checker wrote down on its way, beside its findings."""

    dead: dict[str, str] = field(default_factory=dict)  # task id -> reason, as confirmed
    twice: set[str] = field(default_factory=set)
    waits: dict[int, Worst] = field(default_factory=dict)  # by tier, see `tiers`
    tiers: dict[str, int] = field(default_factory=lambda: {"": 0})
    recovery: Worst = field(default_factory=Worst)
    culprit: Worst = field(default_factory=Worst)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    effects: Counter[int] = field(default_factory=Counter)
    torn_allowed: int = 0


def rows(
    tasks: Tasks, fleet: Fleet, found: Findings, ledger: Ledger, final: FinalState, limits: Limits
) -> Iterator[Row]:
    """Yield the answers, promise by promise."""
    _ask_tasks(tasks, found, ledger, final)
    _ask_dead(tasks, found, ledger, final, limits)
    _ask_order(fleet, found, final)
    judged = Judge(found, limits)
    yield from judged.delivery(ledger)
    yield from judged.figures(ledger)
    yield from judged.order()


class Judge:
    """Puts limits to what was found."""

    def __init__(self, found: Findings, limits: Limits) -> None:
        self._found = found
        self._limits = limits

    def __repr__(self) -> str:
        return f"<Judge of {self._found!r}>"

    def delivery(self, ledger: Ledger) -> Iterator[Row]:
        """Yield what became of tasks, P1 to P4."""
        row, limits = self._found.row, self._limits
        yield row("log", Question.TORN, ledger.torn_allowed)
        yield row("P1", Question.LOST)
        yield row("P1", Question.FORGIVEN, None)
        yield row("P1", Question.LEFT, 0 if limits.drained else None)
        yield row("P1", Question.DEAD)
        yield row("P1", Question.GONE, 0 if limits.dead_kept else None)
        yield row("P1", Question.REFUSED)
        yield row("P1 P4", Question.TWICE)
        yield row("P2", Question.UNDONE)
        yield row("P2", Question.REPEATED)
        repeated = sum(tasks for effects, tasks in ledger.effects.items() if effects > 1)
        yield Row("P2", Question.EFFECTS, repeated, 0 if limits.effects_once else None)
        yield row("P3", Question.LIVE)
        worst = ledger.recovery
        examples = (worst.example,) if worst.example else ()
        yield Row("P3", Question.RECOVERY, round(worst.value, 3), limits.recovery, "s", examples)
        yield row("P4", Question.STALE)

    def figures(self, ledger: Ledger) -> Iterator[Row]:
        """Yield what is counted and timed, P5 to P7."""
        row, limits = self._found.row, self._limits
        if limits.culprits is not None:
            yield row("P5", Question.INNOCENT)
            worst = ledger.culprit
            examples = (worst.example,) if worst.example else ()
            yield Row("P5", Question.CRASHES, worst.value, limits.max_crashes, "", examples)
        yield row("P6", Question.RETRIES)
        yield row("P6", Question.EARLY_DEATH)
        yield row("P6", Question.EARLY)
        for tier, number in ledger.tiers.items():
            if (wait := ledger.waits.get(number)) is not None:
                question = f"worst wait, {tier or 'no tier'}"
                yield Row("P7", question, round(wait.value, 3), limits.waits.get(tier), "s", (wait.example,))

    def order(self) -> Iterator[Row]:
        """Yield what the end looked like, P8 to P10."""
        row = self._found.row
        yield row("P8", Question.STOPPING)
        yield row("P8", Question.PENDING)
        yield row("P8", Question.CONSUMERS, 0 if self._limits.clean_exit else None)
        yield row("P9", Question.EXITS)
        yield row("P10", Question.KEYS)


def _ask_tasks(tasks: Tasks, found: Findings, ledger: Ledger, final: FinalState) -> None:
    """Ask of each task whether it is lost, and how often it took effect."""
    effects_of = ledger.effects
    buried = {task_id for task_id, _ in final.dead}
    waiting = frozenset[str]().union(*final.waiting.values(), final.delayed)
    for task_id, packed in tasks.all():
        effects = packed >> 16 & 0xFF
        effects_of[effects] += 1
        if packed & (_CULPRIT | _REFUSED):
            _ask_odd(task_id, packed, found, ledger)
        if packed & _ENDED or effects or task_id in waiting or task_id in buried:
            continue
        started = packed >> 24 & 0xFF
        if packed & _ACCEPTED or (started and not packed & _REFUSED):
            question = Question.FORGIVEN if packed & _FORGIVEN else Question.LOST
            found.note(question, f"{task_id}, {'started and not settled' if started else 'never started'}")
    for task_id in waiting:
        found.note(Question.LEFT, task_id)


def _ask_odd(task_id: str, packed: int, found: Findings, ledger: Ledger) -> None:
    """Ask of a task that its producer had refused, or that takes its workers down."""
    started = packed >> 24 & 0xFF
    if packed & _CULPRIT:
        ledger.culprit.add(started, task_id)
    if packed & _REFUSED and started and not packed & (_ACCEPTED | _UNKNOWN):
        found.note(Question.REFUSED, f"{task_id}: enqueue raised, and it was started {started} times")


def _ask_dead(tasks: Tasks, found: Findings, ledger: Ledger, final: FinalState, limits: Limits) -> None:
    """Ask why tasks died, and whether their letters are there, once each."""
    letters = Counter(task_id for task_id, _ in final.dead)
    for task_id, count in letters.items():
        task = tasks.take(task_id)
        ends = task.ends + count - bool(task.flags & _DEAD and task.ends)
        if ends > 1 and task_id not in ledger.twice:
            found.note(Question.TWICE, f"{task_id}: {count} dead letters, {task.ends} ends confirmed")
    for task_id in ledger.dead.keys() - letters.keys():
        if not tasks.take(task_id).flags & _FORGIVEN:
            found.note(Question.GONE, f"{task_id} ({ledger.dead[task_id]})")
    reasons = dict(final.dead) | ledger.dead
    for task_id, reason in reasons.items():
        if reason == _CRASH_LOOP and limits.culprits is not None:
            if not tasks.take(task_id).flags & _CULPRIT and not limits.culprits(task_id, ""):
                found.note(Question.INNOCENT, task_id)
        elif reason not in limits.dead_reasons:
            found.note(Question.DEAD, f"{task_id} ({reason})")


def _ask_order(fleet: Fleet, found: Findings, final: FinalState) -> None:
    """Ask what the workers left behind."""
    stopped = set(fleet.in_order())
    for tier, name, held in final.consumers:
        if not held:
            found.note(Question.CONSUMERS, f"{name} of {tier}")
        elif name in stopped:
            found.note(Question.PENDING, f"{held} of {tier} for {name}")
    for key in final.stray:
        found.note(Question.KEYS, key)
