"""Whether a history was as it should be: the checker's verdict, and what no log can show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from streamq.tasks.outcome import Reason
from streamq.testing import Limits, Record, Report
from streamq.testing.checker import check
from tests.simulation.plan import Plan
from tests.simulation.world import GRACE, World

ALLOWED = frozenset({Reason.RETRIES_EXHAUSTED, Reason.REJECTED, Reason.CRASH_LOOP})

CULPRITS = frozenset({"deadly", "blocking"})  # whoever blocks its worker for longer than a lease has it taken for dead

# A suspect that waited for a whole lease for the others to end runs beside them, and if its worker dies of that
# nobody is convicted: three deaths are enough only where a suspect gets to be alone.
STARTS_OF_A_CULPRIT = 8


@dataclass(frozen=True, slots=True)
class History:
    """One history after it happened."""

    plan: Plan
    log: bytes
    report: Report
    problems: tuple[str, ...]
    faults: dict[str, int] = field(default_factory=dict)
    virtual: float = 0.0  # seconds
    commands: int = 0
    busiest: int = 0

    @property
    def ok(self) -> bool:
        return self.report.ok and not self.problems

    @property
    def violations(self) -> list[str]:
        """Return what was wrong, a line for each."""
        rows = [
            f"{row.promise} {row.question}: {row.value:g} of {row.limit:g} ({'; '.join(row.examples[:3])})"
            for row in self.report.violations
            if row.limit is not None
        ]
        return [*rows, *self.problems]


def _withdrawn_unheard(records: Iterable[Record]) -> list[Record]:
    """Return what would have been recorded of a task that was withdrawn, had the answer reached who asked for it.

    Its sender; or the worker that ended its run, as it was told, and then died, or did not hear whether its settlement
    was the first. Such a task may be gone, and then nobody else has ended it. That it was lost instead cannot be seen.
    """
    unheard: dict[str, Record] = {}
    ended = set()
    runs: dict[str, str] = {}
    told: dict[str, list[Record]] = {}  # of those that ran, by worker
    for record in records:
        if record.what == "cancel-unknown":
            unheard[record.task] = record
        elif record.what == "start":
            runs[record.task] = record.who
        elif record.what == "told" and record.task in runs:
            told.setdefault(runs[record.task], []).append(record)
        elif record.what in ("trouble", "died"):
            unheard |= {one.task: one for one in told.pop(record.who, ())}
        elif record.what == "withdrawn" or record.details.get("outcome") in ("ack", "dead", "cancelled"):
            ended.add(record.task)
    return [record._replace(what="withdrawn") for task_id, record in unheard.items() if task_id not in ended]


def _mistaken(records: Iterable[Record]) -> frozenset[str]:
    """Return the tasks that died of a crash loop in which a worker was not taken down by its task.

    Whoever is killed from outside, cut off or frozen for a lease while it runs a suspect alone cannot be told
    from one that the suspect took down.
    """
    dead, found, killed_at = set(), set(), -1.0
    for record in records:
        if record.what == "fault" and record.details.get("name") == "kill":
            killed_at = record.at
        elif record.what == "died" and record.at != killed_at:
            dead.add(record.who)
        elif record.details.get("reason") == Reason.CRASH_LOOP:
            workers = record.details["error"].rpartition(": ")[2].split(", ")
            if not dead.issuperset(workers):
                found.add(record.task)
    return frozenset(found)


def limits_of(plan: Plan, mistaken: frozenset[str] = frozenset()) -> Limits:
    """Return what a history is held to; `mistaken` are tasks that may die of a crash loop."""
    return Limits(
        lease=plan.lease, slack=plan.lease / 6, grace=plan.lease * GRACE, dead_reasons=ALLOWED, clean_exit=True,
        culprits=lambda task_id, name: name in CULPRITS or task_id in mistaken, max_crashes=STARTS_OF_A_CULPRIT,
    )  # fmt: skip


def judged(world: World) -> History:
    """Return the history of a world that has been run."""
    records = list(_records(world.log))
    records += _withdrawn_unheard(records)
    report = check(records, world.final, limits_of(world.plan, _mistaken(records)))
    server = world.server
    log = b"".join(world.log) + b"%08x %d commands\n" % (server.fingerprint, server.commands)
    return History(
        world.plan, log, report, tuple(world.problems), dict(world.faults), world.virtual.elapsed(),
        server.commands, server.busiest,
    )  # fmt: skip


def _records(lines: Iterable[bytes]) -> Iterable[Record]:
    for line in lines:
        details = orjson.loads(line)
        yield Record(details["at"], details["who"], details["what"], details.get("task", ""), details)
