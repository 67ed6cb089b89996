"""P14: a worker that runs needs no file and no module any more, and a system without descriptors harms no task."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from streamq import Cron, RedisBroker, task
from streamq.consumer import runner_pool, scheduler
from streamq.errors import ConfigurationError
from streamq.queue.settle_commands import SettleCommands
from tests.at_work import burst, dead, until, working
from tests.promises import without_disk as tasks

pytestmark = pytest.mark.paired

ROOT = Path(__file__).parents[2]
DEAD = {"fails": 2, "late": 2, "in_process": 1}  # by task: those that raise


def nothing_waits(server):
    """Return whether nothing is left to be done."""
    waiting = sum(server.command("XLEN", f"queue:{tier}") for tier in ("critical", "standard", "bulk"))
    return waiting + server.command("ZCARD", "queue:standard:delayed") == 0


async def test_a_worker_opens_and_imports_nothing_once_it_runs(real_server, anyio_backend):
    """Retries, dead letters, results, threads, processes, batches, limits, no descriptors, a lost connection."""
    command = [sys.executable, "-m", "tests.promises.without_disk", real_server.url, anyio_backend]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as worker:  # noqa: ASYNC220 - it waits for nothing
        try:
            assert worker.stdout is not None
            assert await anyio.to_thread.run_sync(worker.stdout.readline) == b"up\n"
            async with RedisBroker(real_server.url) as broker:
                for number in range(2):
                    await broker.enqueue(tasks.hogs, 0.6)
                    await anyio.sleep(0.2)
                    await broker.enqueue(tasks.fails, Decimal(3))
                    await broker.enqueue(tasks.prices, Decimal("1.5"))
                    await broker.enqueue(tasks.late, number)
                    await broker.enqueue(tasks.in_thread, number)
                    await broker.enqueue(tasks.in_process, number)  # the second one fails
                    await broker.enqueue(tasks.batched, number)
                    await broker.enqueue(tasks.limited, number)
                    await broker.enqueue(tasks.in_thread.options(delay=0.1), number)
                    await broker.start(tasks.prices.call(Decimal(1)).then(tasks.prices))
                    await until(lambda: nothing_waits(real_server), 20)
                    real_server.command("CLIENT", "KILL", "TYPE", "normal")
            worker.send_signal(signal.SIGTERM)
            noted = json.loads(await anyio.to_thread.run_sync(worker.stdout.read))
            assert worker.wait(10) == 0
        finally:
            worker.kill()
    assert noted == []
    assert Counter(letter["task"] for letter in dead(real_server)) == DEAD


SCALARS = """
import sys
import anyio
from streamq import RedisBroker, Worker, task

@task(result_ttl=60)
async def half(of: int, by: float = 2.0) -> float:
    return of / by

async def main():
    async with RedisBroker("memory://") as broker:
        worker = Worker(broker, tasks=[half])
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            print("pydantic" in sys.modules)
            with anyio.move_on_after(30):
                while "pydantic.type_adapter" not in sys.modules:
                    await anyio.sleep(0.05)
            await anyio.sleep(0.5)
            print(half.arguments.converter._positional[0][1]._way is not None)
            worker.stop()

anyio.run(main, backend=sys.argv[1])
"""


def test_a_worker_loads_in_time_what_a_number_in_a_text_needs(anyio_backend):
    """Its tasks take plain numbers, and a producer in another language may send "5": that has to be converted.

    Not as it starts: most need it never. Not when it comes: there may be no descriptor left.
    """
    ended = subprocess.run([sys.executable, "-c", SCALARS, anyio_backend], capture_output=True, check=True, timeout=60)
    assert ended.stdout.split() == [b"False", b"True"]


# --- what the system lacks is no fault of a task -----------------------------------------------


def failing(function, times, make=lambda error: error):
    """Return a function that raises what the system says without a descriptor, some times, and then does its work."""
    left = [times]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise make(OSError(errno.EMFILE, "Too many open files"))
        return function(*args, **kwargs)

    return call


@task(retries=1, backoff=0.01)
async def once_more(ran: list[int]) -> None:
    RAN.append(1)
    if len(RAN) < 2:
        raise ValueError


RAN: list[int] = []


@pytest.fixture(autouse=True)
def nothing_ran():
    RAN.clear()


async def test_a_settlement_that_cannot_be_built_just_now_is_tried_again(server, anyio_backend, monkeypatch):
    """As it was decided, and more often than a settlement may be refused."""
    monkeypatch.setattr(SettleCommands, "postpone", failing(SettleCommands.postpone, 2))
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(once_more, [])
        await burst(broker, once_more)
    assert len(RAN) == 2
    assert dead(server) == []


async def test_a_delivery_that_meets_a_shortage_runs_later(server, anyio_backend, monkeypatch, caplog):
    """And spends no attempt."""
    monkeypatch.setattr(runner_pool, "kept_for", failing(runner_pool.kept_for, 1))
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(tasks.prices, Decimal(1))
        await burst(broker, tasks.prices)
    assert dead(server) == []
    assert "Too many open files" in caplog.text


async def test_a_schedule_whose_time_zone_cannot_be_read_just_now_is_ticked_later(
    server, anyio_backend, monkeypatch, caplog
):
    """It was given up for as long as the worker lived, or ended it."""

    def caused(error):
        wrong = ConfigurationError("no such time zone")
        wrong.__cause__ = error
        return wrong

    monkeypatch.setattr(scheduler, "_RETRY_REFUSED", 0.05)
    find = failing(scheduler.find_due_ticks, 1, caused)
    monkeypatch.setattr(scheduler, "find_due_ticks", failing(find, 1))
    async with RedisBroker(server.url) as broker:
        await broker.schedule("seconds", Cron("* * * * * *", tz="Europe/Berlin"), once_more.call([]))
        async with working(broker, once_more):
            await until(lambda: RAN)
        await broker.unschedule("seconds")
    assert "is ticked late" in caplog.text
