"""P13: a handler that cancels what is not its own ends its worker with an error, never in silence."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys

import anyio
import pytest
import trio

from streamq import RedisBroker, Worker, batch_task, task
from streamq.consumer.containment import CancelledByOthersError
from tests.at_work import assert_nothing_left, burst, dead, pending, working
from tests.servers import fresh_server

ran: list[int] = []


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


@task(retries=0)
async def cancels_a_loop(name: str) -> None:
    for one in asyncio.all_tasks():
        if one.get_name().endswith(name):
            one.cancel()
    await anyio.sleep_forever()


@task(retries=0)
async def cancels_the_nursery() -> None:
    trio.lowlevel.current_task().parent_nursery.cancel_scope.cancel()


LOOPS = [
    "Consumer.round_trips",
    "Consumer.blocking_reads",
    "LeaseKeeper.renew_forever",
    "Promoter.promote_forever",
    "Scheduler.tick_forever",
    "Batches.serve",
]


@batch_task(size=2, wait=0.01, retries=0)
async def batched(items: list[str]) -> None:
    if "cancel" in items:
        asyncio.current_task().cancel()
    if "take back" in items:
        cancel_and_take_back()
    ran.append(len(items))


@pytest.mark.paired
@pytest.mark.parametrize("name", LOOPS)
async def test_a_worker_without_one_of_its_loops_ends_with_an_error(anyio_backend_name, shared_server, name):
    """It went on without renewing, or ended as if it had been drained. The culprit is not handed back: a crash."""
    server = shared_server("redis")
    asyncio_only = anyio_backend_name == "asyncio"
    if not asyncio_only and name != LOOPS[0]:
        pytest.skip("trio has no tasks that can be cancelled")
    async with RedisBroker(server.url) as broker:
        await (broker.enqueue(cancels_a_loop, name) if asyncio_only else broker.enqueue(cancels_the_nursery))
        worker = Worker(broker, tasks=[cancels_a_loop, cancels_the_nursery, batched], concurrency=3)
        with (
            anyio.fail_after(10),
            pytest.raises(CancelledByOthersError, match="a loop" if asyncio_only else "the runners"),
        ):
            await worker.run()
        assert pending(server) == asyncio_only  # under trio it had returned: it is acknowledged


async def test_a_batch_that_cancels_its_own_task_ends_no_worker(anyio_backend_name, shared_server):
    """The request came when the task of the batch had nothing more to wait for: it ended all batches."""
    if anyio_backend_name == "trio":
        pytest.skip("trio has no tasks that can be cancelled")
    server = shared_server("redis")
    async with RedisBroker(server.url) as broker:
        for what in ("cancel", "take back", "good"):
            async with working(broker, batched, concurrency=2):
                handle = await broker.enqueue(batched.options(result_ttl=60), what)
                await handle.result(5)
                handle = await broker.enqueue(batched.options(result_ttl=60), "good")
                await handle.result(5)
        assert dead(server) == []
    assert ran == [1] * 6
    assert_nothing_left(server)


def cancel_and_take_back() -> None:
    with contextlib.suppress(RuntimeError):  # trio has no tasks that can be cancelled
        asyncio.current_task().cancel()
        asyncio.current_task().uncancel()


@task(retries=0)
async def takes_back() -> None:
    cancel_and_take_back()


@task(retries=0)
async def good(number: int) -> None:
    await anyio.sleep(0.001)
    ran.append(number)


@pytest.mark.paired
async def test_a_request_that_was_taken_back_reaches_no_other_run(anyio_backend_name, real_server, caplog):
    """Before Python 3.13, asyncio raises it all the same at the next wait of the task: in the next run, or the loop."""
    async with RedisBroker(real_server.url) as broker:
        for number in range(20):
            await broker.enqueue(good, number)
            await broker.enqueue(takes_back)
        await burst(broker, good, takes_back, concurrency=3)
    assert sorted(ran) == list(range(20))
    assert dead(real_server) == []
    named = anyio_backend_name == "asyncio" and sys.version_info < (3, 13)
    assert sum("a runner was cancelled" in record.message for record in caplog.records) == named


def test_a_program_that_ends_beside_its_worker_is_quiet(caplog):
    """`asyncio.run` cancels all tasks at its end, those of the worker too: that is nobody's mistake."""
    caplog.set_level(logging.WARNING)
    with fresh_server("redis") as server:

        async def main() -> asyncio.Task[None]:
            broker = RedisBroker(server.url)

            async def work() -> None:
                async with broker:
                    running.set()
                    await Worker(broker, tasks=[batched]).run()

            running = asyncio.Event()
            beside = asyncio.create_task(work())
            await running.wait()
            await asyncio.sleep(0.2)  # somewhere in the middle
            return beside

        beside = asyncio.run(main())
    assert beside.cancelled()
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert sum("a runner was cancelled" in record.message for record in caplog.records) <= 1


@task(retries=5)
async def breaks_the_loop(how: str) -> None:
    """Leave behind what raises in trio's own tasks."""

    def broken() -> None:
        raise ValueError("left behind")

    async def broken_task() -> None:
        raise ValueError("left behind")

    if how == "a callback":
        trio.lowlevel.current_trio_token().run_sync_soon(broken)
    else:
        trio.lowlevel.spawn_system_task(broken_task)
    ran.append(1)
    await anyio.sleep(30)


# Trio leaves what it was about to start: a coroutine that was never awaited.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.slow
@pytest.mark.parametrize("how", ["a callback", "a system task"])
def test_a_run_that_breaks_trio_is_a_crash_of_its_worker(shared_server, how):
    """It was handed back by each worker that it ended, so it ended one after the other."""
    server = shared_server("redis")

    async def send() -> None:
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(breaks_the_loop, how)

    async def work() -> None:
        async with RedisBroker(server.url) as broker:
            with anyio.fail_after(10):
                await Worker(broker, tasks=[breaks_the_loop], visibility_timeout=0.5, burst=True).run()

    anyio.run(send, backend="trio")
    for _ in range(3):
        with pytest.raises(trio.TrioInternalError):
            anyio.run(work, backend="trio")
    gc.collect()
    anyio.run(work, backend="trio")
    assert [one["reason"] for one in dead(server)] == ["crash_loop"]
    assert len(ran) == 3
