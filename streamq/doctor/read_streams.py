"""Asks about the tiers and the dead letters: streams, groups, consumers, what is pending, what is delayed.

Lists are bounded. What looks wrong in one answer is asked about again before it is believed, in an order
of questions in which a task that merely moved on between them cannot look wrong twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from streamq.doctor.observations import DEFAULT_LEASE, Consumer, DeadLetters, Delayed, Group, Held, TierFacts
from streamq.doctor.queries import SAMPLE, Questions, pairs, rows, text
from streamq.errors import ConfigurationError
from streamq.wire.keys import PARKED, Keys
from streamq.wire.message import entry_ms
from streamq.wire.tiers import Tier

OVERDUE: Final = 60.0  # seconds after which a worker must have moved what is due
LATELY: Final = 3600.0  # seconds over which deaths are counted
_DEATHS: Final = 500  # of the last hour that are read
_PAGE: Final = 10  # entries, which may be large, of one reply


async def look_at_tier(questions: Questions, tiers: Sequence[Tier], index: int, now: float) -> TierFacts:
    """Return what lies in one tier."""
    store, name = questions.store, tiers[index].name
    keys, group = store.keys.tiers[index], store.keys.group
    named = asdict(keys)
    replies = await questions.ask(
        *(("TYPE", key) for key in named.values()), *(("PTTL", key) for key in named.values()),
        ("XLEN", keys.stream), ("XINFO", "STREAM", keys.stream), ("XINFO", "GROUPS", keys.stream),
        ("XINFO", "CONSUMERS", keys.stream, group), ("ZRANGE", keys.alive, 0, -1, "WITHSCORES"),
        ("HGETALL", keys.leases), ("HSCAN", keys.crashes, 0, "COUNT", SAMPLE),
    )  # fmt: skip
    kinds = {what: text(kind) for what, kind in zip(named, replies, strict=False) if kind is not None}
    ttls = dict(zip(named, (reply if isinstance(reply, int) else -2 for reply in replies[len(named) :]), strict=False))
    length, stream, groups, consumers, alive, leases, crashes = replies[2 * len(named) :]
    facts = TierFacts(
        name=name, keys=keys, kinds=kinds, ttls=ttls, length=length or 0,
        last_id=text(pairs(stream).get("last-generated-id", b"0-0")),
        groups=tuple(map(_group, rows(groups))),
        consumers=_consumers(rows(consumers), pairs(alive), pairs(leases)),
        crashes={entry: text(names) for entry, names in pairs(rows(crashes)[1] if crashes else None).items()},
        delayed=await _delayed(questions, keys.delayed, keys.messages, now),
    )  # fmt: skip
    facts = replace(facts, groups=await _living(questions, tiers, index, facts.groups, now))
    if (ours := facts.group(group)) is None:
        return replace(facts, waits_since=await _oldest(questions, keys.stream, "-"))
    held, gone = await _pending(questions, facts, group)
    facts = replace(facts, consumers=await _heard_of(questions, facts))
    return replace(
        facts, held=held, gone=gone, waits_since=await _waits_since(questions, facts, ours),
        stranded=await _stranded(questions, facts, ours) if len(facts.groups) == 1 else (),
    )  # fmt: skip


def _group(flat: Any) -> Group:
    named = pairs(flat)
    return Group(text(named.get("name")), named.get("pending", 0), text(named.get("last-delivered-id", b"0-0")))


def _consumers(found: Sequence[Any], alive: dict[str, Any], leases: dict[str, Any]) -> tuple[Consumer, ...]:
    """Put together what the group knows of its consumers and what they say of themselves."""
    known = {text(named["name"]): (named["pending"], named["idle"] / 1000) for named in map(pairs, found)}
    consumers = []
    for name in dict.fromkeys((*known, *alive)):
        pending, idle = known.get(name, (0, 0.0))
        until = float(alive[name]) / 1000 if name in alive else None
        lease = int(leases[name]) / 1000 if text(leases.get(name, b"")).isdigit() else DEFAULT_LEASE
        consumers.append(Consumer(name, pending, idle, until, lease))
    return tuple(consumers)


async def _heard_of(questions: Questions, facts: TierFacts) -> tuple[Consumer, ...]:
    """Ask again for the heartbeats that were missing: a worker that has just begun reads before its first."""
    silent = [consumer.name for consumer in facts.consumers if consumer.until is None and consumer.name != PARKED]
    scores = await questions.ask(*(("ZSCORE", facts.keys.alive, name) for name in silent))
    heard = {name: float(score) / 1000 for name, score in zip(silent, scores, strict=True) if score is not None}
    return tuple(replace(one, until=heard.get(one.name, one.until)) for one in facts.consumers)


async def _living(
    questions: Questions, tiers: Sequence[Tier], index: int, groups: Sequence[Group], now: float
) -> tuple[Group, ...]:
    """Note of each group how many of its consumers live."""
    counted = []
    for group in groups:
        try:
            alive = Keys.of(questions.store.keys.namespace, group.name, tiers).tiers[index].alive
        except ConfigurationError:  # no group of ours
            counted.append(group)
            continue
        counted.append(replace(group, alive=await questions.one("ZCOUNT", alive, round(now * 1000), "+inf")))
    return tuple(counted)


# --- entries -------------------------------------------------------------------------------------


async def _oldest(questions: Questions, stream: str, start: str) -> float | None:
    entries = rows(await questions.one("XRANGE", stream, start, "+", "COUNT", 1))
    return entry_ms(entries[0][0]) / 1000 if entries else None


async def _waits_since(questions: Questions, facts: TierFacts, group: Group) -> float | None:
    """Return since when the oldest entry waits: not delivered, or handed back and not taken."""
    found = [await _oldest(questions, facts.keys.stream, f"({group.delivered}")]
    if any(consumer.name == PARKED and consumer.pending for consumer in facts.consumers):
        parked = rows(await questions.one("XPENDING", facts.keys.stream, group.name, "-", "+", 1, PARKED))
        found.append(entry_ms(parked[0][0]) / 1000 if parked else None)
    return min((since for since in found if since is not None), default=None)


async def _pending(questions: Questions, facts: TierFacts, group: str) -> tuple[tuple[Held, ...], tuple[str, ...]]:
    """Return what was not renewed for long, and of the oldest that are pending those that are not there."""
    stream = facts.keys.stream
    longest = max((consumer.lease for consumer in facts.consumers), default=DEFAULT_LEASE)
    stale, oldest = await questions.ask(
        ("XPENDING", stream, group, "IDLE", round(longest * 3000), "-", "+", SAMPLE),
        ("XPENDING", stream, group, "-", "+", SAMPLE),
    )
    held = tuple(Held(text(row[0]), text(row[1]), row[2] / 1000) for row in rows(stale))
    ids = [text(row[0]) for row in rows(oldest)]
    gone: list[str] = []
    for page in _paged(ids):
        # Not there first, pending still afterwards: settled in between it would be neither.
        there = await questions.ask(*(("XRANGE", stream, entry, entry) for entry in page))
        missing = [entry for entry, reply in zip(page, there, strict=True) if reply == []]
        still = await questions.ask(*(("XPENDING", stream, group, entry, entry, 1) for entry in missing))
        gone += [entry for entry, reply in zip(missing, still, strict=True) if reply]
    return held, tuple(gone)


async def _stranded(questions: Questions, facts: TierFacts, group: Group) -> tuple[str, ...]:
    """Return entries that the group was given and nobody holds, of the oldest that are in the stream."""
    stream, stranded, start = facts.keys.stream, list[str](), "-"
    for _ in range(SAMPLE // _PAGE):
        page = [
            text(row[0]) for row in rows(await questions.one("XRANGE", stream, start, group.delivered, "COUNT", _PAGE))
        ]
        # Held by nobody first, in the stream still afterwards: settled in between it would be gone.
        pending = await questions.ask(*(("XPENDING", stream, group.name, entry, entry, 1) for entry in page))
        free = [entry for entry, reply in zip(page, pending, strict=True) if reply == []]
        there = await questions.ask(*(("XRANGE", stream, entry, entry) for entry in free))
        stranded += [entry for entry, reply in zip(free, there, strict=True) if reply]
        if len(page) < _PAGE:
            break
        start = f"({page[-1]}"
    return tuple(stranded)


def _paged(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[at : at + _PAGE] for at in range(0, len(ids), _PAGE)]


async def look_at_schedules(questions: Questions, now: float) -> dict[str, float]:
    """Return the schedules whose tick nobody sent, and when (Unix seconds) that was: the oldest, `SAMPLE` at most."""
    reply = await questions.one("ZRANGE", questions.store.keys.ticks, 0, SAMPLE - 1, "WITHSCORES")
    due = {name: float(score) / 1000 for name, score in pairs(reply).items()}
    return {name: at for name, at in due.items() if at < now - OVERDUE}


# --- the delayed ---------------------------------------------------------------------------------


async def _delayed(questions: Questions, delayed: str, messages: str, now: float) -> Delayed:
    waiting, stored, first, overdue, names = await questions.ask(
        ("ZCARD", delayed), ("HLEN", messages), ("ZRANGE", delayed, 0, SAMPLE - 1, "WITHSCORES"),
        ("ZCOUNT", delayed, "-inf", f"({(now - OVERDUE) * 1000:.0f}"), ("HRANDFIELD", messages, SAMPLE),
    )  # fmt: skip
    due = {name: float(score) / 1000 for name, score in pairs(first).items()}
    return Delayed(
        waiting or 0, stored or 0, overdue or 0, min(due.values(), default=None),
        without_message=await _without_message(questions, delayed, messages, list(due)),
        without_delay=await _without_delay(questions, delayed, messages, [text(name) for name in rows(names)]),
    )  # fmt: skip


async def _without_message(questions: Questions, delayed: str, messages: str, ids: Sequence[str]) -> tuple[str, ...]:
    """Return the ids that have no message, and are delayed nevertheless."""
    there = await questions.ask(*(("HEXISTS", messages, one) for one in ids))
    absent = [one for one, reply in zip(ids, there, strict=True) if reply == 0]
    return await _halves(questions, absent, (("HEXISTS", messages), 0), ("ZMSCORE", delayed))


async def _without_delay(questions: Questions, delayed: str, messages: str, ids: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of messages that are not delayed, and are kept nevertheless."""
    scores = rows(await questions.one("ZMSCORE", delayed, *ids)) if ids else []
    absent = [one for one, score in zip(ids, scores, strict=False) if score is None]
    return await _halves(questions, absent, (("ZMSCORE", delayed), [None]), ("HEXISTS", messages))


