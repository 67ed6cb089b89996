"""Searches the dead letter stream, and counts it by error: in pieces, each of which says how far it has looked."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.filter import DeadLetterFilter
from streamq.dead_letter.pages import PageReader
from streamq.dead_letter.selection import order
from streamq.queue.store import Store

MOST_BYTES: Final = 64 << 20  # that one call reads, about
MOST_GROUPS: Final = 1_000  # that are counted apart
_LONGEST_NAME: Final = 1_000  # characters of a name in a group


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What one search has found. `examined` letters were looked at.

    `after` is the entry id of the last one: give it to the next search to go on. It is None at the end of the stream.
    """

    letters: tuple[DeadLetterEntry, ...]
    examined: int
    after: str | None


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """The letters of one task with one type of error and one reason. `example` is the entry id of the last of them.

    `first` and `last` are the times at which the first and the last of them died.
    """

    task_name: str
    error_type: str
    reason: str
    count: int
    first: datetime
    last: datetime
    example: str


@dataclass(frozen=True, slots=True)
class DeadLetterStats:
    """Dead letters by task, type of error and reason, the largest group first.

    `examined` letters were looked at, `matched` of them match the filter; `other` of those are in no group, because
    there are more than 1,000. `after` is where to go on, None at the end of the stream.
    """

    groups: tuple[DeadLetterGroup, ...] = field(default=())
    examined: int = 0
    matched: int = 0
    other: int = 0
    after: str | None = None


async def window_of(store: Store, filter_: DeadLetterFilter) -> tuple[str, str]:
    """Return between which entry ids the letters of a filter's age are: after the first, up to the second."""
    if filter_.older_than is None and filter_.newer_than is None:
        return filter_.window(0)
    seconds, micros = await store.one(("TIME",))
    return filter_.window(int(seconds) * 1000 + int(micros) // 1000)


async def search(
    store: Store, filter_: DeadLetterFilter, *, count: int, after: str | None, newest_first: bool, most: int
) -> SearchResult:
    """Return up to `count` letters that match, of at most `most` that are looked at."""
    found, matches, piece = list[DeadLetterEntry](), filter_.matcher(), _Piece()
    if count > 0:
        async with aclosing(examined(store, filter_, piece, after=after, newest_first=newest_first, most=most)) as some:
            async for letter in some:
                if matches is None or matches(letter):
                    found.append(letter)
                    if len(found) == count:
                        break
    return SearchResult(tuple(found), piece.examined, None if piece.ended else piece.after or after)


async def count_by_error(
    store: Store, filter_: DeadLetterFilter, *, before: DeadLetterStats, most: int
) -> DeadLetterStats:
    """Return the figures of `before`, and of at most `most` letters after it, oldest first."""
    groups = {(one.task_name, one.error_type, one.reason): one for one in before.groups}
    matches, piece, matched, other = filter_.matcher(), _Piece(), before.matched, before.other
    async with aclosing(examined(store, filter_, piece, after=before.after, newest_first=False, most=most)) as some:
        async for letter in some:
            if matches is not None and not matches(letter):
                continue
            matched += 1
            key = (letter.task_name[:_LONGEST_NAME], letter.error_type[:_LONGEST_NAME], letter.reason[:_LONGEST_NAME])
            known, at, id_ = groups.get(key), letter.died_at, letter.entry_id
            if known is not None:
                groups[key] = replace(
                    known, count=known.count + 1, first=min(known.first, at), last=max(known.last, at), example=id_
                )
            elif len(groups) < MOST_GROUPS:
                groups[key] = DeadLetterGroup(*key, count=1, first=at, last=at, example=id_)
            else:
                other += 1
    ordered = tuple(sorted(groups.values(), key=lambda one: -one.count))
    after = None if piece.ended else piece.after or before.after
    return DeadLetterStats(ordered, before.examined + piece.examined, matched, other, after)


@dataclass(slots=True)
class _Piece:
    """How far one call has come."""

    examined: int = 0
    after: str | None = None
    ended: bool = False


async def examined(
    store: Store, filter_: DeadLetterFilter, piece: _Piece, *, after: str | None, newest_first: bool, most: int
) -> AsyncGenerator[DeadLetterEntry, None]:
    """Yield the letters of a filter's age, and note each in `piece` before: at most `most`, of `MOST_BYTES` or so."""
    oldest, newest = await window_of(store, filter_)
    reader = PageReader(store, after=_start(after, oldest, newest, newest_first), newest_first=newest_first)
    while reader.examined < most and reader.bytes_read < MOST_BYTES:
        for letter in await reader.next(most - reader.examined):
            if not order(oldest) < order(letter.entry_id) <= order(newest):
                piece.ended = True
                return
            piece.examined += 1
            piece.after = letter.entry_id
            yield letter
        if reader.ended:
            piece.ended = True
            return


def _start(after: str | None, oldest: str, newest: str, newest_first: bool) -> str | None:
    """Return the entry id after which to begin: that of the caller, or the edge of the window if that comes later."""
    if newest_first:
        ms, _ = order(newest)
        edge = None if ms == (1 << 64) - 1 else f"{ms + 1}-0"
        return edge if after is None else after if edge is None else min(after, edge, key=order)
    edge = None if oldest == "0-0" else oldest
    return edge if after is None else after if edge is None else max(after, edge, key=order)
