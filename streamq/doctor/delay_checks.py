"""Judges what is delayed, and what is dead."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import found, typed
from streamq.doctor.observations import Facts

_MANY: Final = 10  # deaths in an hour
_NEAR: Final = 0.9  # of the bound
_SHOWN: Final = 3


def delayed(facts: Facts) -> Iterator[Finding]:
    """Does what is delayed come when it is due, and is it whole?"""
    troubles = list(_delayed(facts))
    yield from troubles
    waiting = sum(tier.delayed.waiting for tier in facts.tiers)
    if not troubles and waiting:
        yield found("delayed_fine", f"{waiting} tasks are delayed, and none is overdue", waiting=waiting)


def _delayed(facts: Facts) -> Iterator[Finding]:
    for tier in facts.tiers:
        keys, seen = tier.keys, tier.delayed
        if seen.overdue and seen.oldest_due is not None:
            late = facts.now - seen.oldest_due
            yield found(
                "delayed_overdue",
                f"{seen.overdue} tasks of {keys.delayed} are due, for up to {late:.0f} s, and were not moved: "
                "no worker runs, or it cannot write",
                "start one: streamq worker app.tasks; its log says what it cannot do",
                key=keys.delayed, overdue=seen.overdue, late_s=round(late, 1),
            )  # fmt: skip
        if seen.without_message:
            ids = list(seen.without_message)
            yield found(
                "delayed_without_message",
                f"{len(ids)} ids in {keys.delayed} have no message: they become dead letters",
                f"{typed('ZREM', keys.delayed, *ids[:_SHOWN])}, and send those tasks again",
                key=keys.delayed, ids=ids,
            )  # fmt: skip
        if seen.without_delay:
            ids = list(seen.without_delay)
            yield found(
                "message_without_delay", f"{len(ids)} messages in {keys.messages} are not delayed: they never run",
                f"to run it: {typed('ZADD', keys.delayed, '0', ids[0])}; if it is done: "
                f"{typed('HDEL', keys.messages, ids[0])}",
                key=keys.messages, ids=ids,
            )  # fmt: skip


def schedules(facts: Facts) -> Iterator[Finding]:
    """Does somebody tick what recurs?"""
    if not facts.late_schedules:
        return
    names = sorted(facts.late_schedules, key=facts.late_schedules.__getitem__)
    late = facts.now - facts.late_schedules[names[0]]
    yield found(
        "schedules_overdue",
        f"{len(names)} schedules were not ticked, for up to {late:.0f} s: {', '.join(names[:_SHOWN])}; "
        "no worker runs that knows them, or their definitions cannot be used",
        f"start one, or if they are not wanted any more: {shlex.join(('streamq', 'schedules', 'rm', *names[:_SHOWN]))}",
        names=names, late_s=round(late, 1),
    )  # fmt: skip


def dead_letters(facts: Facts) -> Iterator[Finding]:
    """How many tasks died, how many of them lately, and will there be room for the next?"""
    dead = facts.dead
    if dead.kind not in ("none", "stream"):
        return
    if not dead.size:
        if facts.saw(facts.dead_key, "xlen"):
            yield found("dead_letters_none", "no task is dead", key=facts.dead_key)
        return
    lately = sum(dead.lately.values())
    seen = {
        "key": facts.dead_key,
        "size": dead.size,
        "bound": dead.bound,
        "last_hour": lately,
        "reasons": dict(dead.lately),
    }
    many = f"{lately}{' or more' if dead.more else ''}"
    reasons = ", ".join(f"{reason or 'none'} {count}" for reason, count in dead.lately.items())
    if dead.size >= dead.bound * _NEAR:
        yield found(
            "dead_letters_near_bound",
            f"{dead.size} dead letters of at most {dead.bound}: then each new one removes the oldest",
            "streamq dlq ls, streamq dlq replay --all or streamq dlq purge", **seen,
        )  # fmt: skip
    if lately >= _MANY:
        message = f"{many} tasks died in the last hour: {reasons}"
        yield found("dead_letters_growing", message, "streamq dlq ls", **seen)
    elif dead.size < dead.bound * _NEAR:
        message = f"{dead.size} dead letters, {many} of them of the last hour"
        yield found("dead_letters", message, "streamq dlq ls", **seen)
