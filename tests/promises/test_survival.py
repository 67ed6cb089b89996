"""P1, P2, P3, P5: workers that die, freeze and kill each other lose nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from streamq import Priority, RedisBroker, TaskRef
from tests.promises.fleet import fleet, leftovers
from tests.servers import RealServer

pytestmark = [pytest.mark.slow, pytest.mark.paired]

TASKS = int(os.environ.get("STREAMQ_TASKS", "100000"))
PRIORITIES = (Priority.CRITICAL, Priority.NORMAL, Priority.LOW)


async def send_effects(url: str, count: int) -> None:
    """Send `effect(0)` to `effect(count - 1)`, over three tiers in turn."""
    by_tier = [TaskRef("effect").options(priority=priority) for priority in PRIORITIES]
    async with RedisBroker(url) as broker:
        for at in range(0, count, 1000):
            await broker.enqueue_many([by_tier[number % 3].call(number) for number in range(at, min(at + 1000, count))])


@pytest.mark.timeout(180)
async def test_nothing_is_lost_when_one_worker_is_killed_and_one_frozen(
    real_server: RealServer, anyio_backend: str, tmp_path: Path
) -> None:
    """P1: every effect is recorded at least once, nothing is pending, no undocumented key is left."""
    await send_effects(real_server.url, TASKS)
    with fleet(real_server, anyio_backend, tmp_path, lease=1.5) as workers:
        first, second = workers.start(), workers.start()
        line = len(f"effect 12345 {first.pid}\n")
        workers.wait(lambda: workers.size() > TASKS * line // 5, 60, "fifth of the effects")
        os.kill(first.pid, signal.SIGKILL)
        workers.wait(lambda: workers.size() > TASKS * line // 3, 60, "third of the effects")
        os.kill(second.pid, signal.SIGSTOP)
        third = workers.start()
        workers.wait(workers.settled, 90, "end of the work")  # the frozen one's share included
        os.kill(second.pid, signal.SIGCONT)
        for process in (second, third):
            process.terminate()
            assert process.wait(20) == 0
        effects = workers.effects()
        assert set(effects) == set(range(TASKS))
        assert workers.settled()
        assert workers.pending() == 0
        twice = sum(effects.values()) - TASKS
        assert twice <= 4 * 1100, "only what the two held may run twice"
    assert real_server.command("XLEN", "queue:dead") == 0
    assert leftovers(real_server) == []


@pytest.mark.timeout(90)
async def test_a_task_that_kills_its_workers_dies_and_only_it(
    real_server: RealServer, anyio_backend: str, tmp_path: Path
) -> None:
    """P5: the culprit takes down three workers and is a dead letter; those beside it all succeed."""
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue("deadly", 1)
        await broker.enqueue_many([TaskRef("slow").call(number, 0.2) for number in range(100, 130)])
    with fleet(real_server, anyio_backend, tmp_path, lease=1.2, concurrency=10) as workers:
        for _ in range(3):
            process = workers.start()
            process.wait(30)
            assert process.returncode == -signal.SIGKILL
        last = workers.start()
        workers.wait(workers.settled, 30, "end of the work")
        last.terminate()
        assert last.wait(20) == 0
        assert workers.starts()[1] == 3
        assert set(workers.effects()) >= set(range(100, 130))
    (dead,) = real_server.command("XRANGE", "queue:dead", "-", "+")
    fields = dict(zip(dead[1][::2], dead[1][1::2], strict=True))
    assert fields[b"reason"] == b"crash_loop"
    assert fields[b"task"] == b"deadly"
    assert len(fields[b"crashed"].split()) == 3
    assert leftovers(real_server) == []


@pytest.mark.timeout(60)
async def test_a_task_runs_far_longer_than_the_visibility_timeout_and_only_once(
    real_server: RealServer, anyio_backend: str, tmp_path: Path
) -> None:
    """P3: a live worker renews what it holds, prefetched or running."""
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue_many([TaskRef("slow").call(number, 3.0) for number in range(4)])
    with fleet(real_server, anyio_backend, tmp_path, lease=1.0, concurrency=2) as workers:
        workers.start(), workers.start()
        workers.wait(workers.settled, 30, "end of the work")
        assert workers.starts() == dict.fromkeys(range(4), 1)
        assert workers.effects() == dict.fromkeys(range(4), 1)


@pytest.mark.timeout(60)
async def test_what_a_dead_worker_held_runs_again_within_the_promised_time(
    real_server: RealServer, anyio_backend: str, tmp_path: Path
) -> None:
    """P3: within the visibility timeout and one sweep."""
    lease = 1.5
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue("slow", 1, 60.0)
    with fleet(real_server, anyio_backend, tmp_path, lease=lease) as workers:
        first = workers.start()
        workers.wait(lambda: workers.starts()[1] == 1, 10, "first start")
        workers.start()
        os.kill(first.pid, signal.SIGKILL)
        took = workers.wait(lambda: workers.starts()[1] == 2, 20, "second start")
    assert took <= lease + lease / 3 + 0.5


@pytest.mark.timeout(60)
async def test_a_worker_whose_loop_was_blocked_does_no_harm(
    real_server: RealServer, anyio_backend: str, tmp_path: Path
) -> None:
    """P4: another takes over; the late success of the first is void or counts, but counts once."""
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue("stuck", 1, 2.5)
    with fleet(real_server, anyio_backend, tmp_path, lease=0.6, concurrency=4) as workers:
        workers.start()
        workers.wait(lambda: workers.starts()[1] == 1, 10, "first start")
        workers.start()
        workers.wait(lambda: workers.settled() and workers.pending() == 0, 30, "end of the work")
        assert 1 <= workers.effects()[1] <= 3
        assert real_server.command("XLEN", "queue:dead") == 0
