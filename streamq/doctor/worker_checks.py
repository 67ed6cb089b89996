"""Checks the workers: consumers that are alive or dead, entries that dead ones hold, leases, crashes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from streamq.diagnostics.safe_text import repr_of
from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import and_so, counted, first_names, make_finding, redis_cli_command
from streamq.doctor.observations import Consumer, Observations
from streamq.wire.keys import RELEASED_CONSUMER

_FIRST_WORKER_WAIT: Final = 60.0  # seconds that tasks may wait for a first worker
_TAKEOVER_LEASES: Final = 3.0  # visibility timeouts after which another worker must have taken over
_DEPLOY: Final = 60.0  # seconds that a task may wait for a worker that knows it, as in a rolling deploy
_MAX_SHOWN: Final = 5


def workers(observed: Observations) -> Iterator[Finding]:
    """Check that a worker is alive, and that entries of dead workers are taken over."""
    if not all(
        observed.could_read(tier.keys.stream, "xinfo|groups", "xinfo|consumers", "xlen")
        and observed.could_read(tier.keys.alive, "zrange")
        for tier in observed.tiers
    ):
        return
    alive = observed.live_consumers()
    waiting = sum(tier.waiting(observed.group) for tier in observed.tiers)
    problems = [*_no_worker(observed, alive), *_dead_consumers(observed), *_not_renewed(observed)]
    yield from problems
    if alive and not problems:
        unserved = [tier.keys.stream for tier in observed.tiers if not tier.is_served(observed.now)]
        none = f"; none of them serves {', '.join(unserved)}" if unserved else ""
        yield make_finding(
            "workers_fine",
            f"{counted(len(alive), 'worker is', 'workers are')} alive; {counted(waiting, 'task waits', 'tasks wait')}"
            f"{none}",
            workers=alive, waiting=waiting, unserved=unserved,
        )  # fmt: skip


def _no_worker(observed: Observations, alive: Sequence[str]) -> Iterator[Finding]:
    """Find tasks in streams that no worker serves: each worker serves the tiers that it was given."""
    now = observed.now
    unserved = [
        tier
        for tier in observed.tiers
        if not tier.is_served(now) and (tier.waiting(observed.group) or tier.orphaned(now))
    ]
    if not unserved:
        return
    waiting = sum(tier.waiting(observed.group) for tier in unserved)
    orphaned = sum(tier.orphaned(now) for tier in unserved)
    since = [tier.waits_since for tier in unserved if tier.waits_since is not None]
    since += [one.alive_until for tier in unserved for one in tier.consumers if one.alive_until and one.pending]
    age = max(0.0, now - min(since, default=now))
    streams = [tier.keys.stream for tier in unserved]
    who, remedy = "no worker is alive", f"start a worker: {observed.worker_command()}"
    elsewhere = [] if alive or any(tier.groups for tier in unserved) else _served_elsewhere(observed)
    if elsewhere:
        others = first_names(elsewhere, _MAX_SHOWN)
        who = f"no worker of these tiers was ever there, while workers of other tiers are alive: {others}"
        remedy = (
            "send tasks to tiers that the workers have (--tiers and --tier of streamq enqueue); to look at those: "
            f"{observed.command('doctor', streams=elsewhere[:_MAX_SHOWN])}; to run what waits here: "
            f"{and_so(observed.bring_home(streams[0]), len(streams) - 1)}"
        )
    if alive:
        others = counted(len(alive), "worker is alive, and serves", "workers are alive, and serve")
        who = f"no worker serves {', '.join(streams)} ({others} other streams)"
        weights = ",".join(f"{tier.name}=1" for tier in unserved)
        serve = observed.worker_command(weights=weights)
        remedy = f"start a worker for them: {serve}; without --tiers it serves all"
    yield make_finding(
        "no_worker" if age > _FIRST_WORKER_WAIT or elsewhere else "no_worker_yet",
        f"{counted(waiting + orphaned, 'task waits', 'tasks wait')}, the oldest for {_duration_text(age)}, and {who}",
        remedy, waiting=waiting, orphaned=orphaned, oldest_s=round(age, 1), workers=list(alive), unserved=streams,
        by_stream={tier.keys.stream: tier.waiting(observed.group) for tier in observed.tiers},
    )  # fmt: skip


def _served_elsewhere(observed: Observations) -> list[str]:
    """Return streams of tiers that this broker does not have, and that workers serve."""
    return [other.name for other in observed.other_streams if other.alive]


def unknown_tasks(observed: Observations) -> Iterator[Finding]:
    """Report tasks whose name no worker knows: longer than a rolling deploy takes."""
    late = {one.name: one for one in observed.unknown_tasks if observed.now - one.since > _DEPLOY}
    if not late:
        return
    oldest = sorted(late.values(), key=lambda one: one.since)
    shown = ", ".join(
        f"{repr_of(one.name)} for {_duration_text(observed.now - one.since)}" for one in oldest[:_MAX_SHOWN]
    )
    more = f" and {len(oldest) - _MAX_SHOWN} more" if len(oldest) > _MAX_SHOWN else ""
    number = counted(sum(one.count for one in oldest), "task waits", "tasks wait")
    yield make_finding(
        "unknown_tasks",
        f"{number} for a worker that knows the name: {shown}{more}",
        "start a worker of the modules that have these tasks, or correct the name where it is sent; after the time of "
        "--unknown-wait (300 s by default) each becomes a dead letter, unknown_task, that can be replayed",
        tasks={one.name: {"waiting": one.count, "oldest_s": round(observed.now - one.since, 1)} for one in oldest},
    )  # fmt: skip


def _dead_consumers(observed: Observations) -> Iterator[Finding]:
    """Check the consumers that are not alive: those with pending entries, and those without."""
    overdue: list[dict[str, Any]] = []
    due: list[dict[str, Any]] = []
    unknown: list[dict[str, Any]] = []
    empty: list[str] = []
    for tier in observed.tiers:
        for consumer in tier.consumers:
            if consumer.name == RELEASED_CONSUMER or observed.is_alive(consumer):
                continue
            if not consumer.pending:
                empty.append(consumer.name)
                continue
            row = _evidence_row(tier.keys.stream, consumer, observed.now)
            if consumer.alive_until is None:
                unknown.append(row)
            else:
                in_time = observed.now - consumer.alive_until <= _TAKEOVER_LEASES * consumer.lease
                (due if in_time else overdue).append(row)
    served = {tier.keys.stream for tier in observed.tiers if tier.is_served(observed.now)}
    yield from _dead_with_entries(overdue, due, unknown, served, observed.group, observed.worker_command())
    if empty:
        names = list(dict.fromkeys(empty))
        message = (
            f"{counted(len(names), 'dead consumer has', 'dead consumers have')} no pending entries: "
            f"the next sweep of a worker removes {'it' if len(names) == 1 else 'them'}"
        )
        yield make_finding("dead_consumers", message, consumers=names)


def _dead_with_entries(
    overdue: list[dict[str, Any]],
    due: list[dict[str, Any]],
    unknown: list[dict[str, Any]],
    served: Collection[str],
    group: str,
    worker: str,
) -> Iterator[Finding]:
    if overdue:
        unserved = list(dict.fromkeys(row["stream"] for row in overdue if row["stream"] not in served))
        why = f"no worker is alive for {', '.join(unserved)}"
        if not unserved:
            why = "the workers that are alive had no free capacity"
        longest = max(row["dead_for_s"] for row in overdue)
        yield make_finding(
            "orphans",
            f"{_pending(overdue)} pending for dead workers, for up to {_duration_text(longest)}: {why}",
            f"start a worker, or one more: {worker}", consumers=overdue,
        )  # fmt: skip
    if due:
        message = f"{_pending(due)} pending for workers that died a moment ago; another worker takes over soon"
        yield make_finding("takeover_due", message, consumers=due)
    if unknown:
        names = first_names([str(row["consumer"]) for row in unknown], _MAX_SHOWN)
        row = unknown[0]
        yield make_finding(
            "unknown_consumer",
            f"{_pending(unknown)} pending for consumers without any heartbeat: {names}",
            "a sweep takes them over when they are idle for longer than the longest lease; is it your own program? "
            + redis_cli_command("XPENDING", row["stream"], group, "-", "+", "10", row["consumer"]), consumers=unknown,
        )  # fmt: skip


def _not_renewed(observed: Observations) -> Iterator[Finding]:
    """Find entries whose consumer is alive and has not renewed them for three visibility timeouts."""
    rows = []
    for tier in observed.tiers:
        live_consumers = {consumer.name: consumer for consumer in tier.consumers if observed.is_alive(consumer)}
        rows += [
            {
                "stream": tier.keys.stream,
                "entry": entry.entry_id,
                "consumer": entry.consumer,
                "idle_s": round(entry.idle, 1),
            }
            for entry in tier.stale
            if entry.consumer in live_consumers and entry.idle > 3 * live_consumers[entry.consumer].lease
        ]
    if rows:
        message = f"{counted(len(rows), 'task does', 'tasks do')} not run: pending for living workers, and not renewed"
        remedy = "a sweep takes them over; if they stay pending, restart those workers and report it"
        yield make_finding("lease_not_renewed", message, remedy, entries=rows)


def crashes(observed: Observations) -> Iterator[Finding]:
    """Report the tasks that were running when workers died."""
    for tier in observed.tiers:
        crash_counts = {entry: len(names.split()) for entry, names in tier.crashes.items() if ":" not in entry}
        convicted = [entry.removesuffix(":alone") for entry, mark in tier.crashes.items() if mark == "!"]
        suspects = {entry: count for entry, count in crash_counts.items() if count >= 2 and entry not in convicted}
        crashed_once = [entry for entry, count in crash_counts.items() if count == 1 and entry not in convicted]
        evidence = {"stream": tier.keys.stream, "evidence": dict(list(tier.crashes.items())[: 4 * _MAX_SHOWN])}
        if convicted:
            crashed = counted(
                len(convicted),
                "task crashed its workers and becomes a dead letter next",
                "tasks crashed their workers and become dead letters next",
            )
            message = f"{tier.keys.stream}: {crashed}"
            remedy = redis_cli_command("XRANGE", tier.keys.stream, convicted[0], convicted[0])
            yield make_finding("crash_verdict", message, remedy, entries=convicted, **evidence)
        if suspects:
            first = next(iter(suspects))
            message = (
                f"{tier.keys.stream}: {counted(len(suspects), 'task was', 'tasks were')} running when several workers "
                "died: each now runs alone"
            )
            remedy = f"find out what the task does: {redis_cli_command('XRANGE', tier.keys.stream, first, first)}"
            yield make_finding("suspects", message, remedy, entries=suspects, **evidence)
        if crashed_once:
            were = counted(len(crashed_once), "task was", "tasks were")
            message = f"{tier.keys.stream}: {were} running when a worker died"
            yield make_finding("crash_evidence", message, entries=crashed_once, **evidence)


def _evidence_row(stream: str, consumer: Consumer, now: float) -> dict[str, Any]:
    dead_for = None if consumer.alive_until is None else round(now - consumer.alive_until, 1)
    return {
        "stream": stream, "consumer": consumer.name, "pending": consumer.pending, "idle_s": round(consumer.idle, 1),
        "dead_for_s": dead_for,
    }  # fmt: skip


def _pending(rows: list[dict[str, Any]]) -> str:
    return counted(sum(row["pending"] for row in rows), "task is", "tasks are")


def _duration_text(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
