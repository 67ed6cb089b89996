"""P14: a handler that forks, and whose child comes back from it, disturbs neither its worker nor the server."""

from __future__ import annotations

import json
import signal
import time

import pytest

FORKS = """
import os, sys
import anyio
from streamq import batch_task, task

def fork(how):
    child = os.fork()
    if child == 0:
        if how == "exits":
            sys.exit(0)
        if how == "raises":
            raise ValueError(how)
        return
    os.waitpid(child, 0)

@task(retries=0)
async def forks(how: str):
    fork(how)

@task(retries=0)
def forks_in_thread(how: str):
    fork(how)

@task(retries=0)
async def awaits(_: str):
    child = os.fork()
    if child == 0:
        await anyio.sleep(0.2)
        print(f"awaited {os.getpid()}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)

@batch_task(size=1, wait=0.01, retries=0)
async def forks_in_batch(ways: list[str]):
    fork(ways[0])

@task
async def ping(n: int):
    await anyio.sleep(0.01)
    print(f"ping {n} {os.getpid()}", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", [("--backend", "asyncio"), ("--backend", "asyncio", "--no-uvloop"),
                                     ("--backend", "trio")], ids="-".join)  # fmt: skip
@pytest.mark.parametrize("name", ["forks", "forks_in_thread", "forks_in_batch"])
def test_the_child_of_a_handler_ends_with_it(start, app, shared_server, backend, name):
    """However it comes back: the worker goes on, in time, and ends when it is told to."""
    (app / "forking.py").write_text(FORKS)
    server = shared_server("valkey")

    def enqueue(task, argument):
        server.command("XADD", "queue:standard", "*", "task", task, "args", json.dumps([argument]))

    worker = start("worker", "forking", "--url", server.url, "--lease", "3s", *backend)
    worker.expect("concurrency")
    number = 0
    for how in ("returns", "exits", "raises"):
        enqueue(name, how)
        for _ in range(2):
            number += 1
            enqueue("ping", number)
            assert worker.expect(f"ping {number} ", 5.0).split()[-1] == str(worker.process.pid)
    before = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.output
    assert time.monotonic() - before < 5
    assert sum(line.startswith("ping") for line in worker.seen) == number


@pytest.mark.slow
@pytest.mark.parametrize("backend", [("--backend", "asyncio"), ("--backend", "asyncio", "--no-uvloop"),
                                     ("--backend", "trio")], ids="-".join)  # fmt: skip
def test_a_child_that_awaits_runs_nothing_of_its_parent(start, app, shared_server, backend):
    """It ran the handlers of other tasks, whose effects were there twice."""
    (app / "forking.py").write_text(FORKS)
    server = shared_server("valkey")
    worker = start("worker", "forking", "--url", server.url, "--lease", "3s", *backend)
    worker.expect("concurrency")
    for turn in range(3):
        for number in range(20):
            name, argument = ("awaits", "") if number == 5 else ("ping", 100 * turn + number)
            server.command("XADD", "queue:standard", "*", "task", name, "args", json.dumps([argument]))
        for _ in range(19):
            assert worker.expect("ping ", 5.0).split()[-1] == str(worker.process.pid)
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.output
    said = [line for line in worker.seen if line.startswith(("ping", "awaited"))]
    assert len(said) == len(set(said)) == 57