async def _halves(
    questions: Questions, ids: Sequence[str], absent: tuple[tuple[str, str], object], present: tuple[str, str]
) -> tuple[str, ...]:
    """Return the ids that are absent, then present in the other place, then absent again.

    Unlike entries, ids come back: a task that is retried is delayed under the same one. Both places change in one
    step, so what is sound would have to come and go between three commands that follow each other.
    """
    lacks, nothing = absent
    replies = await questions.ask(
        *(command for one in ids for command in ((*lacks, one), (*present, one), (*lacks, one)))
    )
    thrice = zip(ids, replies[::3], replies[1::3], replies[2::3], strict=True)
    return tuple(
        one for one, before, there, after in thrice
        if before == nothing == after and there not in (None, 0, [None])
    )  # fmt: skip


# --- the dead ------------------------------------------------------------------------------------


async def look_at_the_dead(questions: Questions, bound: int, now: float) -> DeadLetters:
    """Return how many dead letters there are, and why those of the last hour died."""
    key = questions.store.keys.dead
    since = f"{(now - LATELY) * 1000:.0f}"
    kind, size = await questions.ask(("TYPE", key), ("XLEN", key))
    reasons: Counter[str] = Counter()
    start, more = "+", True
    while more and reasons.total() < _DEATHS:
        page = rows(await questions.one("XREVRANGE", key, start, since, "COUNT", _PAGE * 5))
        reasons.update(text(pairs(flat).get("reason", b"")) for _, flat in page)
        more = len(page) == _PAGE * 5
        start = f"({text(page[-1][0])}" if page else start
    return DeadLetters(
        kind="none" if kind is None else text(kind), size=size or 0, bound=bound, lately=dict(reasons), more=more
    )
