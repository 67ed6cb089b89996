"""A step that the server refuses has changed nothing, whichever of its keys is somebody else's.

Scripts are not rolled back: what one did before it met a key of another type stays done. So each must meet
it before it takes anything away. Here every step is run as often as it has keys, each time with another of them
under something of somebody else's, and what the server holds is compared byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from streamq.scripts import step

if TYPE_CHECKING:
    from tests.servers import RealServer

STREAM, CRASHES, DELAYED, MESSAGES, DEAD = "s", "s:crashes", "s:delayed", "s:messages", "dead"
OTHER = ("o", "o:delayed", "o:messages")  # those of another tier
TIER = (STREAM, DELAYED, MESSAGES)
FIELDS = ("task", "t")

# What follows from an end: its keys, and its arguments.
FREE = (("d", "latest", DELAYED, "o:delayed"), ("free_key", 4, 2, "x", "wake"))
SEND = (("next",), ("send_task", 1, 2, *FIELDS))
LATER = (("n:delayed", "n:messages"), ("delay_task", 2, 4, "y", 1000, "wake", '["task","t"]'))
JOIN = (
    ("join", "last", "l:delayed", "l:messages"),
    ("join_group", 4, 10, 1, "1", 1, 9000, "z", 0, "wake", "", *FIELDS),
)
JOIN_LATER = (JOIN[0], ("join_group", 4, 10, 1, "1", 1, 9000, "z", 5000, "wake", "", *FIELDS))
TELL = (("r",), ("keep_result", 1, 2, 5000, "done"))


def following(*means: tuple[tuple[str, ...], tuple[Any, ...]]) -> tuple[list[str], list[Any]]:
    return [key for keys, _ in means for key in keys], [part for _, parts in means for part in parts]


@dataclass(frozen=True)
class Case:
    """A step, its keys, and what it is called with; `entry` stands for the id of an entry that `me` holds."""

    step: str
    keys: tuple[str, ...]
    arguments: tuple[Any, ...]
    queued: bool = False  # is `x` in the stream in place of among the delayed?

    def run(self, server: RealServer, entry: bytes) -> Any:
        arguments = [entry if part == "entry" else part for part in self.arguments]
        return server.command("EVAL", step(self.step).source, len(self.keys), *self.keys, *arguments)


NAMES, PARTS = following(TELL, FREE, SEND, LATER, JOIN)
NAMES_LATER, PARTS_LATER = following(SEND, JOIN_LATER)
NEWEST = ("d", "latest", "accepted", *TIER, *OTHER)
CASES = {
    "ack_side_effects": Case("ack_side_effects", (STREAM, CRASHES, *NAMES), ("g", "entry", *PARTS)),
    "finish, later": Case("ack_side_effects", (STREAM, CRASHES, *NAMES_LATER), ("g", "entry", *PARTS_LATER)),
    "dead_letter": Case(
        "dead_letter", (STREAM, CRASHES, DEAD, *NAMES), ("g", "me", "entry", 100, 1000, 2, *FIELDS, *PARTS)
    ),
    "postpone": Case(
        "postpone", (STREAM, CRASHES, DELAYED, MESSAGES), ("g", "me", "entry", 10, "m", '["task","t"]', "wake")
    ),
    "cancel": Case("cancel", (*TIER, *NAMES), ("", "wake", 1, "x", *PARTS)),
    "task_started": Case("task_started", FREE[0], FREE[1]),
    "start_workflow": Case("start_workflow", ("guard", *NAMES), ("w", 1, 9000, *PARTS)),
    "enqueue": Case("enqueue", (*TIER, "g1", "g2"), ("n", 0, -1, "wake", "", 9000, 9000, *FIELDS)),
    "enqueue, later": Case("enqueue", (*TIER, "g1"), ("n", 5000, 0, "wake", '["task","t"]', 9000, *FIELDS)),
    "debounce": Case("debounce", NEWEST, ("n", 1, 0, -1, 9000, -1, 9000, "wake", '"task","t"]', *FIELDS)),
    "debounce, later": Case("debounce", NEWEST, ("n", 2, 5000, 0, 9000, -1, 9000, "wake", '"task","t"]', *FIELDS)),
    "keep_last": Case("keep_last", NEWEST, ("n", 2, 0, -1, 9000, 0, 9000, "wake", '"task","t"]', *FIELDS)),
    "keep_last, queued": Case(
        "keep_last", NEWEST, ("n", 2, 0, -1, 9000, 9000, 9000, "wake", '"task","t"]', *FIELDS), queued=True
    ),
    "promote": Case("promote", TIER, (100,)),
    "replay": Case("replay", (DEAD, STREAM), ("7-0", *FIELDS)),
    "release": Case("release", (STREAM,), ("g", "me", "parked", 30_000, "wake", "entry")),
}


def prepared(server: RealServer, case: Case) -> bytes:
    """An entry that is held, `x` delayed under a deduplication key, a dead letter. Return the id of the entry."""
    server.command("FLUSHALL")
    server.command("XGROUP", "CREATE", STREAM, "g", "0", "MKSTREAM")
    entry: bytes = server.command("XADD", STREAM, "*", *FIELDS)
    server.command("XREADGROUP", "GROUP", "g", "me", "STREAMS", STREAM, ">")
    server.command("ZADD", DELAYED, 1, "x")
    server.command("HSET", MESSAGES, "x", '["task","t"]')
    server.command("SET", "d", "x")
    server.command("HSET", "latest", "id", "x", "since", 0, "entry", "", "due", 0, "ttl", 1)
    server.command("XADD", DEAD, "7-0", *FIELDS)
    if case.queued:
        server.command("DEL", DELAYED, MESSAGES)
        queued = server.command("XADD", STREAM, "*", "id", "x", *FIELDS)
        server.command("HSET", "latest", "entry", queued, "stream", STREAM, "since", 10**15)
    return entry


def contents(server: RealServer) -> dict[bytes, bytes]:
    """Return all keys, and what they hold."""
    return {key: server.command("DUMP", key) for key in server.command("KEYS", "*")}


@pytest.mark.parametrize("name", CASES)
def test_what_is_refused_has_changed_nothing(real_server, name):
    """Each of its keys in turn is a list, which nothing here is. Without one the step does something."""
    case, refused = CASES[name], 0
    entry = prepared(real_server, case)
    before = contents(real_server)
    assert not isinstance(case.run(real_server, entry), Exception)
    assert contents(real_server) != before
    for key in case.keys:
        entry = prepared(real_server, case)
        real_server.command("DEL", key)
        real_server.command("LPUSH", key, "theirs")
        before = contents(real_server)
        reply = case.run(real_server, entry)
        if isinstance(reply, Exception):
            refused += 1
            assert "WRONGTYPE" in str(reply)
            assert contents(real_server) == before, key
    assert refused >= len(case.keys) / 3
