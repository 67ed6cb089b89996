"""What a task costs does not grow with what is around it: counted by the server, at two places of each axis.

The time stands still for the buffer, so that every turn reads what there are slots for and no more: then the commands
depend on nobody's speed. What a worker takes to start and to stop drops out, as two sizes of one run are compared.
"""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack

import anyio
import pytest

from streamq import RedisBroker, Worker, task
from streamq.clock import Clock
from tests.benchmarks import growth
from tests.benchmarks.growth_worker import send, tiers_of
from tests.servers import RealServer, fresh_server

pytestmark = pytest.mark.slow

SLOTS = 64
FEW = 640
TURN = 3  # commands of a turn, and 3 more for each tier in it: XREADGROUP, EVALSHA, EXISTS; XACK, XINFO, XDEL
ADDED = 5  # counters of a tier in a turn, EXPIRE included, and two at most for each task: of its latency, of its wait
MOST_READS = 3.2  # of a turn's worth: one for each turn, two where its ids are more than fit; that is the kernel's


@pytest.fixture
def server():
    with fresh_server("valkey") as one:
        yield one


async def work_off(server: RealServer, tasks: int, *, slots: int, tiers: int, workers: int) -> growth.Count:
    """Send some tasks, have them run, and return what the server did for the workers."""
    await send(server.url, tasks, tiers=tiers)
    left, done = tasks, anyio.Event()

    @task
    async def nothing() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    before, counted = growth.count(server), _added(server)
    async with AsyncExitStack() as stack:
        clock = Clock(elapsed=lambda: 1000.0)
        brokers = [RedisBroker(server.url, tiers=tiers_of(tiers), clock=clock) for _ in range(workers)]
        crew = [Worker(await stack.enter_async_context(one), [nothing], concurrency=slots) for one in brokers]
        async with anyio.create_task_group() as group:
            for worker in crew:
                group.start_soon(worker.run)
            with anyio.fail_after(60):
                await done.wait()
            for worker in crew:
                worker.stop()
    after, added = growth.count(server), _added(server) - counted
    assert added <= 2 * tasks + ADDED * tiers * (2 * tasks / slots + 2 * workers)
    return growth.Count(after.commands - before.commands - added, after.reads - before.reads, 0.0, 0)


def _added(server: RealServer) -> int:
    """Return how often counters were added to: once for each that a turn changes, and an EXPIRE. They are apart.

    How many there are is chance: those of the times that a turn's tasks took.
    """
    text = server.command("INFO", "commandstats").decode()
    return sum(map(int, re.findall(r"cmdstat_(?:hincrby|expire):calls=(\d+)", text)))


async def turns(
    server: RealServer, *, waiting: int = 10 * FEW, slots: int = SLOTS, tiers: int = 1, workers: int = 1
) -> tuple[float, float]:
    """Return how many commands and socket reads each turn's worth of tasks costs the server."""
    few = await work_off(server, waiting // 10, slots=slots, tiers=tiers, workers=workers)
    many = await work_off(server, waiting, slots=slots, tiers=tiers, workers=workers)
    count = (waiting - waiting // 10) / slots
    return (many.commands - few.commands) / count, (many.reads - few.reads) / count


def is_one_turn_or_two(commands: float, *, tiers: int = 1) -> bool:
    """Is this what one turn costs, or two: who reads on before the end has done the rest by then, or has not."""
    turn = TURN + 3 * tiers
    return 0.85 * turn < commands < 2.15 * turn


@pytest.mark.parametrize("waiting", [5 * FEW, 40 * FEW])
async def test_the_same_however_much_waits(server, waiting):
    """3,200 tasks or 25,600: each turn costs six commands."""
    commands, reads = await turns(server, waiting=waiting)
    assert is_one_turn_or_two(commands)
    assert reads < MOST_READS


@pytest.mark.parametrize("slots", [16, 320])
async def test_a_turn_costs_the_same_at_any_concurrency(server, slots):
    """The more run at once, the fewer turns there are."""
    commands, reads = await turns(server, waiting=100 * slots, slots=slots)
    assert is_one_turn_or_two(commands)
    assert reads < MOST_READS


@pytest.mark.parametrize("tiers", [4, 64])
async def test_a_tier_costs_what_it_acknowledges_and_nothing_else(server, tiers):
    """However many there are, one command reads them and one script acknowledges them."""
    commands, reads = await turns(server, tiers=tiers)
    assert is_one_turn_or_two(commands, tiers=tiers)
    assert reads < MOST_READS


async def test_the_same_whatever_is_delayed(server):
    """Thousands that are due next week cost those that run today nothing."""
    await send(server.url, 5_000, delay=7 * 24 * 3600.0)
    commands, reads = await turns(server)
    assert is_one_turn_or_two(commands)
    assert reads < MOST_READS


async def test_the_same_for_many_workers(server):
    """Eight workers take as many turns together as one alone, but for the last of each."""
    commands, reads = await turns(server, waiting=80 * FEW, workers=8)
    assert is_one_turn_or_two(commands)
    assert reads < MOST_READS


def test_the_tool_itself_works(tmp_path, capsys):
    """One axis, short: figures as JSON, beside those that were there, and a plot that is the same each time."""
    out = tmp_path / "growth.json"
    out.write_text('{"tiers": []}')
    growth.main(["--axis", "waiting", "--short", "--out", str(out), "--plots", str(tmp_path)])
    found = json.loads(out.read_text())
    assert found["tiers"] == []
    assert [row["value"] for row in found["waiting"]] == growth.SHORT["waiting"]
    assert all(row["commands"] > 0 for row in found["waiting"])
    assert "worker_us" in capsys.readouterr().out
    plot = tmp_path / "growth-waiting.svg"
    assert b"tasks that wait" in (first := plot.read_bytes())
    growth.draw(found, tmp_path)
    assert plot.read_bytes() == first
