"""P13: what a sync handler calls in the event loop, and leaves open there, is closed, and fails its run alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import anyio.from_thread
import pytest

from streamq import RedisBroker, batch_task, task
from streamq.errors import TaskFailedError
from tests.at_work import until, working

ended: list[str] = []


async def child() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        ended.append("child")


async def rows() -> AsyncIterator[int]:
    async with anyio.create_task_group() as group:
        group.start_soon(child)
        yield 1
        yield 2


async def first() -> int:
    async for row in rows():
        await anyio.sleep(0.01)  # the child has begun
        return row  # the generator is abandoned
    return 0


async def group_left_open() -> None:
    group = anyio.create_task_group()
    await group.__aenter__()
    group.start_soon(child)
    await anyio.sleep(0.01)


async def scope_left_open() -> None:
    anyio.CancelScope().__enter__()


async def exits() -> None:
    raise SystemExit(3)


async def fails() -> None:
    raise LookupError("own")


async def works() -> str:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0.01)
    return "fine"


CALLS = {call.__name__: call for call in (first, group_left_open, scope_left_open, exits, fails, works)}


@task(retries=0, result_ttl=60)
def calls(name: str) -> object:
    return anyio.from_thread.run(CALLS[name])


@batch_task(size=2, wait=0.05, retries=0, result_ttl=60)
def calls_of_a_batch(names: list[str]) -> list[object]:
    return [anyio.from_thread.run(CALLS[name]) for name in names]


@task(retries=0, result_ttl=60)
def gets_back(_: str) -> str:
    """Use the other ways of anyio from a thread."""
    anyio.from_thread.check_cancelled()
    return anyio.from_thread.run_sync(str.upper, "fine")


@pytest.mark.parametrize("called", [calls, calls_of_a_batch])
@pytest.mark.parametrize("name", ["first", "group_left_open", "scope_left_open"])
async def test_what_a_call_leaves_open_is_closed(anyio_backend, called, name):
    """It ended the program under trio, and was a success whose children lived on under asyncio."""
    ended.clear()
    async with RedisBroker("memory://") as broker, working(broker, calls, calls_of_a_batch):
        with pytest.raises(TaskFailedError) as caught:
            await (await broker.enqueue(called, name)).result(timeout=5)
        assert caught.value.error_type == "streamq.errors.LeftOpenError"
        assert ("rows" in caught.value.error) == (name == "first")
        await until(lambda: ended == ["child"] * (name != "scope_left_open"))
        assert await (await broker.enqueue(called, "works")).result(timeout=5) == "fine"


async def test_its_own_errors_come_out_as_they_are(anyio_backend):
    """An exit, too: in a task of asyncio's it would end the loop."""
    async with RedisBroker("memory://") as broker, working(broker, calls, gets_back):
        for name, kind in (("fails", "LookupError"), ("exits", "SystemExit")):
            with pytest.raises(TaskFailedError) as caught:
                await (await broker.enqueue(calls, name)).result(timeout=5)
            assert caught.value.error_type == kind
        assert await (await broker.enqueue(gets_back, "")).result(timeout=5) == "FINE"


def sync_scope_left_open() -> None:
    anyio.CancelScope().__enter__()


def sync_exits() -> None:
    raise SystemExit(3)


@task(retries=0, result_ttl=60)
def calls_sync(name: str) -> object:
    return anyio.from_thread.run_sync(globals()[name])


@pytest.mark.parametrize(("name", "kind"), [
    ("sync_scope_left_open", "streamq.errors.LeftOpenError"), ("sync_exits", "SystemExit"),
])  # fmt: skip
async def test_what_a_sync_call_leaves_open_or_raises_is_its_own(anyio_backend, name, kind):
    """An exit ended the loop of asyncio, and a scope was that of trio's own task."""
    async with RedisBroker("memory://") as broker, working(broker, calls_sync, gets_back):
        with pytest.raises(TaskFailedError) as caught:
            await (await broker.enqueue(calls_sync, name)).result(timeout=5)
        assert caught.value.error_type == kind
        assert await (await broker.enqueue(gets_back, "")).result(timeout=5) == "FINE"
