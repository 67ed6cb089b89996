"""What a run that raised held is free when it has ended, without a garbage collection.

An exception has the frames of its run, and a frame that has the exception keeps all of them: memory, descriptors, and
connections that go back to their pool when nobody has them.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, batch_task, task
from streamq.middleware import CircuitBreaker, ConcurrencyLimit
from tests.at_work import until, working


class Held:
    """What a handler has in a local variable."""


kept: list[weakref.ref[Held]] = []


def hold() -> Held:
    held = Held()
    kept.append(weakref.ref(held))
    return held


def alive() -> int:
    return sum(one() is not None for one in kept)


def raised_by(way: str) -> BaseException:
    return {
        "error": lambda: ValueError("x"),
        "reject": lambda: Reject("no"),
        "later": lambda: RetryLater("not now", after=3600),
        "exit": lambda: SystemExit(3),
        "group": lambda: ExceptionGroup("g", [ValueError("x"), KeyError("y")]),
        "group of one": lambda: ExceptionGroup("g", [Reject("x")]),
    }[way]()


@task(retries=1, backoff=0)
async def in_loop(way: str) -> None:
    held = hold()
    await anyio.lowlevel.checkpoint()
    raise raised_by(way) from (ValueError("a cause") if held else None)


@task(retries=1, backoff=0, timeout=60)
async def timed(way: str) -> None:
    held = hold()
    await anyio.lowlevel.checkpoint()
    raise raised_by(way) from (ValueError("a cause") if held else None)


@task(retries=1, backoff=0)
def in_thread(way: str) -> None:
    held = hold()
    raise raised_by(way) from (ValueError("a cause") if held else None)


@task(retries=1, backoff=0, timeout=60)
def timed_in_thread(way: str) -> None:
    held = hold()
    raise raised_by(way) from (ValueError("a cause") if held else None)


@task(retries=1, backoff=0)
async def in_task_group(way: str) -> None:
    async def child(held: Held) -> None:
        raise raised_by(way)

    async with anyio.create_task_group() as group:
        group.start_soon(child, hold())


@batch_task(size=2, retries=1, backoff=0, wait=0.01)
async def batched(ways: list[str]) -> None:
    held = hold()
    raise raised_by(ways[0]) from (ValueError("a cause") if held else None)


@batch_task(size=2, retries=1, backoff=0, wait=0.01)
def batched_in_thread(ways: list[str]) -> None:
    held = hold()
    raise raised_by(ways[0]) from (ValueError("a cause") if held else None)


def last_words(dead: Any) -> None:
    raise LookupError("nor this")


@task(retries=0, on_exhausted=last_words)
async def exhausted(way: str) -> None:
    held = hold()
    raise raised_by(way) from (ValueError("a cause") if held else None)


async def passes(context: Any, call_next: Any) -> Any:
    return await call_next(context)


@task(retries=1, backoff=0, middleware=[passes, ConcurrencyLimit(5), CircuitBreaker(1000)])
async def wrapped(way: str) -> None:
    held = hold()
    await anyio.lowlevel.checkpoint()
    raise raised_by(way) from (ValueError("a cause") if held else None)


@task(retries=0, timeout=0.05)
async def times_out(way: str) -> None:
    held = hold()
    await anyio.sleep(60)
    del held


@task(retries=0, timeout=0.05, middleware=[passes])
async def times_out_inside(way: str) -> None:
    held = hold()
    await anyio.sleep(60)
    del held


TASKS = [
    in_loop, timed, in_thread, timed_in_thread, in_task_group, batched, batched_in_thread, exhausted, wrapped,
    times_out, times_out_inside,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    kept.clear()
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps each record, and that its exception
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


WAYS = {one: ["error", "reject", "exit", "group"] for one in TASKS}
WAYS[in_loop] += ["later", "group of one"]
WAYS[times_out] = WAYS[times_out_inside] = ["error"]
WAYS[in_task_group].remove("exit")  # asyncio ends for it


@pytest.mark.parametrize(
    ("one", "way"), [pytest.param(one, way, id=f"{one.name}, {way}") for one in TASKS for way in WAYS[one]]
)
async def test_what_a_failed_run_held_is_free(one, way):
    """After the last attempt, too, while the worker is idle."""
    async with RedisBroker("memory://") as broker, working(broker, one, concurrency=2):
        await broker.enqueue(one, way)
        await until(lambda: kept)
        if way != "later":
            with anyio.fail_after(8):
                while not await broker.client.xlen("queue:dead"):
                    await anyio.sleep(0.005)
        await until(lambda: not alive(), 3.0)
