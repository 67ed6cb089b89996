"""Consumer groups as Redis keeps them, over the pending lists of fakeredis.

Each function is one step of Redis' t_stream.c on a `StreamGroup`: `pel` maps ids to
`PelEntry(consumer_name, time_read, times_delivered)`, in milliseconds, and every consumer
counts the entries that it holds. Parses nothing; `corrections` does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from fakeredis._helpers import current_time
from fakeredis.model import StreamEntryKey
from fakeredis.model._stream import PelEntry, StreamConsumerInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fakeredis.model import StreamGroup

_Reply: TypeAlias = Any

_LOOKED_AT_PER_CLAIM = 10  # XAUTOCLAIM's bound: attempts = COUNT * 10


@dataclass(frozen=True, slots=True)
class Terms:
    """How a claim changes an entry: its time of delivery in ms, its count (None: one more)."""

    time: int
    count: int | None = None
    only_ids: bool = False
    force: bool = False
    last_id: StreamEntryKey | None = None


@dataclass(slots=True)
class Sweep:
    """What XAUTOCLAIM found, and where it goes on (0-0 at the end)."""

    cursor: StreamEntryKey = field(default_factory=lambda: StreamEntryKey(0, 0))
    claimed: list[StreamEntryKey] = field(default_factory=list)
    deleted: list[StreamEntryKey] = field(default_factory=list)


def seen(group: StreamGroup, name: bytes, now: int) -> StreamConsumerInfo:
    """Return the consumer of that name, new if need be, and note that it was here."""
    consumer = group.consumers.get(name)
    if consumer is None:
        consumer = group.consumers[name] = StreamConsumerInfo(name)
    consumer.last_attempt = now
    return consumer


def deliver(group: StreamGroup, consumer: StreamConsumerInfo, limit: int | None, *, keep: bool) -> list[_Reply]:
    """Give the consumer the next entries; with `keep` they are pending from then on."""
    now = current_time()
    fresh = group.stream.stream_read(group.last_delivered_key, limit)
    for entry in fresh:
        if keep:
            drop(group, entry)  # pending already where XGROUP SETID went back
            group.pel[entry] = PelEntry(consumer.name, now, 1)
            consumer.pending += 1
        group._mark_delivered(entry)  # noqa: SLF001 - keeps `lag` and `entries-read`
    if fresh:
        consumer.last_success = now
    return records(group, fresh)


def history(group: StreamGroup, consumer: StreamConsumerInfo, after: StreamEntryKey, limit: int | None) -> list[_Reply]:
    """Give the consumer what it already holds; [id, nil] for what was deleted meanwhile."""
    now = current_time()
    held = [entry for entry in sorted(group.pel) if entry > after and group.pel[entry].consumer_name == consumer.name]
    found: list[_Reply] = []
    for entry in held[:limit]:
        if entry in group.stream:
            delivered = group.pel[entry].times_delivered
            group.pel[entry] = PelEntry(consumer.name, now, delivered + 1)
            found += records(group, [entry])
        else:
            found.append([entry.encode(), None])
    return found


def drop(group: StreamGroup, entry: StreamEntryKey) -> int:
    """Take an entry out of the pending list: 1 if it was there, else 0."""
    pending_entry = group.pel.pop(entry, None)
    if pending_entry is None:
        return 0
    owner = group.consumers.get(pending_entry.consumer_name)
    if owner is not None:
        owner.pending -= 1
    return 1


def claim(group: StreamGroup, entry: StreamEntryKey, consumer: StreamConsumerInfo, min_idle: int, terms: Terms) -> bool:
    """Give a pending entry to the consumer, if it was idle for at least `min_idle` ms and still exists."""
    if entry not in group.stream:
        drop(group, entry)
        return False
    pending_entry = group.pel.get(entry)
    if pending_entry is None and not terms.force:
        return False
    if pending_entry is not None and current_time() - pending_entry.time_read < min_idle:
        return False
    count = 1 if pending_entry is None else pending_entry.times_delivered
    if terms.count is not None:
        count = terms.count
    elif not terms.only_ids:
        count += 1
    drop(group, entry)
    group.pel[entry] = PelEntry(consumer.name, terms.time, count)
    consumer.pending += 1
    consumer.last_success = current_time()
    return True


def sweep(
    group: StreamGroup, consumer: StreamConsumerInfo, low: StreamEntryKey, count: int, min_idle: int, terms: Terms
) -> Sweep:
    """Claim idle entries from `low` on: at most `count`, and looking at no more than ten times as many."""
    found = Sweep()
    for looked_at, entry in enumerate(sorted(entry for entry in group.pel if entry >= low)):
        if len(found.claimed) + len(found.deleted) == count or looked_at == count * _LOOKED_AT_PER_CLAIM:
            found.cursor = entry
            break
        if entry not in group.stream:
            drop(group, entry)
            found.deleted.append(entry)
        elif claim(group, entry, consumer, min_idle, terms):
            found.claimed.append(entry)
    return found


def summary(group: StreamGroup) -> _Reply:
    """Return XPENDING's four facts: how many, the first and the last id, how many each consumer holds."""
    if not group.pel:
        return [0, None, None, None]
    holders = Counter(pending_entry.consumer_name for pending_entry in group.pel.values())
    return [
        len(group.pel),
        min(group.pel).encode(),
        max(group.pel).encode(),
        [[name, b"%d" % holders[name]] for name in sorted(holders)],
    ]


def pending(
    group: StreamGroup, low: StreamEntryKey, high: StreamEntryKey, count: int, min_idle: int, consumer: bytes | None
) -> list[_Reply]:
    """Return [id, consumer, idle ms, deliveries] of pending entries in a range of ids."""
    now = current_time()
    # One id is what scripts ask for, to see who holds it.
    within = [low] if low == high else sorted(entry for entry in group.pel if low <= entry <= high)
    rows: list[_Reply] = []
    for entry in within:
        if len(rows) >= count:
            break
        held = group.pel.get(entry)
        if held is None or (consumer is not None and held.consumer_name != consumer):
            continue
        idle = max(0, now - held.time_read)
        if idle >= min_idle:
            rows.append([entry.encode(), held.consumer_name, idle, held.times_delivered])
    return rows


def records(group: StreamGroup, entries: Iterable[StreamEntryKey], *, only_ids: bool = False) -> list[_Reply]:
    """Format entries as [id, [field, value, ...]], or as ids."""
    if only_ids:
        return [entry.encode() for entry in entries]
    return [group.stream.format_record(entry) for entry in entries]
