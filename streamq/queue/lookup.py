"""Finds a task by its id: among the delayed, then in the streams. For handles, never on the way of a task.

Where a task is delayed its id names it; its entry in a stream has an id of its own. Whoever does not know that looks
at the entries one page after the other, from the time on before which it cannot have come there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from streamq.client import Command
from streamq.errors import UndecodableError
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery
from streamq.wire.message import dumps
from streamq.wire.side_effects import of_end

PAGE = 500  # entries that one step of a search looks at
CANCELLED_KEPT = 3600.0  # seconds for which it is known that a task was cancelled, where nobody says how long
_ROUNDS = 5  # a task that moves while it is looked for is looked for again
_CANCELLED = {"error_type": "Cancelled", "error": "cancelled before it started", "reason": "cancelled", "traceback": ""}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task was seen: delayed as `member`, or as the entry of its delivery."""

    delivery: Delivery
    member: str = ""
    running: bool = False


class Search:
    """Looks for one task, in `tier` first. `entry_id` is its first entry if that is known.

    `since` (Unix ms, the server's): it has no entry that is older.
    """

    def __init__(self, store: Store, task_id: str, *, tier: int = 0, entry_id: str = "", since: int = 0) -> None:
        self._store = store
        self._task_id = task_id
        self._tiers = [tier, *(other for other in range(len(store.tiers)) if other != tier)]
        self._entry_id = entry_id
        begin = f"{since or int(entry_id.partition('-')[0] or 0)}-0"
        self._from = dict.fromkeys(self._tiers, begin)

    def __repr__(self) -> str:
        return f"<Search for {self._task_id} from {self._from[self._tiers[0]]}>"

    async def glance(self, *more: Command) -> tuple[Place | None, list[Any]]:
        """Look where one look is enough: among the delayed, and at its first entry. One round trip.

        `more` are commands that go first; their replies are returned too.
        """
        members = self._task_id, self._store.member(self._task_id)
        commands: list[Command] = [*more]
        commands += [("HMGET", self._store.keys.tiers[tier].messages, *members) for tier in self._tiers]
        commands += self._entry(self._tiers[0], self._entry_id)
        replies = await self._store.attempt(commands)
        asked, found = replies[: len(more)], replies[len(more) :]
        for tier, messages in zip(self._tiers, found, strict=False):
            if isinstance(messages, Exception):
                raise messages
            for member, message in zip(members, messages, strict=True):
                if message is not None:
                    return Place(self._delayed(tier, message), member), asked
        return self._place(self._tiers[0], found[len(self._tiers) :]), asked

    async def search(self, *, thorough: bool = False) -> Place | None:
        """Look everywhere, for as long as the task moves meanwhile.

        Looks at every entry from `since` on, and if `thorough` at every delayed task: of two tasks of one
        id that wait for a retry the second has another name.
        """
        place: Place | None = None
        for again in range(_ROUNDS):
            before = dict(self._from)
            for tier in self._tiers:
                if (place := await self._in_stream(tier)) is not None:
                    return place
            place, _ = await self.glance()
            if place is not None or (again and before == self._from):
                break  # seen, or nothing came to the streams since it was not among the delayed
        if place is None and thorough:
            return await self._namesake()
        return place

    async def _in_stream(self, tier: int) -> Place | None:
        stream, more = self._store.keys.tiers[tier].stream, 1
        while more:
            entry, begin, more = await self._store.one(step("find")([stream], self._task_id, self._from[tier], PAGE))
            self._from[tier] = begin.decode()
            if entry:
                place = self._place(tier, await self._store.attempt(self._entry(tier, entry.decode())))
                if place is not None:
                    return place
                self._from[tier], more = f"({entry.decode()}", 1  # it left in this instant
        return None

    async def _namesake(self) -> Place | None:
        """Look for a retry that is delayed under its entry's id too (see postpone.lua)."""
        prefix = f"{self._store.member(self._task_id)}:"
        pattern = "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in prefix) + "*"
        for tier in self._tiers:
            cursor = b"0"
            while True:
                messages = self._store.keys.tiers[tier].messages
                cursor, flat = await self._store.one(("HSCAN", messages, cursor, "MATCH", pattern, "COUNT", PAGE))
                for member, message in zip(flat[::2], flat[1::2], strict=True):
                    return Place(self._delayed(tier, message), member.decode())
                if cursor in (b"0", 0):
                    break
        return None

    def _entry(self, tier: int, entry_id: str) -> list[Command]:
        if not entry_id:
            return []
        stream, group = self._store.keys.tiers[tier].stream, self._store.keys.group
        return [("XRANGE", stream, entry_id, entry_id), ("XPENDING", stream, group, entry_id, entry_id, 1)]

    def _place(self, tier: int, replies: Sequence[Any]) -> Place | None:
        """Return what XRANGE and XPENDING say; no group, no worker that could run it."""
        if not replies or not isinstance(replies[0], list) or not replies[0]:
            return None
        ((entry, flat),) = replies[0]
        running = isinstance(replies[1], list) and bool(replies[1])
        return Place(Delivery(tier, self._store.tiers[tier].name, entry, flat), running=running)

    def _delayed(self, tier: int, message: bytes) -> Delivery:
        flat = flat_of(message) or [b"broken", message]
        if b"id" not in flat[::2]:
            flat = [b"id", self._task_id.encode(), *flat]
        return Delivery(tier, self._store.tiers[tier].name, b"0-0", flat)


async def withdraw(search: Search, store: Store, task_id: str, *, keep: float | None) -> str:
    """Withdraw a task that was not delivered yet, and carry out what follows; a running one is told to stop.

    `keep` is for how long (s) it is known that it was cancelled, where its message does not say. Returns what it was:
    'delayed', 'queued', 'running' or 'unknown'.
    """
    for attempt in range(_ROUNDS):
        place = None if attempt else (await search.glance())[0]
        if place is None and (place := await search.search(thorough=True)) is None:
            break
        delivery = place.delivery
        entry = "" if place.member else delivery.entry_id.decode()
        also = of_end(delivery, told=dumps(_CANCELLED), keep=_kept(delivery, keep))
        found = await store.cancel(delivery.tier, task_id, entry, also, [place.member] if place.member else [])
        if found != "unknown":
            return found
    return "unknown"


def flat_of(message: bytes) -> list[bytes] | None:
    """Return the flat fields of a delayed message, None if it is none."""
    try:
        flat = orjson.loads(message)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(flat, list) or len(flat) % 2 or not all(isinstance(part, str) for part in flat):
        return None
    return [part.encode() for part in flat]


def _kept(delivery: Delivery, keep: float | None) -> float | None:
    try:
        wanted = delivery.result_ttl
    except UndecodableError:
        return keep
    return keep if wanted is None else wanted or None
