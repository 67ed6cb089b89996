"""Removes dead letters above a bound, and counts them as the workers do (`dead_letter.lua`)."""

from __future__ import annotations

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


async def count_dropped(store: Store, dropped: int) -> None:
    """Count dead letters that a bound has removed. If the server refuses that, nothing else is harmed."""
    if dropped:
        await store.attempt([step("count_dropped")([store.keys.totals], dropped, TOTALS_KEPT)])
