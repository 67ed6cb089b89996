"""The checker: reads a log once, in the order of its lines, and reports which promises held.

Pure: no I/O, no clock. It keeps one integer for each task (`task_history.py`), so that a log of millions of
records fits into memory. `final_checks.py` has the checks that are possible only at the end.

The checker does not judge an order that the log does not show. The lines of one process are in order. The
lines of two processes are in the order of their writes, and a write comes after the event that it
records. So B may start a retry before A's line says that the server has the retry. That is another entry of the
stream, and so no redelivery. A process that was frozen may write late, so its first record after that is
not used against other workers.

A redelivery from worker A is *live* if A had started the task, had not settled it, and was well for the last
`lease * 4/3 + slack` seconds: alive, not frozen, cut off or blocked, and the server was up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from streamq.testing.final_checks import RunStatistics, report_rows
from streamq.testing.findings import Findings, Maximum, Question
from streamq.testing.fleet import Fleet
from streamq.testing.recorder import TORN, Record
from streamq.testing.report import FinalState, Limits, Report
from streamq.testing.task_history import ENDED, NO_BUDGET, Lost, Run, Task, TaskFlag, Tasks

EARLY = 0.01  # seconds that a start may come before its due time: the server counts milliseconds
IN_FLIGHT = 0.1  # longest time (s) between the server's reply to an enqueue and the record of it

_ACCEPTED, _UNKNOWN, _REFUSED = int(TaskFlag.ACCEPTED), int(TaskFlag.UNKNOWN), int(TaskFlag.REFUSED)
_ACKED, _DEAD, _WITHDRAWN = int(TaskFlag.ACKED), int(TaskFlag.DEAD), int(TaskFlag.WITHDRAWN)
_CULPRIT, _FORGIVEN, _ENDED = int(TaskFlag.CULPRIT), int(TaskFlag.FORGIVEN), int(ENDED)
# Outcomes that the server accepts only from the worker that holds the delivery.
_HOLDER_ONLY = frozenset({"retry", "postpone", "dead"})
_MAX_TIERS = 256


def check(records: Iterable[Record], final: FinalState, limits: Limits) -> Report:
    """Check a log and the final state of Redis against the promises, and return the report.

    `records` must be in the order in which they were written, as `read` yields them. Raises LogError if
    `records` does.
    """
    checker = Checker(limits)
    for record in records:
        checker.feed(record)
    return checker.report(final)


class Checker:
    """Checks one record after the other. `report` ends the check and returns the report."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tasks = Tasks()
        self._findings = Findings()
        self._fleet = Fleet(limits, self._findings)
        self._stats = RunStatistics()
        self._due: dict[str, float] = {}  # due times of delayed tasks that have not started
        self._wiped: float | None = None
        self._records = 0
        self._begin: float | None = None
        self._end = 0.0
        self._torn_last = False
        fleet = self._fleet
        self._handlers: dict[str, Callable[[Record], object]] = {
            "accepted": self._accepted, "unknown": self._unknown, "refused": self._refused,
            "withdrawn": self._withdrawn, "start": self._start, "reclaimed": self._reclaimed,
            "effect": self._effect, "settled": self._settled, "superseded": self._superseded,
            "died": self._died, "exit": self._exited, "stopped": self._stopped, "wiped": self._server_lost_data,
            "frozen": self._impaired, "cut": self._impaired, "blocked": self._impaired,
            "thawed": self._recovered, "healed": self._recovered, "unblocked": self._recovered,
            "up": self._up, "stop": fleet.stop, "stopping": fleet.stopping, "down": fleet.down, "back": fleet.back,
            "fault": self._fault, TORN: self._torn,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<Checker {self._records} records, {self._tasks!r}, {self._findings!r}>"

    def feed(self, record: Record) -> None:
        """Take the next record. Records of unknown kinds are ignored."""
        self._records += 1
        self._torn_last = False
        at = record[0]
        if at > self._end:
            self._end = at
            if self._begin is None:
                self._begin = at
        handler = self._handlers.get(record[2])
        if handler is not None:
            handler(record)

    def report(self, final: FinalState) -> Report:
        """Return the report. Do not call `feed` after this."""
        self._fleet.finish()
        stats = self._stats
        stats.torn_allowed = self._fleet.deaths + self._torn_last
        answers = report_rows(self._tasks, self._fleet, self._findings, stats, final, self._limits)
        return Report(
            rows=tuple(answers), records=self._records, tasks=len(self._tasks), faults=dict(stats.faults),
            effects=dict(sorted(stats.effects.items())), counts=dict(stats.counts),
            seconds=self._end - (self._begin or 0.0),
        )  # fmt: skip

    # --- producers ---------------------------------------------------------------------------------

    def _accepted(self, record: Record) -> None:
        at, _, _, task_id, details = record
        task = self._task_of_producer(record)
        task.flags |= _ACCEPTED
        if self._wiped is not None and details.get("sent", at - IN_FLIGHT) <= self._wiped:
            task.flags |= _FORGIVEN
        if task.starts:
            self._add_wait(task, task_id, 0.0)  # its start was recorded first
        elif not task.flags & _ENDED:
            task.changed = int(at * 1000)
            if (due := details.get("due")) is not None:
                self._due[task_id] = due
        self._tasks.put(task_id, task)

    def _task_of_producer(self, record: Record) -> Task:
        """Return a task, updated with the details that its producer recorded."""
        task, details = self._tasks.take(record.task), record.details
        tiers = self._stats.tiers
        task.tier = tiers.setdefault(details.get("tier", ""), len(tiers) % _MAX_TIERS)
        if (retries := details.get("retries")) is not None:
            task.budget = min(retries, NO_BUDGET - 1)
        if self._limits.culprits is not None and self._limits.culprits(record.task, details.get("name", "")):
            task.flags |= _CULPRIT
        return task

    def _unknown(self, record: Record) -> None:
        if record.task:
            task = self._task_of_producer(record)
            task.flags |= _UNKNOWN
            self._tasks.put(record.task, task)

    def _refused(self, record: Record) -> None:
        if record.task:
            task = self._tasks.take(record.task)
            task.flags |= _REFUSED
            self._tasks.put(record.task, task)

    def _withdrawn(self, record: Record) -> None:
        task = self._tasks.take(record.task)
        self._end_task(record, task, _WITHDRAWN)
        self._tasks.put(record.task, task)

    def _add_wait(self, task: Task, task_id: str, seconds: float) -> None:
        self._stats.waits.setdefault(task.tier, Maximum()).add(seconds, task_id)

    # --- runs --------------------------------------------------------------------------------------

    def _start(self, record: Record) -> None:
        at, who, _, task_id, details = record
        task = self._tasks.take(task_id)
        if not task.starts and task.flags & _ACCEPTED:
            self._first_start(task, task_id, at)
        if (attempt := details.get("attempt", 1)) - 1 > task.retried:
            task.retried = attempt - 1
            self._check_budget(record, task)
        task.starts += 1
        if task.flags & _WITHDRAWN and not task.flags & _FORGIVEN:
            self._findings.note(
                Question.REFUSED, f"{task_id}, which its producer withdrew: started by {who} at {at:.3f}"
            )
        entry = details.get("entry", "")
        run = task.run_of(who, entry)
        if run is not None and not run.started:  # if it lost the delivery meanwhile, it does not know yet
            run.started = True
        else:
            self._delivered(record, task, entry, started=True)
        self._tasks.put(task_id, task)

    def _first_start(self, task: Task, task_id: str, at: float) -> None:
        since = task.changed / 1000
        if task_id in self._due:
            due = self._due.pop(task_id)
            if at < due - EARLY:
                self._findings.note(Question.EARLY, f"{task_id} by {due - at:.3f} s")
            since = max(since, due)
        self._add_wait(task, task_id, at - since)

    def _reclaimed(self, record: Record) -> None:
        task = self._tasks.take(record.task)
        self._delivered(record, task, record.details.get("entry", ""), started=False)
        self._tasks.put(record.task, task)

    def _delivered(self, record: Record, task: Task, entry: str, *, started: bool) -> None:
        """A worker got a delivery. The previous holder lost it; that is a violation if the holder was well."""
        at, who, _, task_id, _ = record
        for run in tuple(task.runs):
            if run.entry == entry:
                self._lose_delivery(record, task, run)
            else:  # settled already: the start of the next entry was recorded before the settlement
                self._end_stall(task_id, run, at)
                if run.orphaned:
                    self._tasks.closed(task_id, task, run)
        if task.flags & (_ENDED | _FORGIVEN) in (_ACKED, _DEAD):
            self._check_redelivery(record, self._fleet.name(task.holder), "which had settled it")
        self._tasks.opened(task_id, task, Run(who, entry, started=started))
        task.holder = self._fleet.worker(who).number

    def _lose_delivery(self, record: Record, task: Task, run: Run) -> None:
        at, who, _, task_id, _ = record
        if run.started and run.lost is Lost.NO and not run.orphaned:
            self._check_redelivery(record, run.who, "which was running it")
        self._end_stall(task_id, run, at)
        if run.orphaned or (run.who == who and not run.started):
            self._tasks.closed(task_id, task, run)
        elif run.lost is not Lost.YES:
            run.lost = Lost.PERHAPS if self._fleet.disturbed(who, at) else Lost.YES

    def _check_redelivery(self, record: Record, owner: str, state: str) -> None:
        """Report a live redelivery, unless a disturbance or a stop excuses it."""
        at, who, what, task_id, _ = record
        fleet = self._fleet
        if fleet.disturbed(owner, at) or fleet.disturbed(who, at) or fleet.may_release(owner, at):
            self._stats.counts["redeliveries excused"] += 1
        else:
            how = "started" if what == "start" else "reclaimed"
            self._findings.note(
                Question.LIVE, f"{task_id} {how} by {who} at {at:.3f}, from {owner}, {state} and was well"
            )

    def _effect(self, record: Record) -> None:
        task = self._tasks.take(record.task)
        task.effects += 1
        own_runs = [run for run in task.runs if run.who == record.who and run.started]
        without_effect = [run for run in own_runs if not run.had_effect]
        if without_effect:
            without_effect[-1].had_effect = True
        elif (own_runs or task.effects > max(1, task.starts)) and not task.flags & _FORGIVEN:
            # Forgiven: the server lost the task and its id, so it accepted the task a second time.
            self._findings.note(
                Question.REPEATED, f"{record.task}: effect {task.effects} by {record.who} at {record.at:.3f}"
            )
        self._tasks.put(record.task, task)

    # --- the ends of runs ----------------------------------------------------------------------------

    def _settled(self, record: Record) -> None:
        at, who, _, task_id, details = record
        outcome, entry = details.get("outcome", "ack"), details.get("entry", "")
        self._stats.counts[outcome] += 1
        if outcome == "skip":  # the task belongs to another group
            return
        task = self._tasks.take(task_id)
        if outcome in _HOLDER_ONLY:
            self._check_holder(record, task, entry)
        self._close_run(record, task, entry)
        match outcome:
            case "ack":
                if not task.effects and self._limits.effects:
                    self._findings.note(Question.UNDONE, f"{task_id} by {who} at {at:.3f}")
                self._end_task(record, task, _ACKED)
            case "cancelled":
                self._end_task(record, task, _ACKED)
            case "dead":
                self._dead_letter(record, task, details.get("reason", ""))
            case "retry":
                task.retried = max(task.retried, details.get("attempt", task.retried + 1))
                self._check_budget(record, task)
        self._tasks.put(task_id, task)

    def _check_holder(self, record: Record, task: Task, entry: str) -> None:
        """Report a retry or dead letter from a worker that does not hold the delivery."""
        at, who, _, task_id, details = record
        run = task.run_of(who, entry)
        if run is not None:
            stale = run.lost is Lost.YES
        else:
            stale = any(other.entry == entry and other.started and other.lost is Lost.NO and not other.orphaned
                        for other in task.runs)  # fmt: skip
        if stale:
            self._findings.note(
                Question.STALE, f"{task_id}: {details.get('outcome')} by {who} at {at:.3f}, not its holder"
            )

    def _check_budget(self, record: Record, task: Task) -> None:
        if task.retried > task.budget and task.budget != NO_BUDGET:
            self._findings.note(
                Question.RETRIES, f"{record.task}: retry {task.retried} of {task.budget} ({record.who})"
            )

    def _dead_letter(self, record: Record, task: Task, reason: str) -> None:
        self._end_task(record, task, _DEAD)
        self._stats.dead[record.task] = reason
        spent = task.retried >= task.budget or task.budget == NO_BUDGET
        if reason == "retries_exhausted" and not spent and not task.flags & _FORGIVEN:
            self._findings.note(Question.EARLY_DEATH, f"{record.task} died after {task.retried} of {task.budget}")

    def _end_task(self, record: Record, task: Task, flag: int) -> None:
        """Note the end of a task. A second end is a violation."""
        for run in task.runs:
            self._end_stall(record.task, run, record.at)
        task.flags |= flag
        task.ends += 1
        task.changed = int(record.at * 1000)
        if record.what == "settled":
            task.holder = self._fleet.worker(record.who).number
        if task.ends > 1:
            self._findings.note(Question.TWICE, f"{record.task}: end {task.ends} by {record.who} at {record.at:.3f}")
            self._stats.twice.add(record.task)

    def _superseded(self, record: Record) -> None:
        self._stats.counts["superseded"] += 1
        task = self._tasks.take(record.task)
        self._close_run(record, task, record.details.get("entry", ""))
        self._tasks.put(record.task, task)

    def _close_run(self, record: Record, task: Task, entry: str) -> None:
        """Close a run of this worker. For a `superseded` record close the run that lost its delivery first."""
        who, task_id = record.who, record.task
        own_runs = [run for run in task.runs if run.who == who and run.entry == entry]
        if not own_runs:
            return
        run = sorted(own_runs, key=_loss_rank, reverse=record.what == "superseded")[0]
        self._end_stall(task_id, run, record.at)
        self._tasks.closed(task_id, task, run)
        if not run.had_effect:  # with two runs of one worker, the effect may belong to this run
            for other in task.runs:
                other.had_effect = other.had_effect and other.who != who

    # --- workers and server --------------------------------------------------------------------------

    def _end_stall(self, task_id: str, run: Run, at: float) -> None:
        """Note how long a task waited for a worker that could not go on."""
        if run.stalled_since is not None:
            self._stats.recovery.add(self._fleet.uptime.at(at) - run.stalled_since, f"{task_id}, held by {run.who}")
            run.stalled_since = None

    def _begin_stall(self, who: str, at: float) -> None:
        for _, _, run in self._tasks.of(who):
            if run.stalled_since is None and run.lost is Lost.NO:
                run.stalled_since = self._fleet.uptime.at(at)

    def _orphan_runs(self, who: str) -> None:
        for task_id, task, run in self._tasks.of(who):
            if run.lost is Lost.NO:
                run.orphaned = True
            else:
                self._tasks.closed(task_id, task, run)
                self._tasks.put(task_id, task)

    def _up(self, record: Record) -> None:
        self._orphan_runs(record.who)
        self._fleet.up(record)

    def _died(self, record: Record) -> None:
        self._stats.counts["died"] += self._fleet.died(record)
        self._begin_stall(record.who, record.at)
        self._orphan_runs(record.who)

    def _exited(self, record: Record) -> None:
        if record.details.get("code", 0) < 0:  # a signal ended the process
            self._died(record)
        else:
            self._fleet.exit(record)
            self._orphan_runs(record.who)

    def _stopped(self, record: Record) -> None:
        self._fleet.stopped(record)
        self._orphan_runs(record.who)

    def _impaired(self, record: Record) -> None:
        self._stats.counts[record.what] += 1
        self._fleet.impaired(record)
        self._begin_stall(record.who, record.at)

    def _recovered(self, record: Record) -> None:
        if self._fleet.recovered(record):
            for task_id, _, run in self._tasks.of(record.who):
                if not run.orphaned:
                    self._end_stall(task_id, run, record.at)

    def _server_lost_data(self, record: Record) -> None:
        """The server lost all changes after `since`, or all data if `since` is absent."""
        self._stats.counts["wiped"] += 1
        self._wiped = record.at
        self._fleet.lost_data(record.at)
        self._tasks.forgive(record.details.get("since"))

    def _fault(self, record: Record) -> None:
        self._stats.faults[str(record.details.get("name", "?"))] += 1

    def _torn(self, record: Record) -> None:
        self._torn_last = True
        self._findings.note(Question.TORN, f"line {record.details.get('line', '?')}")


def _loss_rank(run: Run) -> int:
    return run.lost
