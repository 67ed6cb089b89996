"""`streamq worker --max-rss` and `--max-tasks`: a process is replaced, and nothing is lost or run twice."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.test_worker import alive, enqueue, pending, until

APP = """
import os, sys, time
import anyio
from streamq import task

if os.path.exists("broken"):
    raise RuntimeError("no database")
while os.path.exists("slow"):
    time.sleep(0.02)
if os.path.exists("dies"):
    os.kill(os.getpid(), 9)

KEPT = []

def done(tag):
    with open("done", "a") as file:
        file.write(f"{tag} {os.getpid()}\\n")

@task
async def leak(tag: str):
    KEPT.append(os.urandom(200 << 10))
    await anyio.sleep(0.01)
    done(tag)

@task
async def quick(tag: str):
    await anyio.sleep(0.01)
    done(tag)

@task
def in_thread(tag: str):
    time.sleep(0.01)
    done(tag)

@task
async def blocked(tag: str):
    print(f"start {tag} {os.getpid()}", flush=True)
    time.sleep(60)

@task
async def held(tag: str):
    print(f"start {tag} {os.getpid()}", flush=True)
    while not os.path.exists("gate"):
        await anyio.sleep(0.01)
    done(tag)
"""


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


@pytest.fixture
def folder(app: Path) -> Path:
    (app / "leaky.py").write_text(APP)
    return app


@pytest.fixture
def worker(start, valkey, folder, anyio_backend):
    """Start a worker of the app."""

    def started(*options: str):
        return start("worker", "leaky", "--url", valkey.url, "--backend", anyio_backend, "--no-uvloop", *options)

    return started


@pytest.fixture
def one_backend(start, valkey, folder):
    """Start a worker of the app, in a test whose matter is the supervisor."""
    return lambda *options: start("worker", "leaky", "--url", valkey.url, *options)


def done(folder: Path) -> dict[str, list[int]]:
    """Return the pids that each task was run by."""
    found: dict[str, list[int]] = {}
    for line in (folder / "done").read_text().splitlines() if (folder / "done").exists() else ():
        tag, pid = line.split()
        found.setdefault(tag, []).append(int(pid))
    return found


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # it has ended
        return 0


def children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_a_limit_that_is_too_low_names_what_a_fresh_process_has(worker):
    """Nobody can work below it: one line, exit code 2, no second process."""
    program = worker("--max-rss", "5MiB", "-p", "2")
    assert program.ended() == 2
    (line,) = program.output.splitlines()
    found = re.search(r"--max-rss 5 MiB is too low: a process has ([\d.]+) MiB when it starts", line)
    assert found is not None
    assert 10 < float(found[1]) < 200


@pytest.mark.slow
def test_a_leak_under_load_is_held(worker, valkey, folder):
    """No process grows far beyond the limit while its replacement starts, and each task is done once."""
    fresh = worker("--max-rss", "5MiB")
    fresh.ended()
    limit = float(re.search(r"a process has ([\d.]+) MiB", fresh.output)[1]) + 6
    program = worker("--max-rss", f"{limit:.0f}MiB", "-c", "10", "--grace", "10s")
    program.expect("concurrency")
    most: Counter[int] = Counter()
    sent, deadline = 0, time.monotonic() + 60
    while len({pids[0] for pids in done(folder).values()}) < 3:
        assert time.monotonic() < deadline
        enqueue(valkey, "leak", f"leak{sent}")  # 4 MiB/s at most
        for number in range(10):
            enqueue(valkey, "quick", f"quick{sent}-{number}")
        sent += 1
        for pid in children(program.process.pid):
            most[pid] = max(most[pid], resident(pid))
        time.sleep(0.05)
    until(lambda: valkey.command("XLEN", "queue:standard") == 0)
    program.signal(signal.SIGTERM)
    assert program.ended() == 0
    assert "of memory, --max-rss" in program.output
    assert max(most.values()) < (limit + 50) * (1 << 20)
    runs = {tag: len(pids) for tag, pids in done(folder).items()}
    assert (len(runs), set(runs.values())) == (11 * sent, {1})
    assert not any(alive(pid) for pid in most)


def test_each_process_is_replaced_after_its_runs(worker, valkey, folder):
    """--max-tasks with --processes and --burst: all is done once, and the last one ends when the queue is empty."""
    for number in range(150):
        enqueue(valkey, "in_thread" if number % 2 else "quick", f"t{number}")
    enqueue(valkey, "held", "last")
    program = worker("--max-tasks", "20", "-p", "2", "-c", "1", "--burst")
    program.expect("runs, --max-tasks 20; starting its replacement", 60.0)
    program.expect("drains", 60.0)
    (folder / "gate").touch()
    assert program.ended() == 0
    runs = done(folder)
    assert len(runs) == 151
    assert {len(pids) for pids in runs.values()} == {1}
    assert pending(valkey) == 0
    assert valkey.command("XLEN", "queue:standard") == 0


def replaced_pids(line: str) -> tuple[int, int]:
    """Return the new and the old pid of a line `pid 5 reads; pid 4 drains`."""
    new, old = re.findall(r"pid (\d+)", line)
    return int(new), int(old)


@pytest.fixture
def replacing(one_backend, valkey, folder):
    """A worker whose replacement does not get beyond the import of its module; it has one task to end."""

    def started(*options: str, task: str = "held"):
        program = one_backend("--max-tasks", "1", *options)
        program.expect("concurrency")
        (folder / "slow").touch()
        enqueue(valkey, "quick", "first")
        program.expect("starting its replacement", 60.0)
        until(lambda: len(children(program.process.pid)) == 2)
        enqueue(valkey, task, "long")
        program.expect("start long")
        return program

    return started


@pytest.mark.slow
def test_the_old_process_works_until_its_replacement_reads(one_backend, valkey, folder):
    """A replacement that fails, or is killed, changes nothing: the pauses grow, and the old process goes on."""
    program = one_backend("--max-tasks", "1")
    program.expect("concurrency")
    (folder / "broken").touch()
    enqueue(valkey, "quick", "first")
    program.expect("1 run, --max-tasks 1; starting its replacement", 60.0)
    line = program.expect("goes on; the next try is in 1 s")
    assert "a replacement exited with code 2" in line
    (folder / "dies").touch()
    (folder / "broken").unlink()
    enqueue(valkey, "held", "long")
    program.expect("a replacement was ended by SIGKILL")
    assert "the next try is in 2 s" in program.seen[-1]
    (folder / "dies").unlink()
    new, old = replaced_pids(program.expect("drains", 60.0))
    enqueue(valkey, "quick", "third")
    until(lambda: "third" in done(folder))  # while the old one ends its run
    (folder / "gate").touch()
    program.expect(f"pid {old} has drained")
    assert done(folder)["first"] == done(folder)["long"] == [old]
    assert children(program.process.pid) == [new]
    program.signal(signal.SIGTERM)
    assert program.ended() == 0


def test_a_signal_while_a_replacement_starts(replacing, folder):
    """The first ends it at once, and the old process drains."""
    program = replacing("--grace", "30s")
    processes = children(program.process.pid)
    program.signal(signal.SIGINT)
    program.expect("draining: 1 running")
    until(lambda: sum(map(alive, processes)) == 1)
    (folder / "gate").touch()
    assert program.ended() == 0
    assert "long" in done(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "signals", "code"), [("held", 2, 0), ("blocked", 3, 130)])
def test_more_signals_while_a_replacement_starts(replacing, valkey, folder, task, signals, code):
    """The second releases, the third kills: no task is lost, and no process is left."""
    program = replacing("--grace", "30s", task=task)
    processes = children(program.process.pid)
    for _ in range(signals):
        program.signal(signal.SIGINT)
        time.sleep(0.2)
    assert program.ended(8) == code
    assert not any(map(alive, processes))
    assert list(done(folder)) == ["first"]
    assert valkey.command("XLEN", "queue:standard") == 1


@pytest.mark.slow
def test_signals_while_the_old_process_drains(one_backend, valkey, folder):
    """Both are told; the old one keeps its own grace period."""
    program = one_backend("--max-tasks", "1", "--grace", "30s")
    program.expect("concurrency")
    enqueue(valkey, "held", "long")
    program.expect("start long")
    enqueue(valkey, "quick", "first")
    new, old = replaced_pids(program.expect("drains", 60.0))
    program.signal(signal.SIGTERM)
    program.expect("draining 2 processes")
    until(lambda: not alive(new))
    (folder / "gate").touch()
    assert program.ended() == 0
    assert done(folder)["long"] == [old]


@pytest.mark.slow
def test_an_old_process_that_dies_leaves_its_place_to_the_replacement(replacing, valkey, folder):
    """There is one process then, not two, and it takes over."""
    program = replacing("--lease", "500ms")
    old, new = children(program.process.pid)
    os.kill(old, signal.SIGKILL)
    program.expect(f"(pid {old}) was ended by SIGKILL; its replacement is starting")
    (folder / "slow").unlink()
    assert program.expect("start long").split()[-1] == str(new)
    assert children(program.process.pid) == [new]
    (folder / "gate").touch()
    until(lambda: "long" in done(folder))
    program.signal(signal.SIGTERM)
    assert program.ended() == 0


@pytest.mark.slow
def test_a_run_that_outlives_the_grace_period_is_released(one_backend, valkey, folder):
    """The old process ends, and its task runs in the new one."""
    program = one_backend("--max-tasks", "1", "--grace", "200ms")
    program.expect("concurrency")
    enqueue(valkey, "held", "long")
    program.expect("start long")
    enqueue(valkey, "quick", "first")
    new, old = replaced_pids(program.expect("drains", 60.0))
    assert program.expect("start long").split()[-1] == str(new)
    (folder / "gate").touch()
    until(lambda: "long" in done(folder) and not alive(old))
    program.signal(signal.SIGTERM)
    assert program.ended() == 0
    assert done(folder)["long"] == [new]


@pytest.mark.slow
def test_a_changed_source_ends_a_replacement_that_starts(replacing, valkey, folder):
    """--reload goes first: one process with the new code is left."""
    program = replacing("--reload")
    processes = children(program.process.pid)
    (folder / "gate").touch()
    (folder / "leaky.py").write_text(APP.replace("start {tag}", "begin {tag}"))
    program.expect("leaky.py changed: restarting")
    until(lambda: not any(map(alive, processes)))
    (folder / "slow").unlink()
    enqueue(valkey, "held", "more")
    program.expect("begin more")
    assert len(children(program.process.pid)) == 1
    program.signal(signal.SIGTERM)
    assert program.ended() == 0


def test_a_server_in_the_process_cannot_be_kept(streamq, folder):
    """Each process would have its own."""
    (folder / "own.py").write_text(
        "from streamq import RedisBroker, task\nbroker = RedisBroker('memory://')\n@task\nasync def f(): ...\n"
    )
    code, output = streamq("worker", "own", "--max-tasks", "5")
    assert code == 2
    assert "own.broker has a server in the process, memory://" in output
    code, output = streamq("worker", "app", "--url", "memory://", "--max-tasks", "5")
    assert code == 2
    assert "--max-rss or --max-tasks: each process would have its own server" in output
