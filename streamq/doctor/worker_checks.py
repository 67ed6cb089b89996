"""Judges who works: living and dead consumers, what the dead still hold, leases, evidence of crashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import found, typed
from streamq.doctor.observations import Consumer, Facts
from streamq.wire.keys import PARKED

_NEW: Final = 60.0  # seconds that tasks may wait for the first worker
_TAKEOVER: Final = 3.0  # leases after which the living must have taken over from the dead
_SHOWN: Final = 5


def workers(facts: Facts) -> Iterator[Finding]:
    """Does anybody work, and what did those leave behind who do not?"""
    if not all(
        facts.saw(tier.keys.stream, "xinfo|groups", "xinfo|consumers", "xlen") and facts.saw(tier.keys.alive, "zrange")
        for tier in facts.tiers
    ):
        return
    living = facts.living()
    waiting = sum(tier.waiting(facts.group) for tier in facts.tiers)
    troubles = [*_nobody(facts, living, waiting), *_dead(facts, living), *_unrenewed(facts)]
    yield from troubles
    if living and not troubles:
        yield found(
            "workers_fine", f"{len(living)} workers live; {waiting} tasks wait", workers=living, waiting=waiting
        )


def _nobody(facts: Facts, living: Sequence[str], waiting: int) -> Iterator[Finding]:
    left = [one for tier in facts.tiers for one in tier.consumers if one.until is not None and one.pending]
    orphaned = sum(consumer.pending for consumer in left)
    if living or not (waiting or orphaned):
        return
    since = [tier.waits_since for tier in facts.tiers if tier.waits_since is not None]
    since += [consumer.until for consumer in left if consumer.until is not None]
    age = max(0.0, facts.now - min(since, default=facts.now))
    code = "no_worker" if age > _NEW else "no_worker_yet"
    yield found(
        code, f"{waiting + orphaned} tasks wait, the oldest for {_lasting(age)}, and no worker lives",
        "start one: streamq worker app.tasks", waiting=waiting, orphaned=orphaned, oldest_s=round(age, 1),
        by_stream={tier.keys.stream: tier.waiting(facts.group) for tier in facts.tiers},
    )  # fmt: skip


def _dead(facts: Facts, living: Sequence[str]) -> Iterator[Finding]:
    """Judge the consumers that do not live: those that hold entries, and those that hold nothing."""
    late: list[dict[str, Any]] = []
    due: list[dict[str, Any]] = []
    unknown: list[dict[str, Any]] = []
    empty: list[str] = []
    for tier in facts.tiers:
        for consumer in tier.consumers:
            if consumer.name == PARKED or facts.lives(consumer):
                continue
            if not consumer.pending:
                empty.append(consumer.name)
                continue
            row = _row(tier.keys.stream, consumer, facts.now)
            if consumer.until is None:
                unknown.append(row)
            else:
                in_time = facts.now - consumer.until <= _TAKEOVER * consumer.lease
                (due if in_time else late).append(row)
    yield from _holding(late, due, unknown, living, facts.group)
    if empty:
        names = list(dict.fromkeys(empty))
        message = f"{len(names)} consumers are dead and hold nothing: the next sweep of a worker removes them"
        yield found("dead_consumers", message, consumers=names)


def _holding(
    late: list[dict[str, Any]],
    due: list[dict[str, Any]],
    unknown: list[dict[str, Any]],
    living: Sequence[str],
    group: str,
) -> Iterator[Finding]:
    if late:
        why = "those that live have had no room for them" if living else "no worker lives to take over"
        longest = max(row["dead_for_s"] for row in late)
        yield found(
            "orphans", f"{_pending(late)} tasks are in the hands of dead workers, for up to {_lasting(longest)}: {why}",
            "start a worker, or one more: streamq worker app.tasks", consumers=late,
        )  # fmt: skip
    if due:
        message = (
            f"{_pending(due)} tasks are in the hands of workers that died lately; a living one takes over by itself"
        )
        yield found("takeover_due", message, consumers=due)
    if unknown:
        names = ", ".join(str(row["consumer"]) for row in unknown[:_SHOWN])
        row = unknown[0]
        yield found(
            "unknown_consumer",
            f"{_pending(unknown)} tasks are held by consumers that never said that they live: {names}",
            "a sweep takes them over once they are idle for longer than the longest lease; is it a program of yours? "
            + typed("XPENDING", row["stream"], group, "-", "+", "10", row["consumer"]), consumers=unknown,
        )  # fmt: skip


def _unrenewed(facts: Facts) -> Iterator[Finding]:
    """Find entries whose owner lives and has not renewed them for three of its leases."""
    rows = []
    for tier in facts.tiers:
        owners = {consumer.name: consumer for consumer in tier.consumers if facts.lives(consumer)}
        rows += [
            {"stream": tier.keys.stream, "entry": held.entry_id, "consumer": held.owner, "idle_s": round(held.idle, 1)}
            for held in tier.held
            if held.owner in owners and held.idle > 3 * owners[held.owner].lease
        ]
    if rows:
        message = f"{len(rows)} tasks are held by living workers that do not renew them: nobody runs them"
        remedy = "a sweep takes them over; if they stay, restart those workers and report it"
        yield found("lease_not_renewed", message, remedy, entries=rows)


def crashes(facts: Facts) -> Iterator[Finding]:
    """Which tasks were in the hands of workers that died?"""
    for tier in facts.tiers:
        deaths = {entry: len(names.split()) for entry, names in tier.crashes.items() if ":" not in entry}
        convicted = [entry.removesuffix(":alone") for entry, mark in tier.crashes.items() if mark == "!"]
        suspects = {entry: count for entry, count in deaths.items() if count >= 2 and entry not in convicted}
        once = [entry for entry, count in deaths.items() if count == 1 and entry not in convicted]
        seen = {"stream": tier.keys.stream, "evidence": dict(list(tier.crashes.items())[: 4 * _SHOWN])}
        if convicted:
            message = (
                f"{tier.keys.stream}: {len(convicted)} tasks took their workers down and are to be dead letters next"
            )
            look = typed("XRANGE", tier.keys.stream, convicted[0], convicted[0])
            yield found("crash_verdict", message, look, entries=convicted, **seen)
        if suspects:
            first = next(iter(suspects))
            message = f"{tier.keys.stream}: {len(suspects)} tasks were there when several workers died: they run alone"
            look = f"find out what it does: {typed('XRANGE', tier.keys.stream, first, first)}"
            yield found("suspects", message, look, entries=suspects, **seen)
        if once:
            message = f"{tier.keys.stream}: {len(once)} tasks were in the hands of a worker that died"
            yield found("crash_evidence", message, entries=once, **seen)


def _row(stream: str, consumer: Consumer, now: float) -> dict[str, Any]:
    dead_for = None if consumer.until is None else round(now - consumer.until, 1)
    return {
        "stream": stream, "consumer": consumer.name, "pending": consumer.pending, "idle_s": round(consumer.idle, 1),
        "dead_for_s": dead_for,
    }  # fmt: skip


def _pending(rows: list[dict[str, Any]]) -> int:
    return sum(row["pending"] for row in rows)


def _lasting(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
