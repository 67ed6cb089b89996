"""The checks that are possible only at the end of the log, and the rows of the report.

Pure. Compares the records of each task with the final state of Redis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from streamq.consumer.consumer_name import name_given
from streamq.testing.findings import Findings, Maximum, Question
from streamq.testing.fleet import Fleet
from streamq.testing.report import FinalState, Limits, Row
from streamq.testing.task_history import ENDED, TaskFlag, Tasks

_CRASH_LOOP = "crash_loop"
_ACCEPTED, _UNKNOWN, _REFUSED = int(TaskFlag.ACCEPTED), int(TaskFlag.UNKNOWN), int(TaskFlag.REFUSED)
_DEAD, _CULPRIT, _FORGIVEN, _ENDED = int(TaskFlag.DEAD), int(TaskFlag.CULPRIT), int(TaskFlag.FORGIVEN), int(ENDED)


@dataclass(slots=True)
class RunStatistics:
    """Counts and maxima of a run, beside the violations."""

    dead: dict[str, str] = field(default_factory=dict)  # task id -> reason of a recorded dead letter
    twice: set[str] = field(default_factory=set)
    waits: dict[int, Maximum] = field(default_factory=dict)  # by tier, see `tiers`
    tiers: dict[str, int] = field(default_factory=lambda: {"": 0})
    recovery: Maximum = field(default_factory=Maximum)
    culprit: Maximum = field(default_factory=Maximum)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    effects: Counter[int] = field(default_factory=Counter)
    torn_allowed: int = 0


def report_rows(
    tasks: Tasks, fleet: Fleet, findings: Findings, stats: RunStatistics, final: FinalState, limits: Limits
) -> Iterator[Row]:
    """Run the final checks and yield the rows, promise by promise."""
    _check_tasks(tasks, findings, stats, final)
    _check_dead_letters(tasks, findings, stats, final, limits)
    _check_leftovers(fleet, findings, final)
    report = ReportRows(findings, limits)
    yield from report.delivery(stats)
    yield from report.crashes_retries_waits(stats)
    yield from report.shutdown()


class ReportRows:
    """Makes the rows of the report and sets their limits."""

    def __init__(self, findings: Findings, limits: Limits) -> None:
        self._findings = findings
        self._limits = limits

    def __repr__(self) -> str:
        return f"<ReportRows of {self._findings!r}>"

    def delivery(self, stats: RunStatistics) -> Iterator[Row]:
        """Yield the rows about delivery and settlement, P1 to P4."""
        row, limits = self._findings.row, self._limits
        yield row("log", Question.TORN, stats.torn_allowed)
        yield row("P1", Question.LOST)
        yield row("P1", Question.FORGIVEN, None)
        yield row("P1", Question.LEFT, 0 if limits.drained else None)
        yield row("P1", Question.DEAD)
        yield row("P1", Question.GONE, 0 if limits.dead_kept else None)
        yield row("P1", Question.REFUSED)
        yield row("P1 P4", Question.TWICE)
        yield row("P2", Question.UNDONE)
        yield row("P2", Question.REPEATED)
        repeated = sum(tasks for effects, tasks in stats.effects.items() if effects > 1)
        yield Row("P2", Question.EFFECTS, repeated, 0 if limits.effects_once else None)
        yield row("P3", Question.LIVE)
        worst = stats.recovery
        examples = (worst.example,) if worst.example else ()
        yield Row("P3", Question.RECOVERY, round(worst.value, 3), limits.recovery, "s", examples)
        yield row("P4", Question.STALE)

    def crashes_retries_waits(self, stats: RunStatistics) -> Iterator[Row]:
        """Yield the rows about crashes, retries and waits, P5 to P7."""
        row, limits = self._findings.row, self._limits
        if limits.culprits is not None:
            yield row("P5", Question.INNOCENT)
            worst = stats.culprit
            examples = (worst.example,) if worst.example else ()
            yield Row("P5", Question.CRASHES, worst.value, limits.max_crashes, "", examples)
        yield row("P6", Question.RETRIES)
        yield row("P6", Question.EARLY_DEATH)
        yield row("P6", Question.EARLY)
        for tier, number in stats.tiers.items():
            if (wait := stats.waits.get(number)) is not None:
                question = f"worst wait, {tier or 'no tier'}"
                yield Row("P7", question, round(wait.value, 3), limits.waits.get(tier), "s", (wait.example,))

    def shutdown(self) -> Iterator[Row]:
        """Yield the rows about stops, exits and keys, P8 to P10."""
        row = self._findings.row
        yield row("P8", Question.STOPPING)
        yield row("P8", Question.PENDING)
        yield row("P8", Question.CONSUMERS, 0 if self._limits.clean_exit else None)
        yield row("P9", Question.EXITS)
        yield row("P10", Question.KEYS)


def _check_tasks(tasks: Tasks, findings: Findings, stats: RunStatistics, final: FinalState) -> None:
    """Check for each task whether it is lost, and count its effects."""
    effects_of = stats.effects
    dead_lettered = {task_id for task_id, _ in final.dead}
    waiting = frozenset[str]().union(*final.waiting.values(), final.delayed)
    for task_id, packed in tasks.all():
        effects = packed >> 16 & 0xFF
        effects_of[effects] += 1
        if packed & (_CULPRIT | _REFUSED):
            _check_refused_or_culprit(task_id, packed, findings, stats)
        if packed & _ENDED or effects or task_id in waiting or task_id in dead_lettered:
            continue
        started = packed >> 24 & 0xFF
        if packed & _ACCEPTED or (started and not packed & _REFUSED):
            question = Question.FORGIVEN if packed & _FORGIVEN else Question.LOST
            findings.note(question, f"{task_id}, {'started and not settled' if started else 'never started'}")
    for task_id in waiting:
        findings.note(Question.LEFT, task_id)


def _check_refused_or_culprit(task_id: str, packed: int, findings: Findings, stats: RunStatistics) -> None:
    """Check a task whose enqueue was refused, or that crashes its workers."""
    started = packed >> 24 & 0xFF
    if packed & _CULPRIT:
        stats.culprit.add(started, task_id)
    if packed & _REFUSED and started and not packed & (_ACCEPTED | _UNKNOWN):
        findings.note(Question.REFUSED, f"{task_id}: enqueue raised, and it was started {started} times")


def _check_dead_letters(
    tasks: Tasks, findings: Findings, stats: RunStatistics, final: FinalState, limits: Limits
) -> None:
    """Check the reasons of dead letters, and that each dead task has exactly one."""
    dead_letter_counts = Counter(task_id for task_id, _ in final.dead)
    for task_id, count in dead_letter_counts.items():
        task = tasks.take(task_id)
        ends = task.ends + count - bool(task.flags & _DEAD and task.ends)
        if ends > 1 and task_id not in stats.twice:
            findings.note(Question.TWICE, f"{task_id}: {count} dead letters, {task.ends} ends confirmed")
    for task_id in stats.dead.keys() - dead_letter_counts.keys():
        if not tasks.take(task_id).flags & _FORGIVEN:
            findings.note(Question.GONE, f"{task_id} ({stats.dead[task_id]})")
    reasons = dict(final.dead) | stats.dead
    for task_id, reason in reasons.items():
        if reason == _CRASH_LOOP and limits.culprits is not None:
            if not tasks.take(task_id).flags & _CULPRIT and not limits.culprits(task_id, ""):
                findings.note(Question.INNOCENT, task_id)
        elif reason not in limits.dead_reasons:
            findings.note(Question.DEAD, f"{task_id} ({reason})")


def _check_leftovers(fleet: Fleet, findings: Findings, final: FinalState) -> None:
    """Check the consumers and keys that are left."""
    stopped = set(fleet.stopped_workers())
    for tier, name, held in final.consumers:
        if not held:
            findings.note(Question.CONSUMERS, f"{name} of {tier}")
        elif name in stopped or name_given(name) in stopped:  # a recorder may have either name
            findings.note(Question.PENDING, f"{held} of {tier} for {name}")
    for key in final.stray:
        findings.note(Question.KEYS, key)
