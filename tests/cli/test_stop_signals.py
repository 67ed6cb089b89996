"""P14: SIGTERM and SIGINT are heard in every state of a worker process."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

import pytest

from tests.at_work import STREAMS
from tests.servers import fresh_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

SOON = 8.0  # seconds on a busy machine; each of these states lasts longer

SLOW_IMPORT = """
import time
from streamq import task
print("loading", flush=True)
time.sleep(60)
"""

HEAD = """
import contextlib, multiprocessing, os, signal, time
import anyio
from streamq import task

print("loaded", flush=True)

@task
async def note(text: str):
    print(f"noted {text}", flush=True)
"""

DEAF_LIFESPAN = (
    HEAD
    + """
@contextlib.asynccontextmanager
async def lifespan(worker):
    print("starting", flush=True)
    with anyio.CancelScope(shield=True):
        await anyio.sleep(60)
    yield
"""
)

BLOCKED = (
    HEAD
    + """
@task
async def blocked():
    print("in the way", flush=True)
    time.sleep(60)
"""
)

FORKS = (
    HEAD
    + """
@task
def fork():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    time.sleep(0.3)
    child.terminate()
    child.join(10)
    print(f"the child ended with {child.exitcode}", flush=True)
"""
)

PROCESSES = pytest.mark.parametrize("processes", ["1", "2"])


@contextlib.contextmanager
def silence():
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


def ended_soon(worker) -> int:
    before = time.monotonic()
    code = worker.ended()
    assert time.monotonic() - before < SOON
    return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@PROCESSES
def test_while_it_loads_the_modules(start, app, url, number, processes):
    """Nothing is held, so the process ends."""
    (app / "slow.py").write_text(SLOW_IMPORT)
    worker = start("worker", "slow", "--url", url, "-p", processes)
    worker.expect("loading")
    worker.signal(number)
    assert ended_soon(worker) == 0


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, "1"), (signal.SIGTERM, "2"), (signal.SIGINT, "2")])
def test_where_signals_without_a_handler_are_ignored(start, app, url, number, processes):
    """As the first process of a container, or in the background of a shell: handlers are installed all the same."""
    worker = start("worker", "app", "--url", url, "-p", processes, deaf=True)
    worker.expect("concurrency")
    worker.signal(number)
    assert ended_soon(worker) == 0


@PROCESSES
def test_while_it_connects(start, app, processes, anyio_backend):
    """To a server that accepts and never answers: long before the connect timeout would end it."""
    (app / "some.py").write_text(HEAD)
    with silence() as url:
        worker = start("worker", "some", "--url", f"{url}?socket_connect_timeout=60", "-p", processes,
                       "--backend", anyio_backend)  # fmt: skip
        worker.expect("loaded")
        time.sleep(0.5)
        worker.signal(signal.SIGTERM)
        assert ended_soon(worker) == 0


@PROCESSES
def test_while_it_waits_for_a_server_that_refuses_writes(start, app, anyio_backend, processes):
    """During the checks of the start."""
    (app / "some.py").write_text(HEAD)
    with fresh_server("valkey", "--maxmemory", "1") as server:
        worker = start("worker", "some", "--url", server.url, "--backend", anyio_backend, "-p", processes)
        worker.expect("waiting for the server")
        worker.signal(signal.SIGTERM)
        assert ended_soon(worker) == 0


def test_on_a_full_server_tasks_run_and_it_stops(start, app, anyio_backend):
    """The groups are there already: each process starts, works off what waits, and leaves."""
    (app / "some.py").write_text(HEAD)
    with fresh_server("valkey") as server:
        for stream in STREAMS:
            server.command("XGROUP", "CREATE", stream, "workers", "0", "MKSTREAM")
        server.command("XADD", "queue:standard", "*", "task", "note", "kwargs", '{"text": "it"}')
        server.command("CONFIG", "SET", "maxmemory", "1")
        worker = start("worker", "some", "--url", server.url, "--backend", anyio_backend, "-p", "2")
        worker.expect("noted it")
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0
        assert server.command("XLEN", "queue:standard") == 0
        assert server.command("XINFO", "CONSUMERS", "queue:standard", "workers") == []


def test_while_the_server_is_gone(start, app, anyio_backend):
    """The worker runs, and waits for the server; there is nobody to hand its leases back to."""
    with fresh_server("valkey") as server:
        worker = start("worker", "app", "--url", server.url, "--backend", anyio_backend, "--grace", "1s")
        worker.expect("concurrency")
        time.sleep(1)
        server.kill()
        worker.expect("waiting for the server")
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0


def test_while_a_lifespan_does_not_hear_it(start, app, url, anyio_backend):
    """The second request ends the process: nothing is held before the start."""
    (app / "deaf.py").write_text(DEAF_LIFESPAN)
    worker = start("worker", "deaf", "--url", url, "--backend", anyio_backend)
    worker.expect("starting")
    worker.signal(signal.SIGTERM)
    worker.expect("stopping before the worker has started")
    worker.signal(signal.SIGTERM)
    assert ended_soon(worker) == 1


def test_while_a_handler_blocks_the_loop(start, app, url, anyio_backend):
    """The third signal ends the process, though nothing else runs in it."""
    (app / "some.py").write_text(BLOCKED)
    worker = start("worker", "some", "--url", url, "--backend", anyio_backend)
    start("enqueue", "blocked", "--url", url).ended()
    worker.expect("in the way")
    for _ in range(3):
        time.sleep(0.2)
        worker.signal(signal.SIGTERM)
    assert ended_soon(worker) == 128 + signal.SIGTERM


def test_the_second_signal_ends_a_blocked_process_in_bounded_time(start, app, url):
    """A thread does, 10 s later."""
    (app / "some.py").write_text(BLOCKED)
    worker = start("worker", "some", "--url", url)
    start("enqueue", "blocked", "--url", url).ended()
    worker.expect("in the way")
    for _ in range(2):
        time.sleep(0.2)
        worker.signal(signal.SIGTERM)
    before = time.monotonic()
    assert worker.ended() == 1
    assert time.monotonic() - before < 20


def test_the_end_of_a_forked_child_is_not_the_workers(start, app, url, anyio_backend):
    """A handler forks a process and ends it by SIGTERM; the worker goes on."""
    (app / "some.py").write_text(FORKS)
    worker = start("worker", "some", "--url", url, "--backend", anyio_backend)
    start("enqueue", "fork", "--url", url).ended()
    worker.expect(f"the child ended with {-signal.SIGTERM}")
    start("enqueue", "note", "--kwargs", '{"text": "still here"}', "--url", url).ended()
    worker.expect("noted still here")
    assert "draining" not in worker.output
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_with_standard_files_that_are_closed(start, app, url, closed):
    """As some init systems start programs: no socket takes such a number, which uvloop would not close."""
    worker = start("worker", "app", "--url", url, shell=closed)
    worker.expect("concurrency") if "2>" not in closed else time.sleep(3)
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.output
