"""Consumer groups as Redis keeps them, over the pending lists of fakeredis.

Each function is one step of Redis' t_stream.c on a `StreamGroup`. Its `pel` maps ids to
`PelEntry(consumer_name, time_read, times_delivered)`, with times in milliseconds, and every
consumer counts the entries that it holds. `redis_differences` parses the commands.
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

_ENTRIES_PER_COUNT = 10  # XAUTOCLAIM examines COUNT * 10 entries at most


@dataclass(frozen=True, slots=True)
class ClaimOptions:
    """How a claim changes a pending entry.

    `time` is the new delivery time in ms. `count` is the new number of deliveries; None adds one.
    """

    time: int
    count: int | None = None
    only_ids: bool = False
    force: bool = False
    last_id: StreamEntryKey | None = None


@dataclass(slots=True)
class AutoclaimResult:
    """The ids that XAUTOCLAIM found. The next call begins at `cursor`, which is 0-0 at the end."""

    cursor: StreamEntryKey = field(default_factory=lambda: StreamEntryKey(0, 0))
    claimed: list[StreamEntryKey] = field(default_factory=list)
    deleted: list[StreamEntryKey] = field(default_factory=list)


def touch_consumer(group: StreamGroup, name: bytes, now: int) -> StreamConsumerInfo:
    """Return the consumer of that name, or make it, and note the time of its command."""
    consumer = group.consumers.get(name)
    if consumer is None:
        consumer = group.consumers[name] = StreamConsumerInfo(name)
    consumer.last_attempt = now
    return consumer


def deliver(
    group: StreamGroup, consumer: StreamConsumerInfo, limit: int | None, *, add_to_pending: bool
) -> list[_Reply]:
    """Deliver the next entries to the consumer. With `add_to_pending` they are pending from then on."""
    now = current_time()
    fresh = group.stream.stream_read(group.last_delivered_key, limit)
    for entry in fresh:
        if add_to_pending:
            remove_pending(group, entry)  # it is pending already if XGROUP SETID went back
            group.pel[entry] = PelEntry(consumer.name, now, 1)
            consumer.pending += 1
        group._mark_delivered(entry)  # noqa: SLF001 - updates `lag` and `entries-read`
    if fresh:
        consumer.last_success = now
    return format_entries(group, fresh)


def redeliver_pending(
    group: StreamGroup, consumer: StreamConsumerInfo, after: StreamEntryKey, limit: int | None
) -> list[_Reply]:
    """Deliver the pending entries of the consumer again. A deleted entry is [id, nil]."""
    now = current_time()
    held = [entry for entry in sorted(group.pel) if entry > after and group.pel[entry].consumer_name == consumer.name]
    found: list[_Reply] = []
    for entry in held[:limit]:
        if entry in group.stream:
            delivered = group.pel[entry].times_delivered
            group.pel[entry] = PelEntry(consumer.name, now, delivered + 1)
            found += format_entries(group, [entry])
        else:
            found.append([entry.encode(), None])
    return found


def remove_pending(group: StreamGroup, entry: StreamEntryKey) -> int:
    """Remove an entry from the pending list. Return 1 if it was there, else 0."""
    pending_entry = group.pel.pop(entry, None)
    if pending_entry is None:
        return 0
    owner = group.consumers.get(pending_entry.consumer_name)
    if owner is not None:
        owner.pending -= 1
    return 1


def claim(
    group: StreamGroup, entry: StreamEntryKey, consumer: StreamConsumerInfo, min_idle: int, options: ClaimOptions
) -> bool:
    """Give a pending entry to the consumer if it was idle for `min_idle` ms or more and still exists."""
    if entry not in group.stream:
        remove_pending(group, entry)
        return False
    pending_entry = group.pel.get(entry)
    if pending_entry is None and not options.force:
        return False
    if pending_entry is not None and current_time() - pending_entry.time_read < min_idle:
        return False
    count = 1 if pending_entry is None else pending_entry.times_delivered
    if options.count is not None:
        count = options.count
    elif not options.only_ids:
        count += 1
    remove_pending(group, entry)
    group.pel[entry] = PelEntry(consumer.name, options.time, count)
    consumer.pending += 1
    consumer.last_success = current_time()
    return True


def autoclaim(
    group: StreamGroup,
    consumer: StreamConsumerInfo,
    low: StreamEntryKey,
    count: int,
    min_idle: int,
    options: ClaimOptions,
) -> AutoclaimResult:
    """Claim idle entries from `low` on: at most `count`, out of at most ten times as many examined."""
    found = AutoclaimResult()
    for position, entry in enumerate(sorted(entry for entry in group.pel if entry >= low)):
        if len(found.claimed) + len(found.deleted) == count or position == count * _ENTRIES_PER_COUNT:
            found.cursor = entry
            break
        if entry not in group.stream:
            remove_pending(group, entry)
            found.deleted.append(entry)
        elif claim(group, entry, consumer, min_idle, options):
            found.claimed.append(entry)
    return found


def pending_summary(group: StreamGroup) -> _Reply:
    """Return the four parts of XPENDING: number, first id, last id, and number for each consumer."""
    if not group.pel:
        return [0, None, None, None]
    holders = Counter(pending_entry.consumer_name for pending_entry in group.pel.values())
    return [
        len(group.pel),
        min(group.pel).encode(),
        max(group.pel).encode(),
        [[name, b"%d" % holders[name]] for name in sorted(holders)],
    ]


def pending_range(
    group: StreamGroup, low: StreamEntryKey, high: StreamEntryKey, count: int, min_idle: int, consumer: bytes | None
) -> list[_Reply]:
    """Return [id, consumer, idle ms, deliveries] of pending entries in a range of ids."""
    now = current_time()
    # Scripts ask for one id, to see which consumer holds it: that needs no sorting.
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


def format_entries(group: StreamGroup, entries: Iterable[StreamEntryKey], *, only_ids: bool = False) -> list[_Reply]:
    """Return entries as [id, [field, value, ...]], or as ids."""
    if only_ids:
        return [entry.encode() for entry in entries]
    return [group.stream.format_record(entry) for entry in entries]
