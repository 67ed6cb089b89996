"""P14: a lifespan of an app that fails, or does not end: the log says that it is the lifespan, and signals end it."""

from __future__ import annotations

import signal
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

APP = """
import time
from contextlib import asynccontextmanager
import anyio
from streamq import task

@task
async def note():
    print("noted", flush=True)

@asynccontextmanager
async def lifespan(worker):
    %s
"""

FAILS = {
    "start": ["raise ConnectionError('no database')", "yield"],
    "end": ["yield", "raise ConnectionError('no database')"],
}
BACKGROUND = """async with anyio.create_task_group() as group:
        group.start_soon(fail)
        yield
"""

LONG = """

@task
async def long():
    print("begun", flush=True)
    await anyio.sleep(60)
"""


def running(start, url, *options):
    """A worker that has run a task."""
    worker = start("worker", "held", "--url", url, *options)
    assert start("enqueue", "note", "--url", url).ended() == 0
    worker.expect("noted")
    return worker


def write(app, *lines):
    (app / "held.py").write_text(APP % "\n    ".join(lines))


@pytest.mark.parametrize("when", FAILS)
def test_one_that_fails_is_named(app, streamq, url, anyio_backend, when):
    """With its own frames: those of the worker, the event loop and contextlib say nothing."""
    write(app, *FAILS[when])
    code, output = streamq("worker", "held", "--url", url, "--burst", "--backend", anyio_backend)
    assert code == 1
    assert f"held.lifespan failed at its {when}: ConnectionError: no database" in output
    assert output.count('  File "') == 1
    assert "/held.py" in output
    assert "the worker failed" not in output


@pytest.mark.parametrize("how", ["SystemExit(0)", "SystemExit(7)", "KeyboardInterrupt('mine')"])
@pytest.mark.parametrize("when", FAILS)
def test_one_that_exits_is_a_failure(app, streamq, url, anyio_backend, when, how):
    """`sys.exit(0)` said that all was well, and no line said why the worker had ended."""
    write(app, *(line.replace("ConnectionError('no database')", how) for line in FAILS[when]))
    found, output = streamq("worker", "held", "--url", url, "--burst", "--backend", anyio_backend)
    assert found == 1
    kind, _, text = how.partition("(")
    assert f"held.lifespan failed at its {when}: {kind}: {text[:-1].strip(chr(39))}" in output
    assert "/held.py" in output


def test_one_that_ends_the_run_by_itself_is_a_failure(app, streamq, url, anyio_backend):
    """Exit code 1: a service manager starts it again, and so does a supervisor."""
    write(app, "with anyio.move_on_after(0.5):", "    yield")
    code, output = streamq("worker", "held", "--url", url, "--backend", anyio_backend)
    assert code == 1
    assert "held.lifespan failed at its end: streamq.errors.LifespanEndedError: lifespan has ended" in output


def test_an_error_of_redis_in_a_lifespan_is_no_error_of_the_url(app, streamq, url, anyio_backend):
    """The client of the app is not that of the worker."""
    write(app, "from redis.exceptions import AuthenticationError", "raise AuthenticationError('not mine')", "yield")
    code, output = streamq("worker", "held", "--url", url, "--burst", "--backend", anyio_backend)
    assert code == 1
    assert "held.lifespan failed at its start: redis.exceptions.AuthenticationError: not mine" in output
    assert "--url" not in output


def test_a_task_of_a_lifespan_that_fails_ends_the_worker_by_name(app, start, url, anyio_backend):
    """Its task group cancels the worker."""
    write(app, BACKGROUND)
    with (app / "held.py").open("a") as file:
        file.write("\nasync def fail():\n    await anyio.sleep(1)\n    raise ValueError('pool lost')\n")
    worker = start("worker", "held", "--url", url, "--backend", anyio_backend)
    assert worker.ended() == 1, worker.output
    assert "held.lifespan failed at its end: ExceptionGroup" in worker.output
    assert "ValueError: pool lost" in worker.output


def test_one_that_returns_no_context_manager_is_a_usage_error(app, streamq, url):
    (app / "held.py").write_text(
        "from streamq import task\n@task\nasync def f(): ...\ndef lifespan(worker): return {}\n"
    )
    code, output = streamq("worker", "held", "--url", url, "--burst")
    assert code == 2
    assert "lifespan has returned an object of type dict, not an async context manager" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("processes", ["1", "2"])
def test_one_that_does_not_end_is_named_and_cancelled(app, start, url, anyio_backend, processes):
    """When the grace period is over the log names it. The second signal cancels it."""
    write(app, "yield", "print('ending', flush=True)", "await anyio.sleep(60)")
    options = ["--backend", anyio_backend, "--grace", "2s", "-p", processes]
    worker = running(start, url, *options)
    worker.signal(signal.SIGTERM)
    worker.expect("held.lifespan has not ended, and the grace period is over; a second stop signal cancels it")
    before = time.monotonic()
    worker.signal(signal.SIGTERM)
    worker.expect("cancelling the end of held.lifespan")
    assert worker.ended() == 0, worker.output
    assert time.monotonic() - before < 8


def test_one_that_blocks_is_named_by_what_ends_it(app, start, url, anyio_backend):
    """Nothing in the event loop can: a thread does, 10 s after the second signal."""
    write(app, "yield", "print('ending', flush=True)", "time.sleep(60)")
    worker = running(start, url, "--backend", anyio_backend, "--grace", "1s")
    worker.signal(signal.SIGTERM)
    worker.expect("ending")
    worker.expect("held.lifespan has not ended")
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 1
    assert "not stopped within 10 s, while held.lifespan is ending: exiting" in worker.output


def test_one_that_begins_to_end_after_the_second_signal_has_some_time(app, start, url, anyio_backend):
    """Then it is cancelled."""
    write(app, "yield", "await anyio.sleep(1)", "print('closed', flush=True)", "await anyio.sleep(60)", LONG)
    worker = start("worker", "held", "--url", url, "--backend", anyio_backend)
    start("enqueue", "long", "--url", url).ended()
    worker.expect("begun")
    for _ in range(2):
        worker.signal(signal.SIGTERM)
        time.sleep(0.3)
    worker.expect("closed")
    assert worker.ended() == 0, worker.output


EXIT_HANGS = """
import atexit, time
from streamq import task
atexit.register(time.sleep, 60)

@task
async def note(text: str): ...
"""


def test_an_exit_that_hangs_is_1(app, streamq, url, anyio_backend):
    """As the help says: it could not stop in time."""
    (app / "held.py").write_text(EXIT_HANGS)
    code, output = streamq("worker", "held", "--url", url, "--burst", "--backend", anyio_backend)
    assert code == 1
    assert "not stopped within 5 s: exiting" in output


def test_so_it_is_with_processes(app, start, url, anyio_backend):
    """The supervisor has the code of its processes."""
    (app / "held.py").write_text(EXIT_HANGS)
    worker = start("worker", "held", "--url", url, "-p", "2", "--backend", anyio_backend)
    worker.expect("started")
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 1, worker.output
