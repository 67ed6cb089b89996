"""Cancels a program at one of its awaits, and says what it left behind.

`cancelled_everywhere` runs a program again and again: cancelled where it waits for the first time, then where it waits
for the second time, and so on, until it is through before its turn has come.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import anyio

ENDS_WITHIN = 12.0  # seconds: every program must end in this time, wherever it is cancelled
SETTLES_WITHIN = 5.0


class StillOpenError(AssertionError):
    """Tasks or sockets that a program left behind."""


@types.coroutine
def stepped(coroutine: Coroutine[Any, Any, Any], at: int, act: Callable[[], None]) -> Generator[Any, Any, int]:
    """Run a coroutine and call `act` when it waits for the `at`-th time; return how often it has waited."""
    waits = 0
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            wanted = coroutine.send(answer) if error is None else coroutine.throw(error)
        except StopIteration:
            return waits
        waits += 1
        if waits == at:
            act()
        answer, error = None, None
        try:
            answer = yield wanted
        except BaseException as raised:  # noqa: BLE001 - thrown into the coroutine
            error = raised


async def cancelled_everywhere(
    program: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[], Awaitable[None]], *, step: int = 1
) -> int:
    """Run `program` once for each of its awaits and cancel it there; `check` what it left. Return how many there are.

    Raises AssertionError if it hangs, or leaves tasks or sockets behind.
    """
    at = 1
    while True:
        before = open_now()
        finished = False
        with anyio.move_on_after(ENDS_WITHIN) as limit, anyio.CancelScope() as scope:
            finished = await stepped(program(), at, scope.cancel) < at
        assert not limit.cancelled_caught, f"cancelled at await {at}, it goes on after {ENDS_WITHIN:g} s"
        await nothing_more_open(before, at)
        await check()
        if finished:
            return at
        at += step


def open_now() -> tuple[int, int]:
    """Return the number of tasks of this loop, and of sockets of this process."""
    return len(anyio.get_running_tasks()), sockets()


def sockets() -> int:
    """Return how many sockets this process has open, 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(descriptor).startswith("socket:")  # noqa: PTH115 - "socket:[1]" is no path
    return found


async def nothing_more_open(before: tuple[int, int], at: int) -> None:
    """Wait a moment for what ends by itself. Raises StillOpenError if there are more tasks or sockets than before."""
    with anyio.move_on_after(SETTLES_WITHIN):
        while any(now > then for now, then in zip(open_now(), before, strict=True)):
            await anyio.sleep(0.002)
        return
    names = [task.name for task in anyio.get_running_tasks()]
    raise StillOpenError(f"cancelled at await {at}: (tasks, sockets) {before} before, {open_now()} after; {names}")
