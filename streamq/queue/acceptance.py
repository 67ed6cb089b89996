"""What is asked of an enqueue, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Accepted(NamedTuple):  # a tuple costs a third: there is one for every task that is sent
    """What became of an enqueue: `fresh` is False if another task holds the id or dedup key.

    `replaced` says that the other one's message is now this one. `since` (Unix ms, the server's): the task has
    no entry that is older; 0 if that is not known.
    """

    task_id: str
    entry_id: str
    fresh: bool = True
    replaced: bool = False
    since: int = 0


@dataclass(frozen=True, slots=True)
class Guarded:
    """An enqueue that needs the script: a task id of its own, guard keys, or a time."""

    tier: int
    task_id: str
    fields: Sequence[str]
    packed: bytes
    delay: float = 0.0
    due: float | None = None  # Unix seconds
    guards: Sequence[tuple[str, float]] = ()  # key, TTL in s


@dataclass(frozen=True, slots=True)
class Newest:
    """An enqueue for whose deduplication key the newest wins. `fields` are without the id; times in seconds.

    `ttl` bounds how long the key is held, `bound` how long newer ones may put the task off (None: for ever);
    `accepted` is for how long the id is remembered, 0 if its sender gave none.
    """

    mode: str
    tier: int
    task_id: str
    key: str
    fields: Sequence[str]
    packed: bytes
    ttl: float
    bound: float | None
    delay: float = 0.0
    due: float | None = None  # Unix seconds
    accepted: float = 0.0


def accepted_of(reply: Any) -> Accepted:
    """Return what a reply says: that of XADD is an entry's id, those of the scripts say more."""
    if isinstance(reply, bytes):
        return Accepted("", reply.decode())
    fresh, task_id, entry, *more = reply
    since, replaced = int(more[0]) if more else 0, len(more) > 1 and bool(more[1])
    return Accepted(task_id.decode(), entry.decode(), bool(fresh), replaced, since)
