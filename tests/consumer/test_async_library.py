"""P13: what a run leaves in `sniffio.thread_local.name` reaches no other run, and not the worker."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
import sniffio

from streamq import Exhausted, RedisBroker, batch_task, task
from streamq.consumer.closed_call import call_closed
from tests.at_work import assert_nothing_left, burst, dead

pytestmark = pytest.mark.paired

ran: list[int] = []


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


def change() -> None:
    sniffio.thread_local.name = "curio"


@task(retries=0)
async def changes(number: int) -> None:
    change()
    if number % 2:
        raise ValueError(number)


@batch_task(size=2, wait=0.01, retries=0)
async def batch_changes(numbers: list[int]) -> None:
    change()


async def exhausted_changes(exhausted: Exhausted) -> None:
    change()


@task(retries=0, on_exhausted=exhausted_changes)
async def dies() -> None:
    raise ValueError


@task(retries=0)
async def good(number: int) -> None:
    await anyio.sleep(0.001)
    ran.append(number)


async def test_another_async_library_is_put_back_after_each_run(anyio_backend, real_server, caplog):
    """Of a run that returns, one that raises, a batch, and a function of on_exhausted."""
    async with RedisBroker(real_server.url) as broker:
        for number in range(10):
            await broker.enqueue(good, number)
            await broker.enqueue(changes, number)
            await broker.enqueue(batch_changes, number)
            await broker.enqueue(dies)
        await burst(broker, good, changes, batch_changes, dies, concurrency=4)
        await broker.is_duplicate("the broker works on")
    assert sorted(ran) == list(range(10))
    assert {letter["reason"] for letter in dead(real_server)} == {"retries_exhausted"}
    assert len(dead(real_server)) == 15
    assert_nothing_left(real_server, "queue:dedup:the broker works on")
    for name in ("changes", "batch_changes", "on_exhausted"):
        assert f"the task {name} has changed sniffio.thread_local.name to 'curio'" in caplog.text


async def test_another_async_library_is_put_back_after_a_call(anyio_backend):
    """Of a middleware's loop, or of a function that a sync handler calls in the event loop."""

    async def call() -> None:
        change()

    await call_closed("live", call, ())
    await anyio.lowlevel.checkpoint()
