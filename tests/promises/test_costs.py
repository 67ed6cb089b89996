"""What the queue costs: commands per task, idle commands, memory per task. Counted by the server."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from streamq import Priority, RedisBroker, Worker, task
from tests.servers import Kind, RealServer, available, fresh_server

pytestmark = pytest.mark.slow

PRIORITIES = (Priority.CRITICAL, Priority.NORMAL, Priority.LOW)
done = 0


@task
async def noop() -> None:
    """Count."""
    global done  # noqa: PLW0603 - the cheapest way to count
    done += 1


@pytest.fixture(params=["valkey", "redis"])
def kind(request: pytest.FixtureRequest) -> Kind:
    global done  # noqa: PLW0603
    if not available(request.param):
        pytest.skip(f"no {request.param}-server on PATH")
    done = 0
    return request.param


def calls(server: RealServer) -> int:
    """How many commands the server has run, those of scripts included, our own INFO apart."""
    total = 0
    for line in server.command("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_") and not line.startswith(("cmdstat_info", "cmdstat_config")):
            total += int(line.split("calls=")[1].split(",")[0])
    return total


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)


@pytest.mark.parametrize("tiers", [1, 3])
async def test_commands_per_task_with_a_backlog(kind: Kind, tiers: int, anyio_backend: str) -> None:
    """At most 0.3 commands per task at concurrency 100 over a backlog of 20,000; measured: 0.03 to 0.06."""
    count = 20_000
    with fresh_server(kind) as server:
        async with RedisBroker(server.url) as broker:
            kinds = [noop.options(priority=priority) for priority in PRIORITIES[:tiers]]
            for _ in range(0, count, 1000):
                await broker.enqueue_many([kinds[number % tiers].call() for number in range(1000)])
            before = calls(server)
            worker = Worker(broker, [noop], concurrency=100)
            async with anyio.create_task_group() as group:
                await group.start(worker.run)
                await until(lambda: done == count)
                worker.stop()
            per_task = (calls(server) - before) / count
            print(f"{kind} {anyio_backend} {tiers} tiers: {per_task:.3f} commands per task")
            assert per_task <= 0.15
            assert server.command("XLEN", "queue:standard") == 0


async def test_an_idle_worker_hardly_asks(kind: Kind, anyio_backend: str) -> None:
    """An idle worker blocks: fewer than two commands a second."""
    with fresh_server(kind) as server:
        async with RedisBroker(server.url) as broker:
            worker = Worker(broker, [noop])
            async with anyio.create_task_group() as group:
                await group.start(worker.run)
                before = -1
                while calls(server) != before:  # a busy machine may take a while to start it
                    before = calls(server)
                    await anyio.sleep(0.7)
                await anyio.sleep(3.0)
                assert calls(server) - before <= 15  # one survey of 5 commands, one read
                worker.stop()


async def test_memory_per_waiting_task(kind: Kind, anyio_backend: str) -> None:
    """P10: a small waiting task takes at most 1.3 times the stream entry with a payload of 60 bytes alone."""
    count = 10_000
    payload = b'{"f":"noop","a":[],"k":{},"t":1700000000000,"n":1,"x":12345}'
    with fresh_server(kind) as server:

        def used() -> int:
            lines = server.command("INFO", "memory").decode().splitlines()
            return int(next(line.split(":")[1] for line in lines if line.startswith("used_memory:")))

        async with RedisBroker(server.url) as broker:
            start = used()
            for _ in range(0, count, 1000):
                await broker.client.call([("XADD", "bare", "*", "d", payload)] * 1000)
            bare = used() - start
            start = used()
            for _ in range(0, count, 1000):
                await broker.enqueue_many([noop.call() for _ in range(1000)])
            ours = used() - start
        print(f"{kind}: {ours / count:.0f} B per task, {bare / count:.0f} B per bare entry")
        assert ours <= 1.3 * bare
