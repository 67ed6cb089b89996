"""The loop of a middleware (`live`) ends no worker, whatever it raises; the worker ends it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import anyio
import pytest

from streamq import RedisBroker, task
from streamq.consumer.containment import live_forever
from streamq.middleware import MiddlewareChain
from tests.at_work import until, working


class OwnError(BaseException):
    """No Exception, and nothing that Python knows."""


async def exits_in_a_child() -> None:
    async def child() -> None:
        raise SystemExit(3)

    async with anyio.create_task_group() as group:
        group.start_soon(child)


async def awaits_what_others_cancelled() -> None:
    token = asyncio.ensure_future(asyncio.sleep(9))
    token.cancel()
    await token


def raises(error: BaseException) -> Any:
    async def raise_it() -> None:
        raise error

    return raise_it


RAISED = {
    "Ctrl-C": raises(KeyboardInterrupt()),
    "exit": raises(SystemExit(3)),
    "the end of a generator": raises(GeneratorExit()),
    "an error of its own": raises(OwnError()),
    "an exit in a group": raises(BaseExceptionGroup("q", [SystemExit(3)])),
    "an exit beside an error": raises(BaseExceptionGroup("q", [ValueError(3), SystemExit(3)])),
    "Ctrl-C in a group": raises(BaseExceptionGroup("q", [KeyboardInterrupt()])),
    "a cancellation": raises(asyncio.CancelledError()),
    "an exit of a child": exits_in_a_child,
    "a cancellation by others": awaits_what_others_cancelled,
}
ONLY = {"an exit of a child": "trio", "a cancellation by others": "asyncio"}
ran: list[int] = []


@task(retries=0)
async def good(n: int) -> None:
    ran.append(n)


class Lives:
    def __init__(self, live: Any) -> None:
        self._live = live
        self.lives = 0
        self.ended = 0

    async def __call__(self, context: Any, call_next: Any) -> Any:
        return await call_next(context)

    async def live(self, _: Any) -> None:
        self.lives += 1
        if self.lives <= 2:
            await self._live()
        try:
            await anyio.sleep_forever()
        finally:
            self.ended += 1


@pytest.mark.parametrize("what", RAISED)
async def test_whatever_it_raises_it_is_started_again(anyio_backend_name, what):
    """Ctrl-C, an exit, a cancellation of what it awaits: the worker runs on, and ends the loop in the end."""
    if ONLY.get(what, anyio_backend_name) != anyio_backend_name:
        pytest.skip("the other backend alone")  # asyncio ends its loop for an exit in a child; trio has no such tasks
    ran.clear()
    middleware = Lives(RAISED[what])
    async with RedisBroker("memory://") as broker, working(broker, good, middleware=MiddlewareChain(middleware)):
        await until(lambda: middleware.lives == 3)
        await broker.enqueue(good, 1)
        await until(lambda: ran == [1])
    assert middleware.ended == 1


async def numbers() -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield 1


async def abandons_a_generator() -> None:
    async for _ in numbers():
        break


async def leaves_a_scope_open() -> None:
    anyio.CancelScope().__enter__()


async def leaves_a_group_open() -> None:
    group = anyio.create_task_group()
    await group.__aenter__()
    group.start_soon(anyio.sleep_forever)


async def leaves_a_group_open_and_raises() -> None:
    await leaves_a_group_open()
    raise LookupError("own")


LEAVE = (abandons_a_generator, leaves_a_scope_open, leaves_a_group_open, leaves_a_group_open_and_raises)


@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("then", ["returns", "raises"])
async def test_what_it_leaves_open_is_closed_and_the_worker_runs_on(anyio_backend, caplog, leave, then):
    """The worker ended with it, and under trio the whole program."""
    ran.clear()

    class Leaves(Lives):
        async def live(self, _: Any) -> None:
            self.lives += 1
            if self.lives > 2:
                await anyio.sleep_forever()
            await leave()
            await anyio.sleep(0.01)
            if then == "raises":
                raise ValueError("later")

    middleware = Leaves(None)
    async with RedisBroker("memory://") as broker, working(broker, good, middleware=MiddlewareChain(middleware)):
        await until(lambda: middleware.lives == 3)
        gc.collect()
        await broker.enqueue(good, 1)
        await until(lambda: ran == [1])
    assert "Leaves.live" in caplog.text or "own" in caplog.text or "later" in caplog.text


async def test_a_real_cancellation_ends_it(anyio_backend):
    """By the scope around it."""
    middleware = Lives(None)
    middleware.lives = 2
    with anyio.move_on_after(0.05) as scope:
        await live_forever(middleware, None)  # type: ignore[arg-type]
    assert scope.cancelled_caught
    assert middleware.ended == 1


async def test_a_cancellation_of_its_own_task_ends_it(anyio_backend_name):
    """So the worker that has lost it ends with an error, as with any loop of its own."""
    if anyio_backend_name == "trio":
        pytest.skip("trio has no tasks that can be cancelled")
    middleware = Lives(None)
    middleware.lives = 2
    living = asyncio.ensure_future(live_forever(middleware, None))  # type: ignore[arg-type]
    await until(lambda: middleware.lives == 3)
    living.cancel()
    with contextlib.suppress(asyncio.CancelledError), anyio.fail_after(5):
        await living
    assert living.cancelled()


class Suspends:
    def __await__(self) -> Any:
        yield


async def suspends() -> None:
    await Suspends()


async def test_it_can_be_closed(anyio_backend):
    """As the coroutine of a task that an event loop has dropped is, in whatever task: it awaits nothing."""
    held = live_forever(Lives(suspends), None)  # type: ignore[arg-type]
    held.send(None)
    closed: list[bool] = []

    async def close() -> None:
        held.close()
        closed.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(close)
    assert closed
