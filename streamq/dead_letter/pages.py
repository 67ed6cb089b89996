"""Reads the dead letter stream page by page, and knows how far it has come.

A page has at most `PAGE` letters, and fewer where letters are large: the reply that carries it has about `PAGE_BYTES`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.selection import checked_entry_id, nothing_after, order
from streamq.queue.store import Store

PAGE: Final = 100  # letters of one round trip
PAGE_BYTES: Final = 8 << 20  # of one round trip, about
FIRST: Final = 20  # letters of the first page: how large they are is not known yet


class PageReader:
    """Reads one stream in one direction. `examined` and `bytes_read` count what was read, `after` is the last id."""

    def __init__(self, store: Store, *, after: str | None, newest_first: bool = False) -> None:
        self._store = store
        self._newest_first = newest_first
        self._size = FIRST
        self.after = None if after is None else checked_entry_id(after)
        self.examined = 0
        self.bytes_read = 0
        self.ended = False

    def __repr__(self) -> str:
        return f"<PageReader after {self.after} examined={self.examined}>"

    async def next(self, most: int = PAGE) -> list[DeadLetterEntry]:
        """Return the next page, of at most so many letters; empty at the end of the stream."""
        size = min(most, self._size)
        if self.after is not None and nothing_after(self.after, newest_first=self._newest_first):
            self.ended = True
        if size <= 0 or self.ended:
            return []
        start = None if self.after is None else f"({self.after}"
        first, last = (start or "+", "-") if self._newest_first else (start or "-", "+")
        command = "XREVRANGE" if self._newest_first else "XRANGE"
        rows = await self._store.one((command, self._store.keys.dead, first, last, "COUNT", size))
        page = [DeadLetterEntry.of(entry_id, flat) for entry_id, flat in rows]
        self.ended = len(page) < size
        if page:
            self._note(page)
        return page

    def _note(self, page: list[DeadLetterEntry]) -> None:
        self.after = page[-1].entry_id
        self.examined += len(page)
        taken = sum(len(part) for letter in page for part in letter.flat)
        self.bytes_read += taken
        self._size = max(1, min(PAGE, PAGE_BYTES * len(page) // max(1, taken)))


async def newest_id(store: Store) -> str:
    """Return the id of the newest letter, 0-0 if there is none. What is newer came later."""
    rows = await store.one(("XREVRANGE", store.keys.dead, "+", "-", "COUNT", 1))
    return str(rows[0][0], "ascii") if rows else "0-0"


async def pages(store: Store, last: str, *, after: str | None = None) -> AsyncGenerator[list[DeadLetterEntry], None]:
    """Yield pages, oldest first, up to the entry id `last`."""
    reader = PageReader(store, after=after)
    while page := await reader.next():
        yield [letter for letter in page if order(letter.entry_id) <= order(last)]
        if reader.ended or order(page[-1].entry_id) >= order(last):
            return
