"""`streamq doctor` on a busy queue: a task that moves between two commands is no finding."""

from __future__ import annotations

import random

import anyio
import anyio.lowlevel
import pytest

from streamq import RedisBroker, RetryLater, Worker, task
from streamq.doctor import examine
from streamq.tasks.retry_policy import Backoff
from tests.doctor.examined import bad
from tests.servers import REAL_KINDS, available, fresh_server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
chance = random.Random(7)


@task(retries=50, backoff=Backoff(base=0.01, factor=1.0, cap=0.02), result_ttl=5)
async def move():
    """Succeed, or be retried from the delayed set."""
    await anyio.lowlevel.checkpoint()
    if (fate := chance.random()) < 0.1:
        raise RetryLater(after=0.01)
    if fate < 0.3:
        raise ValueError


async def produce(broker):
    while True:
        await broker.enqueue_many([move.options(delay=0.01 * (n % 3)).call() for n in range(40)])
        await anyio.sleep(0.05)


async def come_and_go(broker):
    while True:
        with anyio.move_on_after(0.5):
            await Worker(broker, tasks=[move], grace_period=0.2).run()


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_no_false_alarm(kind, anyio_backend):
    """Tasks run, fail and are retried, workers start and stop: no examination reports a problem."""
    if not available(kind):
        pytest.skip(f"no {kind}-server on PATH")
    with fresh_server(kind, "--appendonly", "yes") as server:
        async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
            await group.start(Worker(broker, tasks=[move]).run)
            group.start_soon(produce, broker)
            group.start_soon(come_and_go, broker)
            seen = [bad(await examine(broker)) for _ in range(15)]
            stream = await broker.client.command("XINFO", "STREAM", "queue:standard")
            group.cancel_scope.cancel()
    assert dict(zip(stream[::2], stream[1::2], strict=True))[b"entries-added"] > 100
    assert not any(seen)
