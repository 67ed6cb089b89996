"""What tests of many dead letters share: letters written by hand, and what became of them."""

from __future__ import annotations

from typing import Any

import orjson

from tests.servers import TestServer


def bury(server: TestServer, task_id: str, **changes: Any) -> str:
    """Add a dead letter as a worker writes it, and return its entry id."""
    fields: dict[str, Any] = {
        "task_id": task_id, "task": "send", "args": '["a@b.c"]', "kwargs": '{"n":1}', "tier": "standard",
        "reason": "rejected", "error_type": "builtins.ValueError", "error": "no good", "attempts": 4, "starts": 5,
    } | changes  # fmt: skip
    entry: bytes = server.command("XADD", "queue:dead", "*", *(part for pair in fields.items() for part in pair))
    return entry.decode()


def bury_many(server: TestServer, number: int) -> None:
    """Add so many dead letters, t0 and on. A server that is a process does so in steps of a thousand."""
    script = (
        "for n = ARGV[1], ARGV[2] do local number = string.format('%d', n) redis.call('XADD', KEYS[1], '*', 'task_id', "
        "'t' .. number, 'task', 'send', 'args', '[' .. number .. ']', 'tier', 'standard', 'reason', 'rejected', "
        "'attempts', 4) end"
    )
    for first in range(0, number, 1000):
        server.command("EVAL", script, 1, "queue:dead", first, min(number, first + 1000) - 1)


def dead_ids(server: TestServer) -> list[str]:
    """Return the task ids of the dead letters that are left, oldest first."""
    rows = server.command("XRANGE", "queue:dead", "-", "+")
    return [dict(zip(flat[::2], flat[1::2], strict=True))[b"task_id"].decode() for _, flat in rows]


def replayed_from(server: TestServer, stream: str = "queue:standard") -> list[str]:
    """Return the ids of the dead tasks that a stream has again, in its order."""
    found: list[str] = []
    last = "-"
    while rows := server.command("XRANGE", stream, last, "+", "COUNT", 10_000):
        for _, flat in rows:
            headers = dict(zip(flat[::2], flat[1::2], strict=True))[b"headers"]
            found.append(orjson.loads(headers)["replayed_from"])
        last = f"({rows[-1][0].decode()}"
    return found
