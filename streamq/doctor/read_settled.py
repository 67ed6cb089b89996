"""Reads what a group without workers keeps in a stream: entries that every other group has settled.

They may be removed when that group is. Not so a retry of it, which the other groups have passed without a run: it
becomes a dead letter once the group is gone. What a group has lost (`XGROUP DELCONSUMER`) cannot be told from what it
has settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from streamq.doctor.observations import Group, Settled, entry_order
from streamq.doctor.queries import Queries, pairs, rows, text

MOST: Final = 1_000  # entries of one stream that are looked at, the oldest
_PAGE: Final = 20  # entries of one reply; an entry may be large


async def read_settled(queries: Queries, stream: str, groups: Sequence[Group], leaving: Group) -> Settled:
    """Read what all `groups` but `leaving` have settled. Nothing if there is no other, or if something is refused."""
    staying = [group for group in groups if group.name != leaving.name]
    if not staying:
        return Settled()
    last = min((group.delivered for group in staying), key=entry_order)
    count, before, apart, seen, start = 0, "", list[str](), 0, "-"
    while seen < MOST:
        page = rows(await queries.one("XRANGE", stream, start, last, "COUNT", _PAGE))
        kept = await _kept(queries, stream, staying, page)
        if kept is None:
            return Settled()
        for entry in (text(row[0]) for row in page):
            if entry in kept:
                before = before or entry
            elif before:
                apart.append(entry)
            else:
                count += 1
        seen += len(page)
        if len(page) < _PAGE:
            break
        start = f"({text(page[-1][0])}"
    if not before:
        before = _after(last) if seen < MOST else _after(start.removeprefix("("))
    return Settled(before if count else "", count, tuple(apart), more=seen >= MOST)


async def _kept(
    queries: Queries, stream: str, staying: Sequence[Group], page: Sequence[tuple[bytes, list[bytes]]]
) -> set[str] | None:
    """Return the entries that a group needs, or that are retries of one that does not stay; None if it is unknown.

    The entries were read before. So one that was delivered and is not pending now is settled, or lost.
    """
    if not page:
        return set()
    first, last = text(page[0][0]), text(page[-1][0])
    held = await queries.ask(*(("XPENDING", stream, group.name, first, last, len(page)) for group in staying))
    if not all(isinstance(reply, list) for reply in held):
        return None
    names = {group.name for group in staying}
    retries = {text(entry) for entry, flat in page if text(pairs(flat).get("group", staying[0].name)) not in names}
    return retries | {text(row[0]) for reply in held for row in reply}


def _after(entry_id: str) -> str:
    """Return the smallest id above one."""
    ms, sequence = entry_order(entry_id)
    return f"{ms}-{sequence + 1}"
