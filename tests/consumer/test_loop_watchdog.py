"""A handler that blocks the event loop is named while it still does."""

from __future__ import annotations

import functools
import json
import logging
import signal
import subprocess
import sys
import time

import anyio
import pytest

from streamq import RedisBroker, Worker, task
from streamq.cli.logs import JsonFormatter, TextFormatter
from streamq.consumer.loop_watchdog import Watchdog, standstill


@task
async def block(seconds: float) -> None:
    """Block the event loop."""
    time.sleep(seconds)  # noqa: ASYNC251 - that is the fault


@pytest.mark.slow
async def test_a_task_that_blocks_the_loop_is_named_with_its_stack(anyio_backend, caplog):
    """P3: it is said before the leases are lost, once for each time, with the line that blocks."""
    async with RedisBroker("memory://") as broker:
        await broker.enqueue(block, 0.6)
        with caplog.at_level(logging.ERROR, "streamq"):
            await Worker(broker, [block], visibility_timeout=1.2, burst=True).run()
    (record,) = [record for record in caplog.records if "blocked" in record.message]
    assert "task 'block'" in record.message
    assert "\n" not in record.message
    head, first, *_, last = record.stack_info.splitlines()
    assert head == "Stack of the event loop (most recent call last):"
    assert first.endswith(", in block")  # nothing of the worker, the loop or the command line
    assert last.strip().startswith("time.sleep(seconds)")
    _, *lines = TextFormatter().format(record).splitlines()
    assert [line.strip() for line in lines] == [line.strip() for line in record.stack_info.splitlines()]
    assert all(line.startswith("    ") for line in lines)
    assert json.loads(JsonFormatter().format(record))["stack"] == record.stack_info


@pytest.mark.slow
async def test_a_loop_that_is_well_is_left_alone(anyio_backend, caplog):
    """Nothing is said of handlers that wait as they should."""
    watchdog = Watchdog("w", [block], visibility_timeout=0.3)
    async with anyio.create_task_group() as group:
        group.start_soon(watchdog.watch_forever)
        await anyio.sleep(0.4)
        group.cancel_scope.cancel()
    assert not caplog.records
    assert "w" in repr(watchdog)


@pytest.mark.slow
async def test_what_is_no_task_is_named_as_that(anyio_backend, caplog):
    """Other code of the program may block the loop too; a callable without code does no harm."""
    watchdog = Watchdog("w", [block, task(name="printer")(functools.partial(print))], visibility_timeout=0.3)
    async with anyio.create_task_group() as group:
        group.start_soon(watchdog.watch_forever)
        await anyio.sleep(0.05)
        time.sleep(0.25)  # noqa: ASYNC251 - that is the fault
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    assert "code that is no task" in caplog.text


@pytest.mark.parametrize(
    ("late", "cpu", "pause"), [(6.0, 0.1, 6.0), (6.0, 5.5, 0.0), (6.0, 3.0, 0.0), (0.001, 0.0, 0.001), (-0.1, 0.0, 0.0)]
)
def test_the_cpu_tells_a_standstill_from_code_that_holds_the_gil(late, cpu, pause):
    """Both keep the thread that watches from running."""
    assert standstill(late, cpu) == pause


PROGRAM = """
import logging, sys, time, anyio
from streamq import RedisBroker, Worker, task
logging.basicConfig(format="%(levelname)s %(message)s")

@task
async def quick():
    print("ready", flush=True)
    await anyio.sleep(60)

@task
async def holds_the_gil():
    print("ready", flush=True)
    end = time.monotonic() + 1.2
    n = 10**6
    while time.monotonic() < end:
        started = time.monotonic()
        sum(range(n))  # in C, and nothing else gets the GIL
        n = int(n * 1.5 / (time.monotonic() - started))
    sys.exit(0)

async def main():
    async with RedisBroker("memory://") as broker:
        await broker.enqueue(sys.argv[2])
        with anyio.move_on_after(6):
            await Worker(broker, [quick, holds_the_gil], visibility_timeout=1.5, grace_period=0, burst=True).run()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.slow
def test_a_process_that_was_stopped_blames_no_task(anyio_backend):
    """SIGSTOP and SIGCONT: a warning says so, no task is named, and nothing is said to be blocked."""
    command = [sys.executable, "-c", PROGRAM, anyio_backend, "quick"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        child.send_signal(signal.SIGCONT)
        _, log = child.communicate(timeout=20)
    (line,) = [line for line in log.splitlines() if "stood still" in line]
    assert line.startswith("WARNING")
    assert 1.5 < float(line.partition("stood still for ")[2].partition(" s")[0]) < 4
    assert "blocked" not in log


@pytest.mark.slow
def test_a_task_that_holds_the_gil_is_blamed(anyio_backend):
    """Code in C that computes: the thread that watches was late, too."""
    command = [sys.executable, "-c", PROGRAM, anyio_backend, "holds_the_gil"]
    for _ in range(3):  # on a busy machine it may be true that it got no CPU
        log = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30).stderr
        if "stood still" not in log:
            break
    assert "stood still" not in log
    assert "blocked for" in log
    assert "task 'holds_the_gil'" in log
