"""Reads the tiers and the dead letters: streams, groups, consumers, pending entries, delayed tasks.

Lists are bounded. If a reply looks wrong, a second command confirms it. The order of the two commands
makes sure that a task that only moved on between them does not look wrong twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from streamq.doctor.observations import (
    DEFAULT_LEASE,
    Consumer,
    DeadLetters,
    Delayed,
    Group,
    StalePending,
    TierObservations,
)
from streamq.doctor.queries import SAMPLE, Queries, pairs, rows, text
from streamq.doctor.read_settled import read_settled
from streamq.errors import ConfigurationError
from streamq.wire.counters import DROPPED, stored_dropped
from streamq.wire.keys import RELEASED_CONSUMER, Keys
from streamq.wire.message import entry_ms
from streamq.wire.stored_numbers import stored_count
from streamq.wire.tiers import Tier

OVERDUE: Final = 60.0  # seconds after the due time until a task or tick counts as overdue
RECENT: Final = 3600.0  # seconds in which dead letters count as recent
_MAX_RECENT: Final = 500  # most recent dead letters that are read
_PAGE: Final = 10  # entries of one reply; an entry may be large


async def read_tier(queries: Queries, tiers: Sequence[Tier], index: int, now: float) -> TierObservations:
    """Read the state of one tier."""
    store, name = queries.store, tiers[index].name
    keys, group = store.keys.tiers[index], store.keys.group
    named = asdict(keys)
    replies = await queries.ask(
        *(("TYPE", key) for key in named.values()), *(("PTTL", key) for key in named.values()),
        ("XLEN", keys.stream), ("XINFO", "STREAM", keys.stream), ("XINFO", "GROUPS", keys.stream),
        ("XINFO", "CONSUMERS", keys.stream, group), ("ZRANGE", keys.alive, 0, -1, "WITHSCORES"),
        ("HGETALL", keys.leases), ("HSCAN", keys.crashes, 0, "COUNT", SAMPLE),
    )  # fmt: skip
    types = {what: text(kind) for what, kind in zip(named, replies, strict=False) if kind is not None}
    ttls = dict(zip(named, (reply if isinstance(reply, int) else -2 for reply in replies[len(named) :]), strict=False))
    length, stream, groups, consumers, alive, leases, crashes = replies[2 * len(named) :]
    observed = TierObservations(
        name=name, keys=keys, types=types, ttls=ttls, length=length or 0,
        last_id=text(pairs(stream).get("last-generated-id", b"0-0")),
        groups=tuple(map(_group, rows(groups))),
        consumers=_consumers(rows(consumers), pairs(alive), pairs(leases)),
        crashes={entry: text(names) for entry, names in pairs(rows(crashes)[1] if crashes else None).items()},
        delayed=await _read_delayed(queries, keys.delayed, keys.messages, now),
    )  # fmt: skip
    counted = await _count_alive_consumers(queries, tiers, index, observed.groups, now)
    observed = replace(observed, groups=await _read_settled(queries, keys.stream, counted, group))
    if (ours := observed.group(group)) is None:
        return replace(observed, waits_since=await _first_entry_time(queries, keys.stream, "-"))
    stale, gone = await _read_pending(queries, observed, group)
    observed = replace(observed, consumers=await _read_missing_heartbeats(queries, observed))
    return replace(
        observed, stale=stale, gone=gone, waits_since=await _waits_since(queries, observed, ours),
        stranded=await _read_stranded(queries, observed, ours) if len(observed.groups) == 1 else (),
    )  # fmt: skip


def _group(flat: Any) -> Group:
    named = pairs(flat)
    return Group(text(named.get("name")), named.get("pending", 0), text(named.get("last-delivered-id", b"0-0")))


def _consumers(replies: Sequence[Any], alive: dict[str, Any], leases: dict[str, Any]) -> tuple[Consumer, ...]:
    """Combine the consumers of XINFO with their heartbeats and visibility timeouts."""
    known = {text(named["name"]): (named["pending"], named["idle"] / 1000) for named in map(pairs, replies)}
    consumers = []
    for name in dict.fromkeys((*known, *alive)):
        pending, idle = known.get(name, (0, 0.0))
        alive_until = float(alive[name]) / 1000 if name in alive else None
        ms = stored_count(leases.get(name))
        lease = DEFAULT_LEASE if ms is None else ms / 1000
        consumers.append(Consumer(name, pending, idle, alive_until, lease))
    return tuple(consumers)


async def _read_missing_heartbeats(queries: Queries, observed: TierObservations) -> tuple[Consumer, ...]:
    """Read missing heartbeats again: a new worker reads entries before its first heartbeat."""
    without_heartbeat = [
        consumer.name
        for consumer in observed.consumers
        if consumer.alive_until is None and consumer.name != RELEASED_CONSUMER
    ]
    scores = await queries.ask(*(("ZSCORE", observed.keys.alive, name) for name in without_heartbeat))
    heartbeats = {
        name: float(score) / 1000 for name, score in zip(without_heartbeat, scores, strict=True) if score is not None
    }
    return tuple(replace(one, alive_until=heartbeats.get(one.name, one.alive_until)) for one in observed.consumers)


async def _count_alive_consumers(
    queries: Queries, tiers: Sequence[Tier], index: int, groups: Sequence[Group], now: float
) -> tuple[Group, ...]:
    """Return the groups, each with the number of its consumers that are alive."""
    counted = []
    for group in groups:
        try:
            alive = Keys.of(queries.store.keys.namespace, group.name, tiers).tiers[index].alive
        except ConfigurationError:  # not a valid name of a streamq group
            counted.append(group)
            continue
        counted.append(replace(group, alive=await queries.one("ZCOUNT", alive, round(now * 1000), "+inf")))
    return tuple(counted)


async def _read_settled(queries: Queries, stream: str, groups: Sequence[Group], own: str) -> tuple[Group, ...]:
    """Return the groups, the others that have no worker with what they alone keep in the stream."""
    return tuple([
        replace(group, settled=await read_settled(queries, stream, groups, group))
        if group.name != own and group.alive == 0 else group
        for group in groups
    ])  # fmt: skip


# --- entries -------------------------------------------------------------------------------------


async def _first_entry_time(queries: Queries, stream: str, start: str) -> float | None:
    entries = rows(await queries.one("XRANGE", stream, start, "+", "COUNT", 1))
    return entry_ms(entries[0][0]) / 1000 if entries else None


async def _waits_since(queries: Queries, observed: TierObservations, group: Group) -> float | None:
    """Return since when the oldest entry waits: one not delivered, or one released and not taken again."""
    times = [await _first_entry_time(queries, observed.keys.stream, f"({group.delivered}")]
    if any(consumer.name == RELEASED_CONSUMER and consumer.pending for consumer in observed.consumers):
        parked = rows(await queries.one("XPENDING", observed.keys.stream, group.name, "-", "+", 1, RELEASED_CONSUMER))
        times.append(entry_ms(parked[0][0]) / 1000 if parked else None)
    return min((since for since in times if since is not None), default=None)


async def _read_pending(
    queries: Queries, observed: TierObservations, group: str
) -> tuple[tuple[StalePending, ...], tuple[str, ...]]:
    """Return stale pending entries, and the oldest pending entries that are not in the stream."""
    stream = observed.keys.stream
    longest = max((consumer.lease for consumer in observed.consumers), default=DEFAULT_LEASE)
    stale, oldest = await queries.ask(
        ("XPENDING", stream, group, "IDLE", round(longest * 3000), "-", "+", SAMPLE),
        ("XPENDING", stream, group, "-", "+", SAMPLE),
    )
    stale = tuple(StalePending(text(row[0]), text(row[1]), row[2] / 1000) for row in rows(stale))
    ids = [text(row[0]) for row in rows(oldest)]
    gone: list[str] = []
    for page in _pages(ids):
        # Absent first, and pending afterwards. An entry that is settled in between is neither.
        there = await queries.ask(*(("XRANGE", stream, entry, entry) for entry in page))
        missing = [entry for entry, reply in zip(page, there, strict=True) if reply == []]
        still = await queries.ask(*(("XPENDING", stream, group, entry, entry, 1) for entry in missing))
        gone += [entry for entry, reply in zip(missing, still, strict=True) if reply]
    return stale, tuple(gone)


async def _read_stranded(queries: Queries, observed: TierObservations, group: Group) -> tuple[str, ...]:
    """Return the oldest entries in the stream that were delivered and are not pending."""
    stream, stranded, start = observed.keys.stream, list[str](), "-"
    for _ in range(SAMPLE // _PAGE):
        page = [
            text(row[0]) for row in rows(await queries.one("XRANGE", stream, start, group.delivered, "COUNT", _PAGE))
        ]
        # Not pending first, and in the stream afterwards. An entry that is settled in between is gone.
        pending = await queries.ask(*(("XPENDING", stream, group.name, entry, entry, 1) for entry in page))
        free = [entry for entry, reply in zip(page, pending, strict=True) if reply == []]
        there = await queries.ask(*(("XRANGE", stream, entry, entry) for entry in free))
        stranded += [entry for entry, reply in zip(free, there, strict=True) if reply]
        if len(page) < _PAGE:
            break
        start = f"({page[-1]}"
    return tuple(stranded)


def _pages(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[at : at + _PAGE] for at in range(0, len(ids), _PAGE)]


async def read_late_schedules(queries: Queries, now: float) -> dict[str, float]:
    """Return overdue schedules with their due times (Unix seconds): the oldest, at most `SAMPLE`."""
    reply = await queries.one("ZRANGE", queries.store.keys.ticks, 0, SAMPLE - 1, "WITHSCORES")
    due = {name: float(score) / 1000 for name, score in pairs(reply).items()}
    return {name: at for name, at in due.items() if at < now - OVERDUE}


# --- delayed tasks ---------------------------------------------------------------------------------


async def _read_delayed(queries: Queries, delayed: str, messages: str, now: float) -> Delayed:
    waiting, stored, first, overdue, names = await queries.ask(
        ("ZCARD", delayed), ("HLEN", messages), ("ZRANGE", delayed, 0, SAMPLE - 1, "WITHSCORES"),
        ("ZCOUNT", delayed, "-inf", f"({(now - OVERDUE) * 1000:.0f}"), ("HRANDFIELD", messages, SAMPLE),
    )  # fmt: skip
    due = {name: float(score) / 1000 for name, score in pairs(first).items()}
    return Delayed(
        waiting or 0, stored or 0, overdue or 0, min(due.values(), default=None),
        without_message=await _without_message(queries, delayed, messages, list(due)),
        without_delay=await _without_delay(queries, delayed, messages, [text(name) for name in rows(names)]),
    )  # fmt: skip


async def _without_message(queries: Queries, delayed: str, messages: str, ids: Sequence[str]) -> tuple[str, ...]:
    """Return ids in the delayed set that have no message."""
    there = await queries.ask(*(("HEXISTS", messages, one) for one in ids))
    absent = [one for one, reply in zip(ids, there, strict=True) if reply == 0]
    return await _confirmed_halves(queries, absent, (("HEXISTS", messages), 0), ("ZMSCORE", delayed))


async def _without_delay(queries: Queries, delayed: str, messages: str, ids: Sequence[str]) -> tuple[str, ...]:
    """Return ids of messages that are not in the delayed set."""
    scores = rows(await queries.one("ZMSCORE", delayed, *ids)) if ids else []
    absent = [one for one, score in zip(ids, scores, strict=False) if score is None]
    return await _confirmed_halves(queries, absent, (("ZMSCORE", delayed), [None]), ("HEXISTS", messages))


async def _confirmed_halves(
    queries: Queries, ids: Sequence[str], absent: tuple[tuple[str, str], object], present: tuple[str, str]
) -> tuple[str, ...]:
    """Return the ids that are absent in one place, then present in the other, then absent again.

    An id can come back, unlike an entry: a retried task is delayed under the same id. Both places change in
    one atomic step, so a correct id would have to come and go between three commands in a row.
    """
    absent_command, absent_reply = absent
    replies = await queries.ask(
        *(command for one in ids for command in ((*absent_command, one), (*present, one), (*absent_command, one)))
    )
    thrice = zip(ids, replies[::3], replies[1::3], replies[2::3], strict=True)
    return tuple(
        one for one, before, there, after in thrice
        if before == absent_reply == after and there not in (None, 0, [None])
    )  # fmt: skip


# --- dead letters ------------------------------------------------------------------------------------


async def read_dead_letters(queries: Queries, bound: int, now: float) -> DeadLetters:
    """Return the number of dead letters, and the reasons of those of the last hour."""
    key = queries.store.keys.dead
    since = f"{(now - RECENT) * 1000:.0f}"
    kind, size, totals = await queries.ask(("TYPE", key), ("XLEN", key), ("HGETALL", queries.store.keys.totals))
    reasons: Counter[str] = Counter()
    start, more, cut, last_id = "+", True, 0, "0-0"
    while more and reasons.total() < _MAX_RECENT:
        page = rows(await queries.one("XREVRANGE", key, start, since, "COUNT", _PAGE * 5))
        fields = [pairs(flat) for _, flat in page]
        reasons.update(text(one.get("reason", b"")) for one in fields)
        cut += sum("cut" in one for one in fields)
        last_id = text(page[0][0]) if page and last_id == "0-0" else last_id
        more = len(page) == _PAGE * 5
        start = f"({text(page[-1][0])}" if page else start
    return DeadLetters(
        kind="none" if kind is None else text(kind),
        size=size or 0,
        bound=bound,
        recent=dict(reasons),
        more=more,
        cut=cut,
        dropped=stored_dropped(pairs(totals).get(DROPPED)) or 0,
        totals=queries.store.keys.totals,
        last_id=last_id,
    )
