"""`streamq enqueue`: arguments and options reach the message."""

from __future__ import annotations

import json
import time

import pytest


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


def entry(server, stream: str) -> dict[str, str]:
    """Return the only entry of a stream."""
    ((_, flat),) = server.command("XRANGE", stream, "-", "+")
    texts = [part.decode() for part in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def test_arguments_are_json_where_they_parse(streamq, valkey):
    """Numbers, lists and quoted strings are JSON. Other arguments, long integers and 1e999 too, are text."""
    code, output = streamq(
        "enqueue", "send", "a@b.c", "3", '"3"', "[1, null]", "123456789012345678901234", "1e999",
        "-k", "x=true", "-k", "y=a=b",
        "--kwargs", '{"z": {"deep": 1}}', "--url", valkey.url, "--", "-5",
    )  # fmt: skip
    assert code == 0, output
    fields = entry(valkey, "queue:standard")
    assert json.loads(fields["args"]) == ["a@b.c", 3, "3", [1, None], "123456789012345678901234", "1e999", -5]
    assert json.loads(fields["kwargs"]) == {"z": {"deep": 1}, "x": True, "y": "a=b"}
    assert output == fields.get("id", valkey.command("XRANGE", "queue:standard", "-", "+")[0][0].decode())


def test_options_reach_the_message(streamq, valkey):
    """The priority selects the tier. Retries, timeout and expiry are in the entry. --json prints the result."""
    code, output = streamq(
        "enqueue", "send", "--priority", "critical", "--retries", "5", "--timeout", "2m", "--result-ttl", "1h",
        "--expires", "1d", "--task-id", "t-1", "--json", env={"STREAMQ_URL": valkey.url, "STREAMQ_NAMESPACE": "other"},
    )  # fmt: skip
    assert code == 0, output
    sent = json.loads(output)
    assert (sent["task_id"], sent["tier"], sent["stream"], sent["fresh"]) == ("t-1", "critical", "other:critical", True)
    fields = entry(valkey, "other:critical")
    assert fields["retries"] == "5"
    assert float(fields["timeout"]) == 120
    assert float(fields["result_ttl"]) == 3600
    assert int(fields["expires"]) > (time.time() + 86000) * 1000


def test_delay_and_dedup(streamq, valkey):
    """A delayed task is in the sorted set. For a second task with the same key the command prints the first id."""
    first = streamq("enqueue", "send", "--delay", "1h", "--dedup-key", "k", "--tier", "bulk", "--url", valkey.url)
    second = streamq("enqueue", "send", "--dedup-key", "k", "--tier", "bulk", "--url", valkey.url)
    assert first[0] == second[0] == 0
    assert valkey.command("ZCARD", "queue:bulk:delayed") == 1
    assert valkey.command("XLEN", "queue:bulk") == 0
    assert second[1].splitlines() == [
        "streamq: not enqueued: this task already holds the task id or dedup key",
        first[1],
    ]


@pytest.mark.slow
def test_round_trip(streamq, start, valkey, anyio_backend):
    """An enqueued task runs in a worker."""
    assert streamq("enqueue", "send", "a@b.c", "-k", "n=2", "--url", valkey.url, "--queue", "mail:out")[0] == 0
    worker = start("worker", "app", "--url", valkey.url, "--queue", "mail:out", "--burst", "--backend", anyio_backend)
    worker.expect("mail:out x1")
    worker.expect("sent a@b.c 2")
    assert worker.ended() == 0
