"""The requests of an enqueue, and its reply. Values; nothing here sends.

`enqueue_commands` turns a request into a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class EnqueueReply(NamedTuple):  # a tuple costs a third: there is one for every task that is sent
    """The reply to an enqueue: `fresh` is False if another task holds the task id or the deduplication key.

    `task_id` is then that of the other task, and `replaced` says that its message was replaced by this one. `since`
    (Unix ms, the server's): the task has no older entry; 0 if that is not known.
    """

    task_id: str
    entry_id: str
    fresh: bool = True
    replaced: bool = False
    since: int = 0


@dataclass(frozen=True, slots=True)
class GuardedEnqueue:
    """An enqueue that needs a script: it has a task id of its own, guard keys, or a delay.

    It is accepted only if none of its guard keys exists. `own_id`: the sender gave the id, so an earlier task may have
    had it.
    """

    tier: int
    task_id: str
    fields: Sequence[str]
    packed: bytes
    delay: float = 0.0
    due: float | None = None  # Unix seconds
    guards: Sequence[tuple[str, float]] = ()  # key, TTL in s
    own_id: bool = False


@dataclass(frozen=True, slots=True)
class NewestWinsEnqueue:
    """An enqueue with a deduplication key for which the newest message wins. Times are in seconds.

    `mode` is the name of the script. `fields` are without the id. `ttl` bounds how long the key is held. `bound` is how
    long newer messages may delay the task (None: for ever). `accepted` is how long the task id is remembered, 0 if the
    sender gave none.
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


def parse_enqueue_reply(reply: Any) -> EnqueueReply:
    """Return a reply as a value: XADD replies with the id of an entry, the scripts with a list."""
    if isinstance(reply, bytes):
        return EnqueueReply("", reply.decode())
    fresh, task_id, entry, *more = reply
    since, replaced = int(more[0]) if more else 0, len(more) > 1 and bool(more[1])
    return EnqueueReply(task_id.decode(), entry.decode(), bool(fresh), replaced, since)
