"""The log file: many processes append, some are killed, and a line may be incomplete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import anyio
import orjson
import pytest

from streamq import RedisBroker, Reject, RetryLater, Worker, task
from streamq.consumer.events import Reclaimed, Recovered, Settled, Started, Superseded, Trouble
from streamq.tasks.outcome import Ack, DeadLetter, Postpone, Reason, Release, Retry, Skip
from streamq.testing import LogError, Recorder, read
from streamq.wire.dead_letter_fields import Failure
from streamq.wire.delivery import Delivery

WRITER = """
import sys
from streamq.testing.recorder import Recorder
recorder = Recorder(sys.argv[1], sys.argv[2])
count = int(sys.argv[3])
number = 0
while number != count:  # -1: for ever
    recorder.record("effect", f"{sys.argv[2]}-{number}", text="x" * (number % 200))
    number += 1
"""


@contextmanager
def writer(path, who, count):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), who, str(count)])
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def line(**details):
    return orjson.dumps({"at": 1.5, "who": "w1", "what": "effect", "task": "t", **details}) + b"\n"


# --- several processes -----------------------------------------------------------------------------


@pytest.mark.slow
def test_several_processes_append_at_once_and_one_is_killed(tmp_path):
    """Each line is complete, the lines of each process are in order, and all records before SIGKILL are there."""
    path = tmp_path / "log"
    path.touch()
    with writer(path, "a", 4000) as a, writer(path, "b", 4000) as b, writer(path, "victim", -1) as victim:
        deadline = time.monotonic() + 60
        while b'"victim-500"' not in path.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(victim.pid, signal.SIGKILL)
        assert victim.wait(10) == -signal.SIGKILL
        assert a.wait(60) == 0
        assert b.wait(60) == 0
    records = list(read(path))
    by_who = {who: [r.task for r in records if r.who == who] for who in ("a", "b", "victim")}
    for who, tasks in by_who.items():
        assert tasks == [f"{who}-{number}" for number in range(len(tasks))]
    assert len(by_who["a"]) == len(by_who["b"]) == 4000
    assert len(by_who["victim"]) > 500
    assert sum(r.what == "torn" for r in records) <= 1


def test_a_record_is_in_the_file_when_record_returns(tmp_path):
    """Nothing is buffered: a reader of the file sees the record."""
    recorder = Recorder(tmp_path / "log", "w1", clock=lambda: 1.23456789)
    recorder.record("effect", "t", n=1)
    expected = {"at": 1.234568, "who": "w1", "what": "effect", "task": "t", "n": 1}
    assert orjson.loads((tmp_path / "log").read_bytes()) == expected
    recorder.record_of("w2", "died")
    (first, second) = read(tmp_path / "log")
    assert first == (1.234568, "w1", "effect", "t", expected)
    assert second[:4] == (1.234568, "w2", "died", "")


def test_a_second_recorder_appends(tmp_path):
    """A restarted worker with the same name appends to the same file."""
    for _ in range(2):
        with Recorder(tmp_path / "log", "w1") as recorder:
            recorder.record("up")
    assert [record.what for record in read(tmp_path / "log")] == ["up", "up"]


def test_a_closed_recorder_does_not_drop_in_silence(tmp_path):
    """A record that cannot be written is an error."""
    recorder = Recorder(tmp_path / "log", "w1")
    recorder.close()
    recorder.close()
    with pytest.raises(ValueError, match="closed"):
        recorder.record("up")


def test_a_full_disk_is_an_error():
    """A record that does not fit on the disk is an error."""
    with Recorder("/dev/full", "w1") as recorder, pytest.raises(OSError, match="No space"):
        recorder.record("up")


# --- half-written lines ------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(1, len(line()) - 1))
def test_a_half_written_last_line_is_tolerated(tmp_path, length):
    """At any length: the process was killed, and no process wrote after it."""
    path = tmp_path / "log"
    path.write_bytes(line(n=1) + line()[:length])
    first, last = read(path)
    assert first.details["n"] == 1
    assert (last.what, last.details) == ("torn", {"line": 2})


@pytest.mark.parametrize("length", range(1, len(line()) - 1))
def test_a_half_written_line_costs_no_other_record(tmp_path, length):
    """The next process writes directly after the incomplete line."""
    path = tmp_path / "log"
    path.write_bytes(line(n=1) + line()[:length] + line(n=2) + line(n=3))
    records = list(read(path))
    assert [record.details.get("n") for record in records] == [1, None, 2, 3]
    assert [record.what for record in records] == ["effect", "torn", "effect", "effect"]


def test_a_last_line_without_its_end_is_a_record(tmp_path):
    """Only the newline is missing."""
    path = tmp_path / "log"
    path.write_bytes(line(n=1) + line(n=2).rstrip())
    assert [record.details["n"] for record in read(path)] == [1, 2]


def test_two_halves_in_a_row(tmp_path):
    """Two processes were killed, one after the other."""
    path = tmp_path / "log"
    path.write_bytes(line(n=1) + line()[:20] + line()[:30])
    assert [record.what for record in read(path)] == ["effect", "torn", "torn"]


@pytest.mark.parametrize(
    "garbage",
    [b"garbage\n", b"\n", b"[1, 2]\n", b"7\n", b"{}\n", b'{"at":1}\n', line()[:20] + b"\n", b"x" + line(),
     b"\xff\xfe\n", line()[:20] + line()[:30] + b"\n"],
)  # fmt: skip
def test_garbage_in_the_middle_is_an_error_that_names_the_line(tmp_path, garbage):
    """A killed process leaves no such line, so the log cannot be trusted."""
    path = tmp_path / "log"
    path.write_bytes(line() + line() + garbage + line())
    with pytest.raises(LogError, match="line 3") as raised:
        list(read(path))
    assert raised.value.line == 3
    assert raised.value.path == str(path)


def test_garbage_at_the_end_is_an_error_too(tmp_path):
    """Only a prefix of a record is tolerated."""
    path = tmp_path / "log"
    path.write_bytes(line() + b"garbage")
    with pytest.raises(LogError, match="line 2"):
        list(read(path))


# --- as a listener -----------------------------------------------------------------------------------


def delivery(*flat, entry=b"5-0", **details):
    return Delivery(1, "standard", entry, list(flat or (b"task", b"send", b"id", b"t")), **details)


def heard(event):
    lines = []
    Recorder(lines.append, "w1", clock=lambda: 7.0)(event)
    (only,) = lines
    details = orjson.loads(only)
    assert details.pop("at") == 7.0
    assert details.pop("who") == "w1"
    return details


FAILURE = Failure("ValueError", "no")
RETRIED = (b"task", b"send", b"id", b"t", b"attempt", b"2", b"starts", b"3")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Started(delivery()), {"what": "start"}),
        (Started(delivery(crashed_workers=("w7",))), {"what": "start", "starts": 2, "crashes": 1}),
        (Started(delivery(*RETRIED)), {"what": "start", "starts": 4, "attempt": 2}),
        (Reclaimed(delivery(), died=True), {"what": "reclaimed", "died": True}),
        (Reclaimed(delivery(), died=False), {"what": "reclaimed", "died": False}),
        (Superseded(delivery()), {"what": "superseded"}),
        (Settled(delivery(), Ack(b'{"ok":1}'), 0.1), {"what": "settled", "outcome": "ack"}),
        (Settled(delivery(), Retry(0.25, FAILURE), 0.1),
         {"what": "settled", "outcome": "retry", "attempt": 1, "delay": 0.25}),
        (Settled(delivery(), Postpone(2.0, "later"), 0.1), {"what": "settled", "outcome": "postpone", "delay": 2.0}),
        (Settled(delivery(), DeadLetter(Reason.REJECTED, FAILURE), 0.1),
         {"what": "settled", "outcome": "dead", "reason": "rejected", "error": "ValueError: no"}),
        (Settled(delivery(), Release(), 0.1), {"what": "settled", "outcome": "release"}),
        (Settled(delivery(), Skip(), 0.1), {"what": "settled", "outcome": "skip"}),
    ],
)  # fmt: skip
def test_events_of_deliveries(event, expected):
    """A Recorder is a listener. Each record has the task id and the entry id."""
    assert heard(event) == {"task": "t", "entry": "5-0"} | expected


def test_events_of_the_server():
    """Trouble, and its end."""
    assert heard(Trouble("no connection")) == {"what": "trouble", "error": "no connection"}
    assert heard(Recovered(1.25)) == {"what": "recovered", "after": 1.25}


def test_an_undecodable_id_is_replaced_by_the_entry_id():
    """No entry of a stream makes the recorder raise."""
    assert heard(Superseded(delivery(b"task", b"send", b"id", b"\xff")))["task"] == "5-0"


async def test_the_recorder_listens_to_a_worker(server):
    """A settlement is recorded after the server has it. Cancelled runs have their own outcome."""
    lines = []
    recorder = Recorder(lines.append, "w1")
    running = anyio.Event()

    @task(retries=1)
    async def run(how: str) -> None:
        match how:
            case "reject":
                raise Reject("no")
            case "later":
                raise RetryLater(after=60)
            case "fail":
                raise ValueError("no")
            case "wait":
                running.set()
                await anyio.sleep_forever()

    async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
        worker = Worker(broker, tasks=[run], listeners=[recorder], name="w1")
        await group.start(worker.run)
        handles = {how: await broker.enqueue(run, how) for how in ("well", "reject", "later", "fail", "wait")}
        with anyio.fail_after(10):
            await running.wait()
            await handles["wait"].cancel()
            while sum(b'"settled"' in line for line in lines) < 5:
                await anyio.sleep(0.01)
        worker.stop()
    records = [orjson.loads(line) for line in lines]
    names = {handle.task_id: how for how, handle in handles.items()}
    starts = {names[r["task"]] for r in records if r["what"] == "start"}
    assert starts == set(handles)
    outcomes = [(names[r["task"]], r["outcome"]) for r in records if r["what"] == "settled"]
    first = dict(reversed(outcomes))
    assert first == {"well": "ack", "reject": "dead", "later": "postpone", "fail": "retry", "wait": "cancelled"}
