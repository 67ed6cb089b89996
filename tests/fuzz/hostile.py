"""Handlers that do what handlers must not do: each is a task of the worker beside the good ones."""

from __future__ import annotations

import decimal
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio

from streamq import Reject, RetryLater, batch_task, current_delivery, report_progress, task
from tests.fuzz.rubbish import Unspeakable

OPTIONS: dict[str, Any] = {"retries": 1, "backoff": 0.01, "timeout": 0.5, "result_ttl": 5}
FAULTY = {"listener": 0}


def listener(event: Any) -> None:
    """Raise at each third event."""
    FAULTY["listener"] += 1
    if FAULTY["listener"] % 3 == 0:
        raise Odd


class Odd(BaseException):
    """No Exception, and no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class OddError(Exception):
    """An Exception whose text raises."""

    def __str__(self) -> str:
        raise Odd

    __repr__ = __str__


async def leaves_generator() -> None:
    """Abandon a generator that has a task group open."""

    async def generator() -> Any:
        async with anyio.create_task_group():
            yield 1

    async for _ in generator():
        break


async def leaves_scope() -> None:
    """Enter a cancel scope and never leave it."""
    anyio.CancelScope().__enter__()


def raising(error: Callable[[], BaseException]) -> Callable[[], Any]:
    """Return a handler that raises."""

    async def handler() -> None:
        raise error()

    return handler


def returning(value: Callable[[], Any]) -> Callable[[], Any]:
    """Return a handler that returns an odd value."""

    async def handler() -> Any:
        return value()

    return handler


def cyclic() -> list[Any]:
    """Return a list that contains itself."""
    found: list[Any] = []
    found.append(found)
    return found


RAISED: tuple[Callable[[], BaseException], ...] = (
    Odd, OddError, lambda: SystemExit(3), lambda: ValueError("x" * 100_000),
    lambda: ValueError("\ud800\x1b[2J\nERROR forged"),
    lambda: BaseExceptionGroup("g", [Odd(), ValueError()]),
    lambda: ExceptionGroup("g", [ExceptionGroup("h", [Reject("r")])]),
    lambda: RetryLater(after=0.01), lambda: Reject("\n" * 50), RecursionError, MemoryError,
    StopAsyncIteration, lambda: anyio.get_cancelled_exc_class()(),  # noqa: PLW0108 - known in a loop
    lambda: UnicodeDecodeError("x", b"\xff", 0, 1, "y"),
)  # fmt: skip
AFTER = (1.79e306, -5, "soon", None, float("nan"), 10**400, b"1")
RETURNED: tuple[Callable[[], Any], ...] = (
    Unspeakable, cyclic, lambda: float("nan"), lambda: 10**400, lambda: "\ud800", lambda: {1: 2},
    object, lambda: b"\xff",
    lambda: "x" * 2_000_000, lambda: (n for n in range(3)), lambda: [[]] * 3,
)  # fmt: skip


def later(after: Any) -> Callable[[], Any]:
    """Return a handler that wants to run again after an odd time."""

    async def handler() -> None:
        if current_delivery().starts < 3:
            raise RetryLater(after=after, headers={"x": "\ud800"} if after is None else None)

    return handler


def leaving(mark: ContextVar[str]) -> list[Callable[[], Any]]:
    """Return handlers that leave something behind."""

    async def context() -> None:
        mark.set("left behind")
        decimal.getcontext().prec = 3

    async def filters() -> None:
        warnings.simplefilter("error")

    async def progress() -> None:
        await report_progress(float("nan"), Unspeakable())  # type: ignore[arg-type]

    async def hangs() -> None:
        await anyio.sleep(30)

    async def swallows() -> None:
        try:
            await anyio.sleep(30)
        finally:
            raise ValueError("while it was cancelled")

    return [context, filters, progress, hangs, swallows, leaves_generator, leaves_scope]


def tasks(mark: ContextVar[str]) -> list[Any]:
    """Return the hostile tasks, named `hostile.<number>`."""
    handlers: list[Any] = [*map(raising, RAISED), *map(later, AFTER), *map(returning, RETURNED), *leaving(mark)]
    made = [task(name=f"hostile.{number}", **OPTIONS)(handler) for number, handler in enumerate(handlers)]

    @batch_task(name="hostile.batch", size=3, wait=0.02, retries=1, backoff=0.01)
    async def batch(items: list[Any]) -> Any:
        return [Odd() if item == 1 else OddError() for item in items][: len(items) - (2 in items)]

    @task(name="hostile.thread", **OPTIONS)
    def in_thread() -> Any:
        mark.set("left behind")
        raise Odd

    return [*made, batch, in_thread]
