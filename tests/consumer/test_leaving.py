"""P8: a worker that leaves a server which does not answer has one time for all steps together."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from streamq import Delivery, RedisBroker, Worker, current_delivery, task
from streamq.consumer import counting
from streamq.consumer.consumer import Consumer
from streamq.consumer.leaving import LEAVE_WITHIN
from streamq.monitoring import QueueMonitor
from tests.at_work import burst, until
from tests.servers import fresh_server

MARGIN = 2.0  # seconds for a busy machine
begun: list[int] = []


@task(retries=0)
async def holds() -> None:
    begun.append(1)
    await anyio.sleep_forever()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("running", "stops", "within"),
    [(0, 1, LEAVE_WITHIN), (0, 2, 3.0), (1, 2, 3.0), (1, 1, LEAVE_WITHIN + 0.5)],
)
async def test_a_silent_server_holds_a_worker_up_for_one_time(anyio_backend, running, stops, within):
    """It took 3 s to end the read, 5 s to settle and 5 s to leave, after a second request to stop as well."""
    begun.clear()
    with fresh_server("redis") as server:
        async with RedisBroker(server.url, reply_timeout=30) as broker:
            worker = Worker(broker, [holds], grace_period=0.5)
            ended = anyio.Event()

            async def work() -> None:
                await worker.run()
                ended.set()

            async with anyio.create_task_group() as group:
                group.start_soon(work)
                for _ in range(running):
                    await broker.enqueue(holds)
                await until(lambda: worker.state.value == "running" and len(begun) == running)
                await anyio.sleep(0.2)  # it blocks in a read
                os.kill(server.pid, signal.SIGSTOP)
                began = anyio.current_time()
                try:
                    for _ in range(stops):
                        worker.stop()
                        await anyio.sleep(0.1)
                    with anyio.fail_after(20):
                        await ended.wait()
                finally:
                    os.kill(server.pid, signal.SIGCONT)
            assert anyio.current_time() - began < within + MARGIN
            assert worker.state.value == "stopped"


async def test_a_worker_that_leaves_counts_each_task_once(anyio_backend, shared_server, monkeypatch):
    """A round trip with counters could begin after the last settlement, and be cut off: they were written again."""
    server = shared_server("valkey")
    settled = Consumer.wait_until_settled

    async def slowly(consumer: Consumer) -> None:
        await settled(consumer)
        consumer.settler.counting.superseded(ran[-1])  # something to write, and due at once
        monkeypatch.setattr(counting, "COUNT_EVERY", 0.0)
        consumer.wake_up()

    ran: list[Delivery] = []
    monkeypatch.setattr(Consumer, "wait_until_settled", slowly)

    @task
    async def noted() -> None:
        ran.append(current_delivery())

    async with RedisBroker(server.url) as broker:
        await broker.enqueue(noted)
        await burst(broker, noted)
        found = await QueueMonitor(broker=broker).snapshot()
    assert (found.done, found.superseded) == (1, 1)
