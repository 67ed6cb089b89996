"""`streamq dlq`: list, show, follow, replay and purge dead letters."""

from __future__ import annotations

import json
import signal

import pytest


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


def die(server, task_id: str, task: str = "send", reason: str = "rejected") -> None:
    server.command(
        "XADD", "queue:dead", "*", "task_id", task_id, "task", task, "args", '["a@b.c"]', "kwargs", "{}", "tier",
        "standard", "reason", reason, "error_type", "ValueError", "error", "no\x1b[31m good\nat all", "traceback",
        "Traceback:\n  here", "attempts", "4", "starts", "5", "enqueued_at", "2026-01-01T00:00:00.000+00:00",
        "died_at", "2026-01-01T00:00:09.000+00:00", "worker", "w1", "origin", "queue:standard 1-0",
    )  # fmt: skip


def test_a_dead_letter_is_listed_with_its_error(start, streamq, valkey):
    """Dead letters of a worker are listed: newest first, filtered, and as JSON."""
    assert streamq("enqueue", "broken", "--url", valkey.url)[0] == 0
    assert start("worker", "app", "--burst", "--url", valkey.url).ended() == 0
    die(valkey, "later", task="send")
    code, output = streamq("dlq", "ls", "--url", valkey.url)
    lines = output.splitlines()
    assert code == 0
    assert lines[0].startswith("DIED AT (UTC)")
    assert "later" in lines[1]
    assert "retries_exhausted" in lines[2]
    assert "ValueError: no\\x1b[31m good" in lines[2]  # it cannot drive the terminal
    assert lines[3] == "queue:dead holds 2 dead letters"
    code, output = streamq(
        "dlq", "ls", "--json", "--task", "broken", "--reason", "retries_exhausted", "--url", valkey.url
    )
    letter = json.loads(output)
    assert (letter["task"], letter["attempts"], letter["args"]) == ("broken", 1, [])
    assert letter["traceback"]


def test_count_bounds_the_list(streamq, valkey):
    """Shows the newest dead letters and the total number."""
    for number in range(5):
        die(valkey, f"t{number}")
    code, output = streamq("dlq", "ls", "-n", "2", env={"STREAMQ_URL": valkey.url})
    assert code == 0
    assert [line.split()[2] for line in output.splitlines()[1:3]] == ["t4", "t3"]
    assert output.splitlines()[-1] == "queue:dead holds 5 dead letters, 2 shown"


def test_show_prints_everything(streamq, valkey):
    """Prints all fields with the traceback. An unknown id is a usage error."""
    die(valkey, "t1")
    code, output = streamq("dlq", "show", "t1", "--url", valkey.url)
    assert code == 0
    assert 'args         ["a@b.c"]' in output
    assert "Traceback:\n  here" in output
    code, output = streamq("dlq", "show", "t2", "--url", valkey.url)
    assert (code, len(output.splitlines())) == (2, 1)


def test_tail_follows_and_misses_nothing(start, valkey):
    """tail blocks on the server, prints new dead letters until Ctrl-C, and starts at --since."""
    die(valkey, "before")
    program = start("dlq", "tail", "--json", "--since", "1d", "--reason", "rejected", "--url", valkey.url)
    assert json.loads(program.expect("{"))["task_id"] == "before"
    die(valkey, "other", reason="expired")
    die(valkey, "after")
    assert json.loads(program.expect("{"))["task_id"] == "after"
    program.signal(signal.SIGINT)
    assert program.ended() == 130
    assert "Traceback (most" not in program.output


def test_tail_begins_now(start, valkey):
    """Without --since it prints only new dead letters."""
    die(valkey, "before")
    program = start("dlq", "tail", "--url", valkey.url)
    program.expect("DIED AT")
    while not any(b"cmd=xread" in line for line in valkey.command("CLIENT", "LIST").splitlines()):
        pass
    die(valkey, "after")
    assert "after" in program.expect("ValueError")


def test_replay_and_purge(streamq, valkey):
    """Dead letters are enqueued again, or removed."""
    pytest.importorskip("streamq.dead_letter")
    for name in ("t1", "t2", "t3"):
        die(valkey, name, task="send" if name != "t3" else "other")
    code, output = streamq("dlq", "replay", "--task", "send", "--url", valkey.url)
    assert code == 0, output
    assert valkey.command("XLEN", "queue:standard") == 2
    code, output = streamq("dlq", "purge", "--yes", "--url", valkey.url)
    assert code == 0, output
    assert valkey.command("XLEN", "queue:dead") == 0
