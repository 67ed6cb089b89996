"""Judges the streams and their groups: what is there, of the right type, and whether all of it will be delivered."""

from __future__ import annotations

from collections.abc import Iterator

from streamq.doctor.finding import Finding
from streamq.doctor.finding_codes import found, typed
from streamq.doctor.observations import Facts, Group, TierFacts
from streamq.doctor.read_keys import KINDS


def kinds(facts: Facts) -> Iterator[Finding]:
    """Does each key of ours hold what it should?"""
    seen = {
        getattr(tier.keys, what): (kind, KINDS.get(what, kind))
        for tier in facts.tiers
        for what, kind in tier.kinds.items()
    }
    seen[facts.dead_key] = (facts.dead.kind, "stream")
    for key, (kind, expected) in seen.items():
        if kind not in (expected, "none"):
            yield _wrong(key, kind)
    for key, kind in facts.scan.wrong.items() if facts.scan else ():
        if key not in seen:
            yield _wrong(key, kind)


def _wrong(key: str, kind: str) -> Finding:
    return found(
        "wrong_type", f"{key} is a {kind}: something else uses this name, and our commands fail",
        f"choose another --namespace, or {typed('RENAME', key, f'{key}.old')}", key=key, type=kind,
    )  # fmt: skip


def streams(facts: Facts) -> Iterator[Finding]:
    """Will everything that is in the streams be given to somebody, and leave them afterwards?"""
    missing = [tier.keys.stream for tier in facts.tiers if tier.kinds.get("stream") == "none"]
    if missing:
        message = f"nothing was ever sent to {', '.join(missing)}, and no worker has run: fine for an empty queue"
        yield found("stream_missing", message, streams=missing)
    troubled = False
    for tier in facts.tiers:
        if tier.kinds.get("stream", "stream") == "stream" and facts.saw(
            tier.keys.stream, "xinfo|groups", "xinfo|stream"
        ):
            for finding in _stream(tier, facts):
                troubled = True
                yield finding
    here = [tier for tier in facts.tiers if tier.group(facts.group) is not None]
    if here and not troubled:
        message = "streams and groups are sound"
        yield found("streams_fine", message, lengths={tier.keys.stream: tier.length for tier in here})


def _stream(tier: TierFacts, facts: Facts) -> Iterator[Finding]:
    stream, ours = tier.keys.stream, tier.group(facts.group)
    if ours is None:
        yield found(
            "group_missing",
            f"{stream} has no group {facts.group!r} yet; {tier.length} entries wait for its first worker",
            "nothing, if no worker has run yet: it makes the group, from the beginning",
            stream=stream, length=tier.length,
        )  # fmt: skip
    else:
        yield from _group(tier, ours)
    others = [group for group in tier.groups if group.name != facts.group]
    if others:
        names = [group.name for group in others]
        message = f"{stream} has other groups: {', '.join(names)}; entries leave once all have acknowledged them"
        yield found("other_groups", message, stream=stream, groups=names)
    for group in others:
        behind = group.pending or _order(group.delivered) < _order(tier.last_id)
        if group.alive == 0 and tier.length and behind:
            yield found(
                "group_abandoned", f"nobody works for the group {group.name!r} of {stream}: nothing leaves the stream",
                f"if it is not needed any more: {typed('XGROUP', 'DESTROY', stream, group.name)}",
                stream=stream, group=group.name, pending=group.pending, length=tier.length,
            )  # fmt: skip


def _group(tier: TierFacts, ours: Group) -> Iterator[Finding]:
    stream = tier.keys.stream
    again = typed("XGROUP", "SETID", stream, ours.name, "0")
    if _order(ours.delivered) > _order(tier.last_id):
        yield found(
            "group_ahead",
            f"{stream}: the group was given {ours.delivered}, and the newest entry is {tier.last_id}: what comes in "
            "between is never delivered (after a failover, or XGROUP SETID)",
            f"stop the workers, then {again}: all that is in the stream runs",
            stream=stream, group=ours.name, last_delivered_id=ours.delivered, last_generated_id=tier.last_id,
        )  # fmt: skip
    if tier.stranded:
        yield found(
            "stranded",
            f"{stream}: nobody holds {_some(tier.stranded)} of those that the group was given: they never run (a group "
            "made at $, or XACK without XDEL)",
            f"to run them: stop the workers, then {again}; if they are done: "
            f"{typed('XDEL', stream, *tier.stranded[:3])}",
            stream=stream, entries=list(tier.stranded),
        )  # fmt: skip
    if tier.gone:
        yield found(
            "pending_gone",
            f"{stream}: {_some(tier.gone)} pending and not in the stream any more: trimmed or deleted by hand",
            f"never XTRIM {stream}; a sweep forgets them, or {typed('XACK', stream, ours.name, tier.gone[0])}",
            stream=stream, entries=list(tier.gone),
        )  # fmt: skip


def _some(ids: tuple[str, ...]) -> str:
    return f"{len(ids)} entries" if len(ids) > 1 else f"the entry {' '.join(ids)}"


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)
