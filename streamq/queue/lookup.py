"""Lookup: finds a task by its id, in the delayed sets and in the streams. Used by handles, not by workers.

In a delayed set a task is found by its id. In a stream its entry has an id of its own. If that is not known, the
entries are scanned page by page, from the earliest time at which the task can have come to the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from streamq.client import Command
from streamq.errors import BrokerError, UndecodableError
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery
from streamq.wire.message import dumps
from streamq.wire.names import qualified
from streamq.wire.side_effects import SideEffect, effects_of_end

PAGE = 500  # entries that one step of a scan reads
CANCELLED_KEPT = 3600.0  # seconds that the result "cancelled" is kept, if the message does not say how long
_AT_ONCE = 100  # tasks that are withdrawn together
_ROUNDS = 5  # a task that moves during the lookup is looked up again
_CANCELLED = {"error_type": "Cancelled", "error": "cancelled before it started", "reason": "cancelled", "traceback": ""}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a task was found: delayed as `member`, or in a stream as the entry of `delivery`."""

    delivery: Delivery
    member: str = ""
    running: bool = False


class Lookup:
    """The lookup of one task, in `tier` first. `entry_id` is its first entry, empty if not known.

    `since` (Unix ms, the server's): the task has no older entry.
    """

    def __init__(self, store: Store, task_id: str, *, tier: int = 0, entry_id: str = "", since: int = 0) -> None:
        self._store = store
        self._task_id = task_id
        self._tiers = [tier, *(other for other in range(len(store.tiers)) if other != tier)]
        self._entry_id = entry_id
        begin = f"{since or int(entry_id.partition('-')[0] or 0)}-0"
        self._from = dict.fromkeys(self._tiers, begin)

    def __repr__(self) -> str:
        return f"<Lookup for {self._task_id} from {self._from[self._tiers[0]]}>"

    async def check_known_places(self, *more: Command) -> tuple[Location | None, list[Any]]:
        """Look the task up by its known names: in the delayed sets, and at its first entry. One round trip.

        `more` are commands that are sent first; their replies are returned, too.
        """
        replies = await self._store.attempt([*more, *self.known_places()])
        return self.found_in(replies[len(more) :]), replies[: len(more)]

    def known_places(self) -> list[Command]:
        """Return the commands that look the task up by its known names."""
        commands: list[Command] = [
            ("HMGET", self._store.keys.tiers[tier].messages, *self._members()) for tier in self._tiers
        ]
        return [*commands, *self._entry(self._tiers[0], self._entry_id)]

    def found_in(self, replies: Sequence[Any]) -> Location | None:
        """Return where the task is, by the replies of these commands. Raises BrokerError if this user may not ask."""
        for tier, command, messages in zip(self._tiers, self.known_places(), replies, strict=False):
            if isinstance(messages, BrokerError):
                raise self._store.explained(messages, command)
            for member, message in zip(self._members(), messages, strict=True):
                if message is not None:
                    return Location(self._delayed(tier, message), member)
        return self._place(self._tiers[0], self._entry_id, replies[len(self._tiers) :])

    def _members(self) -> tuple[str, str]:
        return self._task_id, self._store.keys.retry_member(self._task_id)

    async def search_everywhere(self, *, thorough: bool = False) -> Location | None:
        """Scan the streams, again as long as the task moves meanwhile.

        Reads every entry from `since` on, and if `thorough` every delayed task: if two tasks of the same id wait for a
        retry, the second has another name in the delayed set.
        """
        place: Location | None = None
        for again in range(_ROUNDS):
            before = dict(self._from)
            for tier in self._tiers:
                if (place := await self._in_stream(tier)) is not None:
                    return place
            place, _ = await self.check_known_places()
            if place is not None or (again and before == self._from):
                break  # found, or nothing was added to the streams since it was not in the delayed sets
        if place is None and thorough:
            return await self._scan_repeated_retries()
        return place

    async def _in_stream(self, tier: int) -> Location | None:
        stream, more = self._store.keys.tiers[tier].stream, 1
        while more:
            entry, begin, more = await self._store.one(
                step("find_entry")([stream], self._task_id, self._from[tier], PAGE)
            )
            self._from[tier] = begin.decode()
            if entry:
                replies = await self._store.attempt(self._entry(tier, entry.decode()))
                place = self._place(tier, entry.decode(), replies)
                if place is not None:
                    return place
                self._from[tier], more = f"({entry.decode()}", 1  # it left the stream just now
        return None

    async def _scan_repeated_retries(self) -> Location | None:
        """Scan for a retry whose name in the delayed set ends in its entry's id (see postpone.lua)."""
        prefix = qualified(self._store.keys.retry_member(self._task_id), "")
        pattern = "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in prefix) + "*"
        for tier in self._tiers:
            cursor = b"0"
            while True:
                messages = self._store.keys.tiers[tier].messages
                cursor, flat = await self._store.one(("HSCAN", messages, cursor, "MATCH", pattern, "COUNT", PAGE))
                for member, message in zip(flat[::2], flat[1::2], strict=True):
                    return Location(self._delayed(tier, message), member.decode())
                if cursor in (b"0", 0):
                    break
        return None

    def _entry(self, tier: int, entry_id: str) -> list[Command]:
        if not entry_id:
            return []
        stream, group = self._store.keys.tiers[tier].stream, self._store.keys.group
        return [("XRANGE", stream, entry_id, entry_id), ("XPENDING", stream, group, entry_id, entry_id, 1)]

    def _place(self, tier: int, entry_id: str, replies: Sequence[Any]) -> Location | None:
        """Return the location by the replies of XRANGE and XPENDING. Without a group no worker can run it.

        Raises BrokerError if this user may not ask.
        """
        for command, reply in zip(self._entry(tier, entry_id), replies, strict=True):
            if isinstance(reply, BrokerError) and reply.code == "NOPERM":
                raise self._store.explained(reply, command)
        if not replies or not isinstance(replies[0], list) or not replies[0]:
            return None
        ((entry, flat),) = replies[0]
        running = isinstance(replies[1], list) and bool(replies[1])
        return Location(Delivery(tier, self._store.tiers[tier].name, entry, flat), running=running)

    def _delayed(self, tier: int, message: bytes) -> Delivery:
        flat = parse_delayed_message(message) or [b"broken", message]
        if b"id" not in flat[::2]:
            flat = [b"id", self._task_id.encode(), *flat]
        return Delivery(tier, self._store.tiers[tier].name, b"0-0", flat)


