"""What is asked of an enqueue, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an enqueue: `fresh` is False if another task holds the id or dedup key."""

    task_id: str
    entry_id: str
    fresh: bool = True


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


def accepted_of(reply: Any) -> Accepted:
    """Return what a reply says: that of XADD is an entry's id, that of enqueue.lua says more."""
    if isinstance(reply, bytes):
        entry = reply.decode()
        return Accepted("", entry)
    fresh, task_id, entry = reply
    return Accepted(task_id.decode(), entry.decode(), bool(fresh))
