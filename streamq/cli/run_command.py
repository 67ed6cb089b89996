"""Running one coroutine for a command that ends by itself, and translating how it fails."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import redis.exceptions

from streamq.cli.usage_errors import explained
from streamq.errors import StreamqError
from streamq.queue.server_errors import translated

R = TypeVar("R")


def uvloop_installed() -> bool:
    """Can asyncio run on uvloop here?"""
    return importlib.util.find_spec("uvloop") is not None


def run(
    function: Callable[[], Awaitable[R]], *, backend: str = "asyncio", use_uvloop: bool = False,
    own_signals: bool = False,
) -> R:  # fmt: skip
    """Run an async function to its end.

    Unless it sees to signals itself, Ctrl-C and SIGTERM cancel it, so that it cleans up, and
    become a KeyboardInterrupt. Raises Problem where the server or a value cannot be used.
    """
    options = {"use_uvloop": True} if use_uvloop and backend == "asyncio" else {}
    whole = function if own_signals else lambda: _interruptible(function)
    try:
        return anyio.run(whole, backend=backend, backend_options=options)
    except StreamqError as error:
        raise explained(error) from error
    except redis.exceptions.RedisError as error:
        raise explained(translated(error)) from error
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from group
        raise


async def _interruptible(function: Callable[[], Awaitable[R]]) -> R:
    """Run a function, and cancel it at the first signal. A second one finds Python's own handlers."""
    ended: list[R] = []
    failed: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_when_told, group.cancel_scope)
        try:
            ended.append(await function())
        except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
            failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed
    if not ended:
        raise KeyboardInterrupt
    return ended[0]


async def _cancel_when_told(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return
