"""Figures that are true: compared with what the tasks wrote down, while workers are killed and connections cut."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import anyio
import pytest

from streamq import RedisBroker, TaskRef
from streamq.monitoring import Figures, QueueMonitor
from tests.promises.fleet import Fleet, fleet
from tests.servers import RealServer

pytestmark = [pytest.mark.slow, pytest.mark.paired]

FINE, FLAKY, DOOMED, LATER, ENDLESS = 3000, 60, 40, 50, 12
WITHIN = 0.08
NOISE = 20.0  # ms between what a handler measures and what its worker does, on a machine that is busy


async def send(url: str) -> None:
    async with RedisBroker(url) as broker:
        endless = TaskRef("endless")
        for number in range(ENDLESS):
            await broker.enqueue(endless.options(task_id=f"endless-{number}", priority=100), number)
        for name, count in (("fine", FINE), ("flaky", FLAKY), ("doomed", DOOMED), ("later", LATER)):
            by_tier = [TaskRef(name).options(priority=priority) for priority in (100, 50, 1)]
            await broker.enqueue_many([by_tier[number % 3].call(number) for number in range(count)])


async def cancel_all(url: str) -> None:
    async with RedisBroker(url) as broker:
        for number in range(ENDLESS):
            await broker.handle(f"endless-{number}").cancel()


def measured(workers: Fleet, word: str) -> list[float]:
    """Return the times (ms) that the runs wrote down, in order: of each task, those of its last run."""
    last = {name: us for name, us, _ in workers.lines() if name.startswith(f"{word}:")}
    assert len(last) == FINE
    return sorted(us / 1000 for us in last.values())


def check_times(found: Figures, workers: Fleet) -> None:
    for word in ("wait", "latency"):
        times = measured(workers, word)
        for share in (50, 95, 99):
            true = times[max(1, math.ceil(share / 100 * FINE)) - 1]
            assert getattr(found, f"p{share}_{word}_ms") == pytest.approx(true, rel=WITHIN, abs=NOISE), (word, share)
        assert getattr(found, f"avg_{word}_ms") == pytest.approx(sum(times) / FINE, rel=0.02, abs=NOISE)


@pytest.mark.timeout(150)
async def test_every_counter_is_exact_and_every_percentile_within_its_bound(
    real_server: RealServer, anyio_backend: str, tmp_path: Path
) -> None:
    """Retries, deaths, postponed runs, cancellations, redeliveries, two SIGKILLs, connections that are cut."""
    url = real_server.url
    await send(url)
    with fleet(real_server, anyio_backend, tmp_path, lease=1.5, member="counted_member") as workers:
        first, second = workers.start(), workers.start()
        for process, part in ((first, 0.2), (second, 0.5)):
            done = int(part * FINE)
            workers.wait(lambda done=done: len(workers.effects()) > done, 60, "part of the effects")
            os.kill(process.pid, signal.SIGKILL)
            workers.start()
        for _ in range(15):  # what was sent and not answered is sent again
            real_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await anyio.sleep(0.1)
        await cancel_all(url)
        workers.wait(workers.settled, 90, "end of the work")
        async with RedisBroker(url) as broker:
            found = await QueueMonitor(broker=broker, window=900).snapshot()
        ran_twice = sum(workers.effects().values()) - FINE - FLAKY - LATER
        for process in workers.members[2:]:
            process.terminate()
            assert process.wait(20) == 0
        assert real_server.command("XLEN", "queue:dead") == DOOMED
        wanted = {"fine": {"done": FINE}, "flaky": {"done": FLAKY, "failed": FLAKY, "retried": FLAKY}}
        wanted |= {"doomed": {"failed": DOOMED, "died": DOOMED}, "later": {"done": LATER, "postponed": LATER}}
        wanted |= {"endless": {"cancelled": ENDLESS}}
        names = ("done", "failed", "retried", "died", "postponed", "cancelled", "superseded")
        got = {
            task: {name: n for name in names if (n := getattr(one, name))} for task, one in found.tasks.items()
        }  # fmt: skip
        assert got == wanted, f"{ran_twice} ran twice"
        for name in names:
            total = sum(of_task.get(name, 0) for of_task in wanted.values())
            assert getattr(found, name) == total
            assert sum(getattr(tier, name) for tier in found.tiers.values()) == total
        check_times(found.tasks["fine"], workers)
