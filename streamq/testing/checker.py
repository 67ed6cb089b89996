"""The checker: goes through a log once, in the order of its lines, and says which promises held.

Pure: no I/O, no clock. It keeps one integer for each task (`history.py`), so a log of millions of records
fits. `questions.py` asks what can only be asked at the end.

What the log cannot order, it does not judge. The lines of one process are in order; those of two processes
are in the order of their writes, and each write comes after what it tells of. So a retry may be started
by B before A's line says that the server has A's retry: that is another entry of the stream, which tells it
from a redelivery. And a process that was frozen may write late: what it says first afterwards is not held
against others.

A redelivery is *live* if A had started the task, had not settled it, and was well throughout the last
`lease * 4/3 + slack`: alive, not frozen, cut off or blocked, and the server up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from streamq.testing.findings import Findings, Question, Worst
from streamq.testing.fleet import Fleet
from streamq.testing.history import ENDED, NO_BUDGET, Is, Lost, Run, Task, Tasks
from streamq.testing.questions import Ledger, rows
from streamq.testing.recorder import TORN, Record
from streamq.testing.verdict import FinalState, Limits, Report

EARLY = 0.01  # seconds that a start may come before its time: the server counts milliseconds
IN_FLIGHT = 0.1  # seconds that the reply to an enqueue may have been under way when the server lost its data

_ACCEPTED, _UNKNOWN, _REFUSED = int(Is.ACCEPTED), int(Is.UNKNOWN), int(Is.REFUSED)
_ACKED, _DEAD, _WITHDRAWN = int(Is.ACKED), int(Is.DEAD), int(Is.WITHDRAWN)
_CULPRIT, _FORGIVEN, _ENDED = int(Is.CULPRIT), int(Is.FORGIVEN), int(ENDED)
_GUARDED = frozenset({"retry", "postpone", "dead"})  # carried out only for who holds the delivery
_TIERS = 256


def check(records: Iterable[Record], final: FinalState, limits: Limits) -> Report:
    """Return what a log and the final state of Redis say about the promises.

    `records` must come in the order in which they were written (`read` does that). Raises LogError where
    `records` does.
    """
    checker = Checker(limits)
    for record in records:
        checker.feed(record)
    return checker.report(final)


class Checker:
    """Takes one record after the other; `report` ends it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tasks = Tasks()
        self._found = Findings()
        self._fleet = Fleet(limits, self._found)
        self._ledger = Ledger()
        self._due: dict[str, float] = {}  # of delayed tasks that have not started
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
            "died": self._died, "exit": self._exited, "stopped": self._stopped, "wiped": self._wipe,
            "frozen": self._impaired, "cut": self._impaired, "blocked": self._impaired,
            "thawed": self._recovered, "healed": self._recovered, "unblocked": self._recovered,
            "up": self._up, "stop": fleet.stop, "stopping": fleet.stopping, "down": fleet.down, "back": fleet.back,
            "fault": self._fault, TORN: self._torn,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<Checker {self._records} records, {self._tasks!r}, {self._found!r}>"

    def feed(self, record: Record) -> None:
        """Take the next record. Kinds that it does not know tell it nothing."""
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
        """Return the answers. Nothing may be fed any more."""
        self._fleet.finish()
        ledger = self._ledger
        ledger.torn_allowed = self._fleet.deaths + self._torn_last
        answers = rows(self._tasks, self._fleet, self._found, ledger, final, self._limits)
        return Report(
            rows=tuple(answers), records=self._records, tasks=len(self._tasks), faults=dict(ledger.faults),
            effects=dict(sorted(ledger.effects.items())), counts=dict(ledger.counts),
            seconds=self._end - (self._begin or 0.0),
        )  # fmt: skip

    # --- producers ---------------------------------------------------------------------------------

    def _accepted(self, record: Record) -> None:
        at, _, _, task_id, details = record
        task = self._announced(record)
        task.flags |= _ACCEPTED
        if self._wiped is not None and details.get("sent", at - IN_FLIGHT) <= self._wiped:
            task.flags |= _FORGIVEN
        if task.starts:
            self._waited(task, task_id, 0.0)  # its start was written first
        elif not task.flags & _ENDED:
            task.changed = int(at * 1000)
            if (due := details.get("due")) is not None:
                self._due[task_id] = due
        self._tasks.put(task_id, task)

    def _announced(self, record: Record) -> Task:
        """Return a task with what its producer says of it."""
        task, details = self._tasks.take(record.task), record.details
        tiers = self._ledger.tiers
        task.tier = tiers.setdefault(details.get("tier", ""), len(tiers) % _TIERS)
        if (retries := details.get("retries")) is not None:
            task.budget = min(retries, NO_BUDGET - 1)
        if self._limits.culprits is not None and self._limits.culprits(record.task, details.get("name", "")):
            task.flags |= _CULPRIT
        return task

    def _unknown(self, record: Record) -> None:
        if record.task:
            task = self._announced(record)
            task.flags |= _UNKNOWN
            self._tasks.put(record.task, task)

    def _refused(self, record: Record) -> None:
        if record.task:
            task = self._tasks.take(record.task)
            task.flags |= _REFUSED
            self._tasks.put(record.task, task)

    def _withdrawn(self, record: Record) -> None:
        task = self._tasks.take(record.task)
        self._ended(record, task, _WITHDRAWN)
        self._tasks.put(record.task, task)

    def _waited(self, task: Task, task_id: str, seconds: float) -> None:
        self._ledger.waits.setdefault(task.tier, Worst()).add(seconds, task_id)

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
            self._found.note(Question.REFUSED, f"{task_id}, which its sender withdrew: started by {who} at {at:.3f}")
        entry = details.get("entry", "")
        run = task.run_of(who, entry)
        if run is not None and not run.started:  # if it was lost meanwhile, this one has not noticed yet
            run.started = True
        else:
            self._taken(record, task, entry, started=True)
        self._tasks.put(task_id, task)

    def _first_start(self, task: Task, task_id: str, at: float) -> None:
        since = task.changed / 1000
        if task_id in self._due:
            due = self._due.pop(task_id)
            if at < due - EARLY:
                self._found.note(Question.EARLY, f"{task_id} by {due - at:.3f} s")
            since = max(since, due)
        self._waited(task, task_id, at - since)

    def _reclaimed(self, record: Record) -> None:
        task = self._tasks.take(record.task)
        self._taken(record, task, record.details.get("entry", ""), started=False)
        self._tasks.put(record.task, task)

    def _taken(self, record: Record, task: Task, entry: str, *, started: bool) -> None:
        """Somebody has a delivery now. Who had it before has lost it, and should not have if it was well."""
        at, who, _, task_id, _ = record
        for run in tuple(task.runs):
            if run.entry == entry:
                self._lost(record, task, run)
            else:  # settled, and the next entry was faster than the line that says so
                self._unstick(task_id, run, at)
                if run.orphaned:
                    self._tasks.closed(task_id, task, run)
        if task.flags & (_ENDED | _FORGIVEN) in (_ACKED, _DEAD):
            self._judge(record, self._fleet.name(task.holder), "which had settled it")
        self._tasks.opened(task_id, task, Run(who, entry, started=started))
        task.holder = self._fleet.member(who).number

    def _lost(self, record: Record, task: Task, run: Run) -> None:
        at, who, _, task_id, _ = record
        if run.started and run.lost is Lost.NO and not run.orphaned:
            self._judge(record, run.who, "which was running it")
        self._unstick(task_id, run, at)
        if run.orphaned or (run.who == who and not run.started):
            self._tasks.closed(task_id, task, run)
        elif run.lost is not Lost.YES:
            run.lost = Lost.PERHAPS if self._fleet.disturbed(who, at) else Lost.YES

    def _judge(self, record: Record, owner: str, state: str) -> None:
        """A delivery was taken from its owner: was there a reason?"""
        at, who, what, task_id, _ = record
        fleet = self._fleet
        if fleet.disturbed(owner, at) or fleet.disturbed(who, at) or fleet.may_release(owner, at):
            self._ledger.counts["redeliveries excused"] += 1
        else:
            how = "started" if what == "start" else "reclaimed"
            self._found.note(Question.LIVE, f"{task_id} {how} by {who} at {at:.3f}, from {owner}, {state} and was well")

    def _effect(self, record: Record) -> None:
        task = self._tasks.take(record.task)
        task.effects += 1
        mine = [run for run in task.runs if run.who == record.who and run.started]
        idle = [run for run in mine if not run.acted]
        if idle:
            idle[-1].acted = True
        elif (mine or task.effects > max(1, task.starts)) and not task.flags & _FORGIVEN:
            # Forgiven: the server forgot that task, its id with it, and was sent it once more.
            self._found.note(
                Question.REPEATED, f"{record.task}: effect {task.effects} by {record.who} at {record.at:.3f}"
            )
        self._tasks.put(record.task, task)

    # --- the ends of runs ----------------------------------------------------------------------------

    def _settled(self, record: Record) -> None:
        at, who, _, task_id, details = record
        outcome, entry = details.get("outcome", "ack"), details.get("entry", "")
        self._ledger.counts[outcome] += 1
        if outcome == "skip":  # another group's affair
            return
        task = self._tasks.take(task_id)
        if outcome in _GUARDED:
            self._check_holder(record, task, entry)
        self._close(record, task, entry)
        match outcome:
            case "ack":
                if not task.effects and self._limits.effects:
                    self._found.note(Question.UNDONE, f"{task_id} by {who} at {at:.3f}")
                self._ended(record, task, _ACKED)
            case "cancelled":
                self._ended(record, task, _ACKED)
            case "dead":
                self._buried(record, task, details.get("reason", ""))
            case "retry":
                task.retried = max(task.retried, details.get("attempt", task.retried + 1))
                self._check_budget(record, task)
        self._tasks.put(task_id, task)

    def _check_holder(self, record: Record, task: Task, entry: str) -> None:
        """Only who holds a delivery may have it retried or buried."""
        at, who, _, task_id, details = record
        run = task.run_of(who, entry)
        if run is not None:
            stale = run.lost is Lost.YES
        else:
            stale = any(other.entry == entry and other.started and other.lost is Lost.NO and not other.orphaned
                        for other in task.runs)  # fmt: skip
        if stale:
            self._found.note(
                Question.STALE, f"{task_id}: {details.get('outcome')} by {who} at {at:.3f}, not its holder"
            )

    def _check_budget(self, record: Record, task: Task) -> None:
        if task.retried > task.budget and task.budget != NO_BUDGET:
            self._found.note(Question.RETRIES, f"{record.task}: retry {task.retried} of {task.budget} ({record.who})")

    def _buried(self, record: Record, task: Task, reason: str) -> None:
        self._ended(record, task, _DEAD)
        self._ledger.dead[record.task] = reason
        spent = task.retried >= task.budget or task.budget == NO_BUDGET
        if reason == "retries_exhausted" and not spent and not task.flags & _FORGIVEN:
            self._found.note(Question.EARLY_DEATH, f"{record.task} died after {task.retried} of {task.budget}")

    def _ended(self, record: Record, task: Task, flag: int) -> None:
        """This task is over; once, if all is well."""
        for run in task.runs:
            self._unstick(record.task, run, record.at)
        task.flags |= flag
        task.ends += 1
        task.changed = int(record.at * 1000)
        if record.what == "settled":
            task.holder = self._fleet.member(record.who).number
        if task.ends > 1:
            self._found.note(Question.TWICE, f"{record.task}: end {task.ends} by {record.who} at {record.at:.3f}")
            self._ledger.twice.add(record.task)

    def _superseded(self, record: Record) -> None:
        self._ledger.counts["superseded"] += 1
        task = self._tasks.take(record.task)
        self._close(record, task, record.details.get("entry", ""))
        self._tasks.put(record.task, task)

    def _close(self, record: Record, task: Task, entry: str) -> None:
        """A worker is done with a delivery: with the run that lost it, if it says that others were first."""
        who, task_id = record.who, record.task
        mine = [run for run in task.runs if run.who == who and run.entry == entry]
        if not mine:
            return
        run = sorted(mine, key=_lost, reverse=record.what == "superseded")[0]
        self._unstick(task_id, run, record.at)
        self._tasks.closed(task_id, task, run)
        if not run.acted:  # of two runs of one worker, the effect may have been this one's
            for other in task.runs:
                other.acted = other.acted and other.who != who

    # --- the world -----------------------------------------------------------------------------------

    def _unstick(self, task_id: str, run: Run, at: float) -> None:
        """A task goes on that was stuck with its worker."""
        if run.stuck is not None:
            self._ledger.recovery.add(self._fleet.uptime.at(at) - run.stuck, f"{task_id}, stuck with {run.who}")
            run.stuck = None

    def _stick(self, who: str, at: float) -> None:
        for _, _, run in self._tasks.of(who):
            if run.stuck is None and run.lost is Lost.NO:
                run.stuck = self._fleet.uptime.at(at)

    def _orphan(self, who: str) -> None:
        for task_id, task, run in self._tasks.of(who):
            if run.lost is Lost.NO:
                run.orphaned = True
            else:
                self._tasks.closed(task_id, task, run)
                self._tasks.put(task_id, task)

    def _up(self, record: Record) -> None:
        self._orphan(record.who)
        self._fleet.up(record)

    def _died(self, record: Record) -> None:
        self._ledger.counts["died"] += self._fleet.died(record)
        self._stick(record.who, record.at)
        self._orphan(record.who)

    def _exited(self, record: Record) -> None:
        if record.details.get("code", 0) < 0:  # a signal ended it
            self._died(record)
        else:
            self._fleet.exit(record)
            self._orphan(record.who)

    def _stopped(self, record: Record) -> None:
        self._fleet.stopped(record)
        self._orphan(record.who)

    def _impaired(self, record: Record) -> None:
        self._ledger.counts[record.what] += 1
        self._fleet.impaired(record)
        self._stick(record.who, record.at)

    def _recovered(self, record: Record) -> None:
        if self._fleet.recovered(record):
            for task_id, _, run in self._tasks.of(record.who):
                if not run.orphaned:
                    self._unstick(task_id, run, record.at)

    def _wipe(self, record: Record) -> None:
        """The server lost what happened after `since`; everything, if that is not said."""
        self._ledger.counts["wiped"] += 1
        self._wiped = record.at
        self._fleet.upset(record.at)
        self._tasks.forgive(record.details.get("since"))

    def _fault(self, record: Record) -> None:
        self._ledger.faults[str(record.details.get("name", "?"))] += 1

    def _torn(self, record: Record) -> None:
        self._torn_last = True
        self._found.note(Question.TORN, f"line {record.details.get('line', '?')}")


def _lost(run: Run) -> int:
    return run.lost
