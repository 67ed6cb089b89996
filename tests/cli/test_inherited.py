"""P14: a worker starts and stops whatever its parent left to it: blocked signals, closed files, no directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import PATIENCE, ROOT
from tests.servers import fresh_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

LOOPS = {"asyncio": "--no-uvloop", "uvloop": "--uvloop", "trio": "--backend=trio"}

TASKS = """
import os, pathlib, signal, subprocess
from streamq import task

@task
async def note(text: str):
    print(f"noted {text}", flush=True)

@task(run_in="process", retries=0)
def dies():
    os._exit(7)

@task(run_in="process", retries=0)
def works(path: str):
    mask = subprocess.run(["grep", "SigBlk", "/proc/self/status"], capture_output=True, text=True).stdout.split()[1]
    pathlib.Path(path).write_text(mask)
"""


def has_length(server, key: str, length: int, program) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and program.process.poll() is None:
        if server.command("XLEN", key) == length:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def works(app):
    (app / "works.py").write_text(TASKS)
    return app


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("loop", LOOPS)
def test_signals_that_the_parent_has_blocked_are_heard(works, start, loop, processes):
    """The mask goes through exec. Without SIGCHLD uvloop did not notice the end of a process."""
    with fresh_server("valkey") as server:
        worker = start("worker", "works", "--url", server.url, LOOPS[loop], "-p", processes,
                       blocked=[signal.SIGTERM, signal.SIGINT, signal.SIGCHLD])  # fmt: skip
        server.command("XADD", "queue:standard", "*", "task", "dies")
        assert has_length(server, "queue:dead", 1, worker), worker.seen
        server.command("XADD", "queue:standard", "*", "task", "works", "args", '["mask"]')
        assert has_length(server, "queue:standard", 0, worker), worker.seen
        assert int((works / "mask").read_text(), 16) == 0  # a program of a handler has none either
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0, worker.output


@pytest.mark.parametrize("loop", LOOPS)
def test_ends_of_children_that_the_parent_ignored_are_known(works, start, loop):
    """SIG_IGN for SIGCHLD goes through exec, too: the system would forget the exit codes."""
    with fresh_server("valkey") as server:
        worker = start("worker", "works", "--url", server.url, LOOPS[loop], "-p", "2", ignored="CHLD")
        server.command("XADD", "queue:standard", "*", "task", "dies")
        assert has_length(server, "queue:dead", 1, worker), worker.seen
        ((_, letter),) = server.command("XRANGE", "queue:dead", "-", "+")
        assert b"exit code 7" in letter[letter.index(b"error") + 1], letter
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0, worker.output


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("loop", LOOPS)
def test_processes_have_standard_files_although_those_of_the_worker_were_closed(works, start, loop, closed):
    """`/dev/null` was opened for the worker alone: under uvloop its processes aborted."""
    with fresh_server("valkey") as server:
        worker = start("worker", "works", "--url", server.url, LOOPS[loop], "-p", "2", shell=closed)
        server.command("XADD", "queue:standard", "*", "task", "works", "args", '["mask"]')
        assert has_length(server, "queue:standard", 0, worker), worker.seen
        assert server.command("XLEN", "queue:dead") == 0
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0, worker.output


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_burst_ends_although_standard_files_are_closed(works, start, loop, closed):
    with fresh_server("redis") as server:
        server.command("XADD", "queue:standard", "*", "task", "note", "args", '["it"]')
        worker = start("worker", "works", "--url", server.url, "--burst", LOOPS[loop], "-p", "2", shell=closed)
        assert worker.ended() == 0, worker.output
        assert server.command("XLEN", "queue:standard") == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_a_current_directory_that_is_removed(works, start, tmp_path_factory, loop):
    """As by a deploy: processes start anew, and tasks run, if the modules are importable from elsewhere."""
    place = tmp_path_factory.mktemp("gone")
    path = {"PYTHONPATH": f"{ROOT}:{works}"}
    with fresh_server("valkey") as server:
        worker = start("worker", "works", "--url", server.url, LOOPS[loop], "-p", "2", cwd=place, env=path)
        line = worker.expect("started")
        place.rmdir()
        os.kill(int(line.split("streamq.cli[")[1].split("]")[0]), signal.SIGKILL)
        worker.expect("restart in")
        worker.expect("started")
        server.command("XADD", "queue:standard", "*", "task", "note", "args", '["it"]')
        worker.expect("noted it")
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0, worker.output


def test_a_start_in_a_removed_directory(works, start, tmp_path_factory, url):
    place = tmp_path_factory.mktemp("gone")
    path = {"PYTHONPATH": f"{ROOT}:{works}"}
    gone = ("sh", "-c", f'cd {place}; rm -r {place}; exec "$@"', "sh")
    worker = start("worker", "works", "--url", url, "--burst", env=path, before=gone)
    assert worker.ended() == 0, worker.output
    place.mkdir()
    worker = start("worker", "elsewhere", "--url", url, "--burst", env=path, before=gone)
    assert worker.ended() == 2
    assert "the current directory has been removed" in worker.output
    assert "Traceback" not in worker.output


OWN_PROGRAM = """
import os, signal
import anyio
from streamq import RedisBroker, Worker
from works import dies

async def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    async with RedisBroker("memory://") as broker:
        await broker.enqueue(dies)
        await Worker(broker, tasks=[dies], burst=True).run()
        print("dead letters:", await broker.client.xlen("queue:dead"))

anyio.run(main, backend=BACKEND, backend_options=OPTIONS)
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_a_worker_in_a_program_that_blocks_sigchld_knows_of_the_end_of_a_process(works, loop):
    """uvloop hears of it by that signal alone. The pool of processes unblocks it."""
    backend = "trio" if loop == "trio" else "asyncio"
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    (works / "own.py").write_text(OWN_PROGRAM.replace("BACKEND", repr(backend)).replace("OPTIONS", repr(options)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "own.py"], cwd=works, env=environment, capture_output=True, text=True, timeout=PATIENCE,
        check=True,
    )  # fmt: skip
    assert "dead letters: 1" in ended.stdout
