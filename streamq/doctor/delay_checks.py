"""Checks delayed tasks, schedules and dead letters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import and_so, counted, first_names, make_finding, redis_cli_command
from streamq.doctor.observations import Observations

_MANY_RECENT: Final = 10  # dead letters of the last hour
_NEAR_BOUND: Final = 0.9  # share of the bound
_MAX_SHOWN: Final = 3
_MOST_REMOVED: Final = 20  # schedules of one remedy


def delayed(observed: Observations) -> Iterator[Finding]:
    """Check that delayed tasks are promoted in time, and that each has an id and a message."""
    problems = list(_delayed_problems(observed))
    yield from problems
    waiting = sum(tier.delayed.waiting for tier in observed.tiers)
    read = all(observed.could_read(tier.keys.delayed, "zcard", "zcount", "zrange") for tier in observed.tiers)
    if not problems and waiting and read:
        yield make_finding(
            "delayed_fine",
            f"{counted(waiting, 'delayed task', 'delayed tasks')}, none of them overdue",
            waiting=waiting,
        )


def _delayed_problems(observed: Observations) -> Iterator[Finding]:
    for tier in observed.tiers:
        keys, delayed_set = tier.keys, tier.delayed
        if delayed_set.overdue and delayed_set.oldest_due is not None:
            late = observed.now - delayed_set.oldest_due
            why = "no worker runs, or it cannot write"
            if observed.live_consumers() and not tier.is_served(observed.now):
                why = f"no worker serves {keys.stream}"
            yield make_finding(
                "delayed_overdue",
                f"{counted(delayed_set.overdue, 'task is', 'tasks are')} overdue in {keys.delayed}, by up to "
                f"{late:.0f} s: {why}",
                f"start a worker for this tier: {observed.worker_command()}; if one runs, read its log",
                key=keys.delayed, overdue=delayed_set.overdue, late_s=round(late, 1),
            )  # fmt: skip
        if delayed_set.without_message:
            ids = list(delayed_set.without_message)
            yield make_finding(
                "delayed_without_message",
                f"{counted(len(ids), 'id has', 'ids have')} no message in {keys.delayed}: each becomes a dead letter",
                and_so(
                    f"{redis_cli_command('ZREM', keys.delayed, *ids[:_MAX_SHOWN])}, and enqueue those tasks again",
                    len(ids) - _MAX_SHOWN,
                ),
                key=keys.delayed, ids=ids,
            )  # fmt: skip
        if delayed_set.without_delay:
            ids = list(delayed_set.without_delay)
            yield make_finding(
                "message_without_delay",
                f"{counted(len(ids), 'message', 'messages')} without a due time in {keys.messages}: they never run",
                f"to run the first one: {redis_cli_command('ZADD', keys.delayed, '0', ids[0])}; to remove it: "
                f"{redis_cli_command('HDEL', keys.messages, ids[0])}",
                key=keys.messages, ids=ids,
            )  # fmt: skip


def schedules(observed: Observations) -> Iterator[Finding]:
    """Check that the ticks of schedules are sent in time, and that workers can tick them."""
    yield from _unusable_schedules(observed)
    if not observed.late_schedules:
        return
    names = sorted(observed.late_schedules, key=observed.late_schedules.__getitem__)
    late = observed.now - observed.late_schedules[names[0]]
    known = observed.late_causes
    refused = [name for name in names if name in known and known[name].refused]
    invalid = [name for name in names if name in known and not known[name].refused]
    others = [name for name in names if name not in known]
    causes = [f"{name}: {known[name].why}" for name in (*invalid, *refused)[:_MAX_SHOWN]]
    if (more := len(invalid) + len(refused) - _MAX_SHOWN) > 0:
        causes.append(f"and {more} more with a cause of their own")
    if others:
        causes.append("the others: no running worker knows them" if causes else "no running worker knows them")
    remedies = []
    if refused:
        some = first_names(refused, _MOST_REMOVED)
        remedies.append(f"give the workers the key of {some}, or store them anew with a key; see docs/signing.md")
    if invalid:
        remedies.append(f"store anew, or remove: {_remove(observed, invalid)}")
    if others:
        remedies.append(f"start a worker that knows them, or remove them: {_remove(observed, others)}")
    yield make_finding(
        "schedules_overdue",
        f"{counted(len(names), 'schedule is', 'schedules are')} overdue by up to {late:.0f} s: "
        f"{first_names(names, _MAX_SHOWN)}; {'; '.join(causes)}",
        "; ".join(remedies), names=names, late_s=round(late, 1),
    )  # fmt: skip


def _unusable_schedules(observed: Observations) -> Iterator[Finding]:
    """Report schedules that no worker can tick; those that are overdue by now are in that finding, with the cause."""
    unusable = {name: why for name, why in observed.unusable_schedules.items() if name not in observed.late_schedules}
    if not unusable:
        return
    names = list(unusable)
    more = f"; and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    causes = "; ".join(f"{name}: {unusable[name]}" for name in names[:_MAX_SHOWN])
    yield make_finding(
        "schedules_unusable",
        f"{counted(len(names), 'schedule', 'schedules')} that no worker can tick: {causes}{more}",
        f"store anew, or remove: {_remove(observed, names)}", names=unusable,
    )  # fmt: skip


def _remove(observed: Observations, names: Sequence[str]) -> str:
    return and_so(observed.command("schedules", "rm", *names[:_MOST_REMOVED]), len(names) - _MOST_REMOVED)


def dead_letters(observed: Observations) -> Iterator[Finding]:
    """Check how many dead letters there are, how many are new, and how near the bound is."""
    dead = observed.dead
    if dead.kind not in ("none", "stream"):
        return
    if dead.dropped:
        yield make_finding(
            "dead_letters_dropped",
            f"the bound of {observed.dead_key} has removed {counted(dead.dropped, 'dead letter', 'dead letters')}",
            "replay or purge dead letters sooner, or give RedisBroker(dead_letters=DeadLetterBound(...)) another bound"
            f"; forget those that were dropped with: {redis_cli_command('DEL', dead.totals)}",
            key=observed.dead_key, dropped=dead.dropped, bound=dead.bound,
        )  # fmt: skip
    if not dead.size:
        if observed.could_read(observed.dead_key, "xlen"):
            yield make_finding("dead_letters_none", "no dead letters", key=observed.dead_key)
        return
    look = observed.command("dlq", "ls")
    recent = sum(dead.recent.values())
    evidence = {
        "key": observed.dead_key,
        "size": dead.size,
        "bound": dead.bound,
        "last_hour": recent,
        "reasons": dict(dead.recent),
        "cut": dead.cut,
    }
    many = f"{recent}{' or more' if dead.more else ''}"
    lately = f", {many} from the last hour" if observed.could_read(observed.dead_key, "xrevrange") else ""
    cut = f"; {dead.cut} of them without all of their entry, see the field cut" if dead.cut else ""
    total = counted(dead.size, "dead letter", "dead letters")
    reasons = ", ".join(f"{reason or 'none'} {count}" for reason, count in dead.recent.items())
    if dead.size >= dead.bound * _NEAR_BOUND:
        yield make_finding(
            "dead_letters_near_bound",
            f"{total}; at {dead.bound}, each new one removes the oldest",
            f"{look}, {observed.command('dlq', 'replay', '--all')} or {observed.command('dlq', 'purge')}", **evidence,
        )  # fmt: skip
    if recent >= _MANY_RECENT:
        message = f"{many} new dead letters in the last hour: {reasons}{cut}"
        yield make_finding("dead_letters_growing", message, look, **evidence)
    elif dead.size < dead.bound * _NEAR_BOUND:
        message = f"{total}{lately}{cut}"
        yield make_finding("dead_letters", message, look, **evidence)
