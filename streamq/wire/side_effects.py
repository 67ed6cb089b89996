"""What follows from the end of a task, in the same atomic step as its settlement. Pure.

A task that was acknowledged, dead-lettered or withdrawn may have to tell who waits for its result,
free its deduplication key, or send others. These are values here; the store names their keys, and
`_consequences.lua` carries them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import orjson

from streamq.errors import UndecodableError
from streamq.wire.delivery import Delivery
from streamq.wire.message import Field, dumps
from streamq.wire.next_step import Joined, Sent, Stage, awaited, going_on

_OK = b'{"ok":'  # how a kept result begins
DEDUP, DEDUP_UNTIL, THEN = b"dedup", b"dedup_until", b"then"  # fields of a message whose end has consequences


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


@dataclass(frozen=True, slots=True)
class Join:
    """A member of a group is done. Once all `size` are, a task is sent to a stream after `delay` seconds.

    Results are kept for `keep` seconds. They become its first argument, a list, if `rest` (JSON) closes its arguments.
    """

    stream: str
    task_id: str
    fields: Sequence[Field]
    delay: float
    index: int
    size: int
    keep: float
    result: bytes
    rest: bytes


Consequence = Tell | Free | Send | Later | Join


def follows(delivery: Delivery, *, done: bool) -> bool:
    """Has the end of this task more consequences than its result? `done` says that it succeeded.

    The success of a task does not free a deduplication key that is held for a time; everything else does.
    """
    if delivery.plain:
        return False
    fields = delivery.fields
    return (DEDUP_UNTIL if done else DEDUP) in fields or THEN in fields


def of_start(delivery: Delivery) -> list[Consequence]:
    """Return what follows from the start of a task."""
    if delivery.dedup_until != "started" or (key := delivery.dedup) is None:
        return []
    return [Free(key, delivery.task_id)]


def of_end(
    delivery: Delivery, *, told: bytes, keep: float | None, done: bool = False, now: float = 0.0,
    group: str | None = None,
) -> list[Consequence]:  # fmt: skip
    """Return what follows from the end of a task; `done` says that it succeeded.

    `told` is its result as waiters get it, `keep` for how long (s) it is wanted, None for not at all. `now` is Unix
    seconds, `group` the consumer group in which it succeeded.
    """
    found: list[Consequence] = []
    try:
        if keep:
            found.append(Tell(delivery.task_id, keep, told))
        if (key := delivery.dedup) is not None and (not done or DEDUP_UNTIL in delivery.fields):
            found.append(Free(key, delivery.task_id))
        if (stages := delivery.then) is not None and done:
            found += sent(stages, told[len(_OK) : -1] if told.startswith(_OK) else b"", now=now, group=group)
        elif stages is not None:
            why = _upstream(delivery, told)
            found += (Tell(task_id, ttl, why) for task_id, ttl in awaited(stages))
    except UndecodableError:  # it is dead as undecodable: what cannot be read has no consequences
        return found
    return found


def sent(
    stages: Sequence[Stage], result: bytes = b"", *, now: float, group: str | None = None
) -> list[Send | Later | Join]:
    """Return the sending of the next stages of a workflow. `result` is JSON, `now` Unix seconds."""
    found: list[Send | Later | Join] = []
    for one in going_on(stages, result, now=now, group=group):
        match one:
            case Sent(stream, task_id, fields, delay):
                found.append(Later(stream, task_id, fields, delay) if delay else Send(stream, fields))
            case Joined(index, size, keep, part, message, rest):
                found.append(Join(
                    message.stream, message.task_id, message.fields, message.delay, index, size, keep, part, rest
                ))  # fmt: skip
            case _:
                assert_never(one)
    return found


def _upstream(delivery: Delivery, told: bytes) -> bytes:
    """Return what those are told who wait for the result of a later step."""
    failure = orjson.loads(told)
    error = f"{delivery.task} {delivery.task_id} before it failed ({failure['reason']}): {failure['error']}"
    return dumps({**failure, "error": error, "reason": "upstream"})
