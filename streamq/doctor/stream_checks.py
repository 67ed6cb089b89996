"""Checks the streams and their groups: key types, and whether all entries will be delivered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import and_so, counted, first_names, make_finding, redis_cli_command
from streamq.doctor.observations import Group, Observations, TierObservations, entry_order, is_used_up
from streamq.doctor.read_keys import TYPES

_MOST_NAMED: Final = 5  # streams or namespaces
_MOST_APART: Final = 20  # ids in one command of a remedy
_READ: Final = ("xinfo|groups", "xinfo|stream", "xrange", "xpending")  # what says that all entries are delivered


def key_types(observed: Observations) -> Iterator[Finding]:
    """Check the type of each key."""
    type_by_key = {
        getattr(tier.keys, kind): (type_, TYPES.get(kind, type_))
        for tier in observed.tiers
        for kind, type_ in tier.types.items()
    }
    type_by_key[observed.dead_key] = (observed.dead.kind, "stream")
    for key, (type_, expected) in type_by_key.items():
        if type_ not in (expected, "none"):
            yield _wrong_type(observed, key, type_)
    for key, type_ in observed.scan.wrong.items() if observed.scan else ():
        if key not in type_by_key:
            yield _wrong_type(observed, key, type_)


def _wrong_type(observed: Observations, key: str, type_: str) -> Finding:
    aside = f"not-streamq-{key}"  # outside of the namespace: inside, it would be a key of the same kind again
    while aside.startswith(f"{observed.keys.namespace}:"):
        aside = f"not-streamq-{aside}"
    return make_finding(
        "wrong_type", f"{key} is a {type_}: another program uses this name, and commands of streamq fail",
        f"choose another --namespace, or {redis_cli_command('RENAMENX', key, aside)}", key=key, type=type_,
    )  # fmt: skip


def streams(observed: Observations) -> Iterator[Finding]:
    """Check that all entries will be delivered, and then leave the stream."""
    missing = [tier.keys.stream for tier in observed.tiers if tier.types.get("stream") == "none"]
    if missing:
        others = observed.read_instead.namespaces
        besides = f"; other namespaces have workers: {first_names(others, _MOST_NAMED)}" if others else ""
        message = (
            f"no task was ever enqueued to {', '.join(missing)}, and no worker has run: normal for a new queue{besides}"
        )
        yield make_finding("stream_missing", message, streams=missing)
    problem_found = False
    for tier in observed.tiers:
        if tier.types.get("stream", "stream") == "stream" and observed.could_read(
            tier.keys.stream, "xinfo|groups", "xinfo|stream"
        ):
            for finding in _stream_problems(tier, observed):
                problem_found = True
                yield finding
    tiers_with_group = [tier for tier in observed.tiers if tier.group(observed.group) is not None]
    read = all(observed.could_read(tier.keys.stream, *_READ) for tier in tiers_with_group)
    if tiers_with_group and read and not problem_found:
        message = "no problem in streams and groups"
        yield make_finding(
            "streams_fine", message, lengths={tier.keys.stream: tier.length for tier in tiers_with_group}
        )


def never_read(observed: Observations) -> Iterator[Finding]:
    """Find tasks where no worker was ever, while others of the server are read: they were meant for one of those.

    Workers of other tiers that are alive are named by `no_worker`.
    """
    waiting = {
        tier.keys.stream: tier.length + tier.delayed.waiting
        for tier in observed.never_read()
        if tier.length or tier.delayed.waiting
    }
    streams, namespaces = observed.read_instead.streams, observed.read_instead.namespaces
    alive = bool(observed.live_consumers()) or any(other.alive for other in observed.other_streams)
    if not waiting or not (namespaces or (streams and not alive)):
        return
    what = f"tiers: {first_names(streams, _MOST_NAMED)}" if streams else ""
    number = counted(sum(waiting.values()), "task waits", "tasks wait")
    yield make_finding(
        "never_read",
        f"{number} where no worker has ever read: {', '.join(waiting)}; workers have read other "
        f"{what or f'namespaces: {first_names(namespaces, _MOST_NAMED)}'}",
        "nothing, if the first worker is still to come; else send tasks where workers read: by the tiers and the "
        f"namespace of their module (--app of streamq enqueue); to run what waits: {observed.worker_command()}",
        waiting=waiting, read_streams=list(streams), read_namespaces=list(namespaces),
    )  # fmt: skip


def used_up(observed: Observations) -> Iterator[Finding]:
    """Check that streams can take further entries: ids only grow."""
    last = {tier.keys.stream: tier.last_id for tier in observed.tiers} | {observed.dead_key: observed.dead.last_id}
    for stream, last_id in last.items():
        if is_used_up(last_id):
            yield make_finding(
                "ids_used_up",
                f"somebody wrote the entry {last_id} to {stream}: its ids are used up, and new tasks are refused",
                f"stop its workers, copy its entries to a new stream, {redis_cli_command('DEL', stream)}, and rename "
                "the new one",
                stream=stream, last_id=last_id,
            )  # fmt: skip


def _stream_problems(tier: TierObservations, observed: Observations) -> Iterator[Finding]:
    stream, ours = tier.keys.stream, tier.group(observed.group)
    if ours is None:
        yield make_finding(
            "group_missing",
            f"{stream} has no group {observed.group!r} yet; "
            f"{counted(tier.length, 'entry waits', 'entries wait')} for its first worker",
            "nothing, if no worker has run yet: the first worker creates the group at the start of the stream",
            stream=stream, length=tier.length,
        )  # fmt: skip
    else:
        yield from _group_problems(tier, ours)
    others = [group for group in tier.groups if group.name != observed.group]
    if others:
        names = [group.name for group in others]
        message = f"{stream} has other groups: {', '.join(names)}; an entry leaves when all groups have acknowledged it"
        yield make_finding("other_groups", message, stream=stream, groups=names)
    for group in others:
        behind = group.pending or entry_order(group.delivered) < entry_order(tier.last_id)
        if group.alive == 0 and tier.length and behind:
            yield make_finding(
                "group_abandoned",
                f"no worker of the group {group.name!r} of {stream} is alive: no entry leaves the stream",
                f"if the group is not needed any more: {_destroy(stream, group)}",
                stream=stream, group=group.name, pending=group.pending, length=tier.length,
                settled=group.settled.count + len(group.settled.apart),
            )  # fmt: skip


def _destroy(stream: str, group: Group) -> str:
    """Return what removes a group, and before it what it alone keeps: left there, that would look stranded."""
    settled, steps = group.settled, list[str]()
    if settled.before:
        trim = redis_cli_command("XTRIM", stream, "MINID", settled.before)
        steps.append(
            f"{trim} (removes {counted(settled.count, 'entry', 'entries')} that every other group has settled)"
        )
    if settled.apart:
        some = settled.apart[:_MOST_APART]
        delete = redis_cli_command("XDEL", stream, *some)
        steps.append(and_so(f"{delete} (settled, too)", len(settled.apart) - len(some)))
    if settled.more:
        steps.append("run the doctor again for those after them")
    steps.append(redis_cli_command("XGROUP", "DESTROY", stream, group.name))
    retries = "; its retries that wait then become dead letters (unknown_group), which can be replayed"
    if len(steps) == 1:
        return f"{steps[0]}{retries}"
    meanwhile = (
        ". Stop the workers of the other groups for that time: what they settle in between stays, and the doctor calls "
        "it stranded though it is done"
    )
    return f"{', then '.join(steps)}{retries}{meanwhile}"


def _group_problems(tier: TierObservations, ours: Group) -> Iterator[Finding]:
    stream = tier.keys.stream
    set_id = redis_cli_command("XGROUP", "SETID", stream, ours.name, "0")
    if entry_order(ours.delivered) > entry_order(tier.last_id):
        yield make_finding(
            "group_ahead",
            f"{stream}: the group's last delivered id is {ours.delivered}, and the newest entry is {tier.last_id}: new "
            "entries in between are never delivered (after a failover, or XGROUP SETID)",
            f"stop the workers, then {set_id}: all entries of the stream are delivered again",
            stream=stream, group=ours.name, last_delivered_id=ours.delivered, last_generated_id=tier.last_id,
        )  # fmt: skip
    if tier.stranded:
        yield make_finding(
            "stranded",
            f"{stream}: {_count_entries(tier.stranded)} passed by the group and not pending: no worker gets them. "
            "They never ran (a group created at $, XACK without XDEL, or XGROUP DELCONSUMER of a consumer that held "
            "them), or they are done, and another group that had still to get them was destroyed: the server does not "
            "know which",
            "look first whether they are done, by their effects and results "
            f"({redis_cli_command('XRANGE', stream, tier.stranded[0], tier.stranded[0])} shows the task and its id). "
            f"To run them, those that are done a second time: stop the workers, then {set_id}. To remove them, those "
            "that never ran, too: "
            + and_so(redis_cli_command("XDEL", stream, *tier.stranded[:3]), len(tier.stranded) - 3),
            stream=stream, entries=list(tier.stranded),
        )  # fmt: skip
    if tier.gone:
        yield make_finding(
            "pending_gone",
            f"{stream}: {_count_entries(tier.gone)} pending and not in the stream: trimmed or deleted by hand",
            f"never XTRIM {stream}; the next sweep removes them, or run "
            + and_so(redis_cli_command("XACK", stream, ours.name, tier.gone[0]), len(tier.gone) - 1),
            stream=stream, entries=list(tier.gone),
        )  # fmt: skip


def _count_entries(ids: tuple[str, ...]) -> str:
    return f"{len(ids)} entries" if len(ids) > 1 else f"the entry {' '.join(ids)}"
