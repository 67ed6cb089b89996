"""What follows from the end of a task, in the same atomic step as its settlement. Pure.

A task that was acknowledged, dead-lettered or withdrawn may have to tell who waits for its result,
free its deduplication key, or send others. These are values here; the store names their keys, and
`_consequences.lua` carries them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamq.delivery import Delivery
from streamq.errors import UndecodableError
from streamq.message import Field

DEDUP, THEN = b"dedup", b"then"  # fields of a message whose end has consequences


@dataclass(frozen=True, slots=True)
class Tell:
    """The result of a task is kept for `ttl` seconds, and who waits for it is told. `payload` is JSON."""

    task_id: str
    ttl: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class Free:
    """A deduplication key is free again, if it is still this task's."""

    key: str
    task_id: str


@dataclass(frozen=True, slots=True)
class Send:
    """A task is sent to a stream. `fields` are flat, as in the stream."""

    stream: str
    fields: Sequence[Field]


@dataclass(frozen=True, slots=True)
class Later:
    """A task is sent to a stream after `delay` seconds."""

    stream: str
    task_id: str
    fields: Sequence[Field]
    delay: float


Consequence = Tell | Free | Send | Later


def follows(delivery: Delivery) -> bool:
    """Has the end of this task more consequences than its result?"""
    fields = delivery.fields
    return DEDUP in fields or THEN in fields


def of_end(delivery: Delivery, *, told: bytes, keep: float | None) -> list[Consequence]:
    """Return what follows from the end of a task, however it ended.

    `told` is its result as waiters get it, `keep` for how long (s) it is wanted, None for not at all.
    """
    found: list[Consequence] = []
    try:
        if keep:
            found.append(Tell(delivery.task_id, keep, told))
        if (key := delivery.dedup) is not None:
            found.append(Free(key, delivery.task_id))
    except UndecodableError:  # it is dead as undecodable: what cannot be read has no consequences
        return found
    return found
