"""P14: the processes of handlers, when the worker is stopped or killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.servers import fresh_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

TASKS = """
import os, time
from streamq import task

@task(run_in="process", retries=0)
def works(seconds: float):
    pids = open("pids", "a")
    print(os.getpid(), file=pids, flush=True)
    time.sleep(seconds)
    print("done", file=pids, flush=True)
"""


LOOPS = {"asyncio": "--no-uvloop", "uvloop": "--uvloop", "trio": "--backend=trio"}


def lines(app: Path) -> list[str]:
    file = app / "pids"
    return file.read_text().split() if file.exists() else []


def wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def is_gone(pid: int) -> bool:
    """Has it ended? A zombie has, which nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture
def running(app, start, anyio_backend):
    """A worker with a task in a process of its own: the program, and that process."""

    def begin(seconds: float, *options: str):
        (app / "works.py").write_text(TASKS)
        server.command("XADD", "queue:standard", "*", "task", "works", "args", f"[{seconds}]")
        worker = start("worker", "works", "--url", server.url, "--backend", anyio_backend, *options)
        assert wait_for(lambda: lines(app), 30)
        return worker, int(lines(app)[0])

    with fresh_server("valkey") as server:
        yield begin


def test_a_signal_to_the_whole_group_drains(app, running):
    """Ctrl-C and `systemctl stop` reach the processes of handlers as well: the task ends as it should."""
    worker, pid = running(2.0, "--grace", "30s")
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert lines(app) == [str(pid), "done"]
    assert wait_for(lambda: is_gone(pid), 10)


def test_no_process_outlives_its_grace_period(running):
    worker, pid = running(60.0, "--grace", "1s")
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert wait_for(lambda: is_gone(pid), 10)


DIES = """
import multiprocessing, os, signal, time
from streamq import task

@task(run_in="process", retries=0)
def dies():
    helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    helper.start()
    print(helper.pid, file=open("pids", "a"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_a_process_that_dies_is_noticed_although_its_helpers_live(app, start, loop):
    """uvloop leaves the process more descriptors of its pipes than those it uses, and forks inherit them all."""
    (app / "works.py").write_text(DIES)
    with fresh_server("valkey") as server:
        server.command("XADD", "queue:standard", "*", "task", "dies")
        worker = start("worker", "works", "--url", server.url, LOOPS[loop])
        try:
            assert wait_for(lambda: server.command("XLEN", "queue:dead"), 40)
            assert b"streamq.errors.ProcessDiedError" in server.command("XRANGE", "queue:dead", "-", "+")[0][1]
            assert not is_gone(int(lines(app)[0]))
        finally:
            os.kill(int(lines(app)[0]), signal.SIGKILL)
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="elsewhere it ends with its run")
def test_no_process_outlives_a_worker_that_is_killed(running):
    """Another worker runs the task again; twice at a time would be too much."""
    worker, pid = running(60.0)
    assert not is_gone(pid)
    worker.signal(signal.SIGKILL)
    assert wait_for(lambda: is_gone(pid), 10)
