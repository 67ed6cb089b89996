"""Delayed tasks: lists the tasks and retries that wait for their due time, and promotes them to their streams.

The loop that promotes is `consumer.promoter`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from streamq.errors import UndecodableError
from streamq.queue.lookup import parse_delayed_message
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery

PAGE = 100  # tasks of one tier that one round trip reads
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A task that is delayed until `due` (aware, UTC). `retry`: a run of it failed or was postponed.

    If its message cannot be decoded, `task` and the arguments are empty: it will be a dead letter.
    """

    task_id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    tier: str
    due: datetime
    attempt: int = 1
    retry: bool = False


class _TierPages:
    """The delayed tasks of one tier, soonest first, read page by page."""

    def __init__(self, store: Store, tier: int) -> None:
        self._store = store
        self._tier = tier
        self._rows: deque[tuple[float, bytes]] = deque()
        self._messages: dict[bytes, bytes | None] = {}
        self._last = float("-inf")
        self._members_at_last: set[bytes] = set()  # the members that are due at `_last`
        self._ended = False

    async def first(self) -> tuple[float, bytes] | None:
        """Return the due time (Unix ms) and the member of the soonest task; None at the end."""
        while not self._rows and not self._ended:
            await self._load_page()
        return self._rows[0] if self._rows else None

    def take(self) -> Scheduled | None:
        """Take the soonest task; None if it has left the delayed set since."""
        due, member = self._rows.popleft()
        message = self._messages.pop(member, None)
        return None if message is None else _described(self._store, self._tier, due, member, message)

    async def _load_page(self) -> None:
        keys = self._store.keys.tiers[self._tier]
        # By due time, not by rank: each task that is promoted meanwhile shifts the ranks of all others.
        begin = "-inf" if self._last == float("-inf") else f"{self._last:.0f}"
        size = PAGE + len(self._members_at_last)
        flat = await self._store.one(("ZRANGEBYSCORE", keys.delayed, begin, "+inf", "WITHSCORES", "LIMIT", 0, size))
        rows = [(float(due), member) for member, due in _pairs(flat)]
        self._ended = len(rows) < size
        new = [row for row in rows if row[1] not in self._members_at_last]
        if not new:
            return
        last = new[-1][0]
        self._members_at_last = {member for due, member in rows if due == last} | (
            self._members_at_last if last == self._last else set()
        )
        self._last = last
        members = [member for _, member in new]
        self._messages = dict(zip(members, await self._store.one(("HMGET", keys.messages, *members)), strict=True))
        self._rows.extend(new)


async def scheduled(store: Store, tiers: Iterable[int], limit: int | None) -> AsyncGenerator[Scheduled, None]:
    """Yield the delayed tasks of these tiers, soonest first, at most `limit`."""
    pages = [_TierPages(store, tier) for tier in tiers]
    left = limit
    while left is None or left > 0:
        heads = [(row, at) for at, page in enumerate(pages) if (row := await page.first()) is not None]
        if not heads:
            return
        found = pages[min(heads)[1]].take()
        if found is not None:
            yield found
            left = None if left is None else left - 1


async def next_due(store: Store, tiers: Iterable[int]) -> float | None:
    """Return the seconds until the next delayed task of these tiers is due; None if there is none.

    It is 0 or less if one is due.
    """
    # TIME comes last: if it is delayed, the task seems due too early, never too late.
    commands = [("ZRANGE", store.keys.tiers[tier].delayed, 0, 0, "WITHSCORES") for tier in tiers]
    *firsts, (seconds, microseconds) = await store.call([*commands, ("TIME",)])
    dues = [float(first[1]) for first in firsts if first]
    return min(dues) / 1000 - int(seconds) - int(microseconds) / 1e6 if dues else None


async def promote(store: Store, limit: int = 100, tiers: Iterable[int] | None = None) -> tuple[int, float | None, bool]:
    """Move tasks of these tiers (None: of all) that are due to their streams, at most `limit` of each tier.

    Returns how many were moved, the seconds until the next one is due (None if there is none), and whether more are due
    already.
    """
    wanted = store.keys.tiers if tiers is None else [store.keys.tiers[tier] for tier in tiers]
    names = [name for keys in wanted for name in (keys.stream, keys.delayed, keys.messages)]
    moved, left, more = await store.one(step("promote")(names, limit))
    return moved, None if left < 0 else left / 1000, bool(more)


def _pairs(flat: list[Any]) -> list[tuple[bytes, Any]]:
    """Return pairs of member and score, in whichever form the server's protocol has them."""
    if flat and isinstance(flat[0], list | tuple):
        return [(member, score) for member, score in flat]
    return list(zip(flat[::2], flat[1::2], strict=True))


def _described(store: Store, tier: int, due: float, member: bytes, message: bytes) -> Scheduled:
    name = store.tiers[tier].name
    moment = _LAST if due >= _LAST.timestamp() * 1000 else datetime.fromtimestamp(max(due, 0.0) / 1000, UTC)
    delivery = Delivery(tier, name, b"0-0", parse_delayed_message(message) or [])
    try:
        task_id = delivery.task_id if b"id" in delivery.fields else member.decode(errors="replace")
        retry = delivery.group is not None
        return Scheduled(task_id, delivery.task, delivery.args, delivery.kwargs, name, moment, delivery.attempt, retry)
    except UndecodableError:
        return Scheduled(member.decode(errors="replace"), "", [], {}, name, moment)
