"""P1: somebody deletes the consumer of a worker while it runs tasks: they run to their ends, once."""

from __future__ import annotations

import anyio
import pytest

from streamq import RedisBroker, task
from tests.at_work import dead, entries, working

pytestmark = [pytest.mark.anyio, pytest.mark.paired]


async def test_a_run_goes_on_when_its_consumer_is_deleted(real_server):
    runs: list[int] = []

    @task(result_ttl=60)
    async def slow(number: int) -> int:
        runs.append(number)
        await anyio.sleep(1.5)
        return number

    async with RedisBroker(real_server.url) as broker:
        handles = [await broker.enqueue(slow, number) for number in range(3)]
        async with working(broker, slow, visibility_timeout=0.9):
            with anyio.fail_after(5):
                while len(runs) < 3:
                    await anyio.sleep(0.01)
            for row in real_server.command("XINFO", "CONSUMERS", "queue:standard", "workers"):
                real_server.command("XGROUP", "DELCONSUMER", "queue:standard", "workers", row[row.index(b"name") + 1])
            assert [await handle.result(timeout=10) for handle in handles] == [0, 1, 2]
            late = await broker.enqueue(slow, 3)
            assert await late.result(timeout=10) == 3
    assert sorted(runs) == [0, 1, 2, 3]
    assert entries(real_server, "queue:standard") == dead(real_server) == []
