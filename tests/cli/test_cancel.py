"""`streamq cancel`: cancels tasks by id."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


@pytest.mark.slow
def test_waiting_tasks_are_withdrawn_and_each_is_reported(streamq, valkey):
    """A queued task, a delayed one, and an unknown one. The exit code is 1 because one was not found."""
    url = ("--url", valkey.url)
    _, queued = streamq("enqueue", "send", "--tier", "bulk", *url)
    _, delayed = streamq("enqueue", "send", "--delay", "1h", "--dedup-key", "k", "--dedup-window", "until_done", *url)
    assert valkey.command("GET", "queue:dedup:k").decode() == delayed
    code, output = streamq("cancel", queued, delayed, "nobody", *url)
    assert (code, output.splitlines()) == (
        1, [f"{queued}: withdrawn", f"{delayed}: withdrawn before it was due", "nobody: not found"],
    )  # fmt: skip
    assert valkey.command("EXISTS", "queue:standard:delayed", "queue:dedup:k") == 0
    assert valkey.command("XLEN", "queue:bulk") == 0


@pytest.mark.slow
def test_a_running_task_is_asked_to_stop(streamq, start, app, valkey, anyio_backend):
    """Only the id is given. The output is JSON."""
    url = ("--url", valkey.url)
    worker = start("worker", "app", *url, "--backend", anyio_backend)
    worker.expect("standard x")
    _, task_id = streamq("enqueue", "held", "x", str(app / "gate"), *url)
    worker.expect("start x")
    code, output = streamq("cancel", task_id, "--json", *url)
    assert (code, json.loads(output)) == (0, {"task_id": task_id, "was": "running", "found": True})
    worker.expect(f"task held {task_id} is cancelled on request")
    _, again = streamq("enqueue", "send", "a@b.c", *url)
    worker.expect("sent a@b.c")
    assert again
    assert "end x" not in worker.output


@pytest.mark.slow
def test_modes_of_deduplication(streamq, valkey):
    """The newest task replaces the older one in these modes, and the command reports it."""
    url = ("--url", valkey.url)
    _, first = streamq("enqueue", "send", "1", "--dedup-key", "k", "--dedup-mode", "keep_last", *url)
    code, second = streamq("enqueue", "send", "2", "--dedup-key", "k", "--dedup-mode", "keep_last", *url)
    assert (code, second.splitlines()) == (0, ["streamq: replaced the waiting message of this task", first])
    ((_, flat),) = valkey.command("XRANGE", "queue:standard", "-", "+")
    assert b"[2]" in flat
    code, output = streamq("enqueue", "send", "--dedup-key", "k", "--dedup-mode", "debounce", *url)
    assert code == 2
    assert "give the delay" in output


def test_an_unknown_tier_is_a_usage_error(streamq, valkey):
    """The error names the tiers of the broker."""
    code, output = streamq("cancel", "x", "--tier", "nowhere", "--url", valkey.url)
    assert code == 2
    assert "critical, standard, bulk" in output