async def withdraw(lookup: Lookup, store: Store, task_id: str, *, keep: float | None) -> str:
    """Withdraw a task that was not delivered yet, with its side effects; tell a running one to stop.

    `keep` (s) is how long the result "cancelled" is kept, if the message does not say. Returns where the task was:
    'delayed', 'queued', 'running' or 'unknown'.
    """
    for attempt in range(_ROUNDS):
        place = None if attempt else (await lookup.check_known_places())[0]
        if place is None and (place := await lookup.search_everywhere(thorough=True)) is None:
            break
        found = await store.cancel(*_withdrawal(task_id, place, keep))
        if found != "unknown":
            return found
    return "unknown"


async def withdraw_all(
    store: Store, tasks: Sequence[tuple[Lookup, str]], keeps: Sequence[float | None]
) -> list[str]:  # fmt: skip
    """Do as `withdraw` for many tasks, each a lookup and an id: two round trips for 100 that are at a known place."""
    found: list[str] = []
    for at in range(0, len(tasks), _AT_ONCE):
        some = list(zip(tasks[at : at + _AT_ONCE], keeps[at : at + _AT_ONCE], strict=True))
        asked = [lookup.known_places() for (lookup, _), _ in some]
        replies = iter(await store.attempt([command for commands in asked for command in commands]))
        places = [
            lookup.found_in([*islice(replies, len(commands))])
            for ((lookup, _), _), commands in zip(some, asked, strict=True)
        ]
        answers = iter(await store.call([
            store.enqueue_commands.withdraw(*_withdrawal(task_id, place, keep))
            for ((_, task_id), keep), place in zip(some, places, strict=True) if place is not None
        ]))  # fmt: skip
        for ((lookup, task_id), keep), place in zip(some, places, strict=True):
            answer = "unknown" if place is None else str(next(answers), "ascii")
            found.append(answer if answer != "unknown" else await withdraw(lookup, store, task_id, keep=keep))
    return found


def _withdrawal(
    task_id: str, place: Location, keep: float | None
) -> tuple[int, str, str, list[SideEffect], list[str]]:  # fmt: skip
    """Return the arguments of `EnqueueCommands.withdraw`."""
    delivery = place.delivery
    entry = "" if place.member else delivery.entry_id.decode()
    also = effects_of_end(delivery, payload=dumps(_CANCELLED), keep=_kept(delivery, keep))
    members = [place.member] if place.member else []
    return delivery.tier, task_id, entry, also, members


def parse_delayed_message(message: bytes) -> list[bytes] | None:
    """Return the flat fields of a delayed message, None if it is not one."""
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
