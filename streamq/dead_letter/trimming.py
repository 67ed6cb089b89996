"""Removes dead letters: those that match, or those above a bound, which it counts as workers do (`dead_letter.lua`)."""

from __future__ import annotations

from contextlib import aclosing

from streamq.dead_letter.filter import Matches
from streamq.dead_letter.pages import pages
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.keys import TOTALS_KEPT

_TRIM_STEP = 10_000  # entries of one XTRIM


async def trim(store: Store, size: int) -> None:
    """Trim the dead letter stream to `size` entries, in steps that do not block the server for long."""
    key = store.keys.dead
    while dropped := await store.one(("XTRIM", key, "MAXLEN", "~", size, "LIMIT", _TRIM_STEP)):
        await count_dropped(store, dropped)
    await count_dropped(store, await store.one(("XTRIM", key, "MAXLEN", "=", size)))


async def remove(store: Store, matches: Matches | None, last: str) -> int:
    """Remove the letters up to the entry id `last` that match, and return how many there were.

    By id and not by XTRIM MINID: in Redis 6.2.5 that removes newer entries as well.
    """
    removed = 0
    async with aclosing(pages(store, last)) as some:
        async for page in some:
            if ids := [letter.entry_id for letter in page if matches is None or matches(letter)]:
                removed += int(await store.one(("XDEL", store.keys.dead, *ids)))
    return removed


async def count_dropped(store: Store, dropped: int) -> None:
    """Count dead letters that a bound has removed. If the server refuses that, nothing else is harmed."""
    if dropped:
        await store.attempt([step("count_dropped")([store.keys.totals], dropped, TOTALS_KEPT)])
