"""Handmade logs: a clean run of several workers and tasks, into which tests plant violations."""

from __future__ import annotations

import itertools
from dataclasses import replace

from streamq.testing import FinalState, Limits, Record, Report, check

LEASE = 3.0
LIMITS = Limits(
    lease=LEASE, slack=0.5, recovery=6.0, waits={"critical": 10.0, "standard": 10.0, "bulk": 10.0}, grace=5.0,
    dead_reasons=frozenset({"rejected"}), culprits=lambda _, name: name == "killer", clean_exit=True,
)  # fmt: skip
WINDOW = LIMITS.window
WORKERS = ("w1", "w2", "w3")


class Log:
    """Records in the order of their writes. The clock advances by a millisecond with each."""

    def __init__(self):
        self.records = []
        self.now = 100.0
        self.final = FinalState()
        self.limits = LIMITS
        self._entries = itertools.count(1)
        self._entry = {}  # of each task: the newest

    def add(self, what, task="", *, who="scene", at=None, **details):
        """Write a line. `at` is when its writer read the clock, if that was earlier."""
        self.now += 0.001
        at = self.now if at is None else at
        whole = {"at": at, "who": who, "what": what, **({"task": task} if task else {}), **details}
        self.records.append(Record(at, who, what, task, whole))

    def wait(self, seconds):
        self.now += seconds

    def entry(self, task, *, new=False):
        """Return the id of a task's entry in its stream."""
        if new or task not in self._entry:
            self._entry[task] = f"{next(self._entries)}-0"
        return self._entry[task]

    # --- what the processes write

    def accepted(self, task, tier="standard", *, who="p1", **details):
        self.add("accepted", task, who=who, tier=tier, name=details.pop("name", "send"), **details)

    def start(self, who, task, *, entry=None, **details):
        self.add("start", task, who=who, entry=entry or self.entry(task), **details)

    def effect(self, who, task):
        self.add("effect", task, who=who)

    def settled(self, who, task, outcome="ack", *, entry=None, **details):
        self.add("settled", task, who=who, entry=entry or self.entry(task), outcome=outcome, **details)
        if outcome in ("retry", "postpone"):
            self.entry(task, new=True)

    def reclaimed(self, who, task, *, died=True, entry=None):
        self.add("reclaimed", task, who=who, entry=entry or self.entry(task), died=died)

    def superseded(self, who, task, *, entry=None):
        self.add("superseded", task, who=who, entry=entry or self.entry(task))

    def run(self, who, task, **details):
        """Run a task until it is acknowledged."""
        self.start(who, task, **details)
        self.effect(who, task)
        self.settled(who, task)

    def letter(self, task, reason):
        """Put a dead letter into the final state."""
        self.final = replace(self.final, dead=(*self.final.dead, (task, reason)))

    def world(self, what, *whom, **details):
        for who in whom:
            self.add(what, who=who, **details)

    def up(self, *whom):
        self.world("up", *whom)

    def leave(self, *whom):
        """Ask workers to stop, and record that they stop."""
        self.world("stop", *whom)
        for who in whom:
            self.add("stopping", who=who)
            self.add("stopped", who=who)
            self.add("exit", who=who, code=0)

    def check(self) -> Report:
        return check(self.records, self.final, self.limits)


def orderly(plant=None) -> Log:
    """Return a clean run of some tasks and workers; `plant(log)` happens in the middle of it.

    Succeeded at once, after a retry, after a postponement, delayed, of no listed sender; died by
    its own wish; withdrawn before and while it ran.
    """
    log = Log()
    log.up(*WORKERS)
    for number, tier in enumerate(("critical", "standard", "bulk") * 3):
        log.accepted(f"c{number}", tier, retries=3)
        log.run(WORKERS[number % 3], f"c{number}")
    log.accepted("c-retried", retries=1)
    log.start("w1", "c-retried")
    log.settled("w1", "c-retried", "retry", attempt=1)
    log.accepted("c-long", "bulk")
    log.start("w3", "c-long")
    log.start("w2", "c-retried", attempt=2)
    if plant is not None:
        plant(log)
    log.effect("w2", "c-retried")
    log.settled("w2", "c-retried")
    log.accepted("c-postponed")
    log.start("w1", "c-postponed")
    log.settled("w1", "c-postponed", "postpone")
    log.run("w1", "c-postponed", starts=2)
    log.accepted("c-delayed", due=log.now + 1)
    log.wait(1.2)
    log.run("w2", "c-delayed")
    log.add("unknown", "c-unknown", who="p1", tier="bulk", name="send")
    log.run("w2", "c-unknown")
    log.run("w2", "c-by-hand")
    log.accepted("c-rejected")
    log.start("w1", "c-rejected")
    log.settled("w1", "c-rejected", "dead", reason="rejected")
    log.letter("c-rejected", "rejected")
    log.accepted("c-withdrawn", due=log.now + 60)
    log.add("withdrawn", "c-withdrawn", who="p1")
    log.accepted("c-cancelled")
    log.start("w1", "c-cancelled")
    log.settled("w1", "c-cancelled", "cancelled")
    log.effect("w3", "c-long")
    log.settled("w3", "c-long")
    log.leave(*WORKERS)
    return log


def violated(log: Log) -> set[str]:
    """Return the questions of the rows that were violated."""
    return {row.question for row in log.check().violations}
