"""Runs the async function of a command and turns its errors into CommandLineError."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import redis.exceptions

from streamq.cli.event_loop import loop_for_handlers
from streamq.cli.usage_errors import CommandLineError, from_streamq_error
from streamq.errors import StreamqError
from streamq.queue.server_errors import translated

R = TypeVar("R")


def uvloop_installed() -> bool:
    """Is uvloop installed?"""
    return importlib.util.find_spec("uvloop") is not None


def check_backend(backend: str) -> None:
    """Raise CommandLineError if trio is asked for and not installed."""
    if backend == "trio" and importlib.util.find_spec("trio") is None:
        raise CommandLineError("--backend trio needs an extra: pip install 'streamq[trio]'")


def run(
    function: Callable[[], Awaitable[R]], *, backend: str = "asyncio", use_uvloop: bool = False,
    own_signals: bool = False,
) -> R:  # fmt: skip
    """Run an async function to its end.

    Ctrl-C and SIGTERM cancel the function, so that it cleans up, and then raise KeyboardInterrupt. With
    `own_signals` the function handles signals itself, and nothing but its end ends the event loop. Raises
    CommandLineError if the server or a value cannot be used.
    """
    options: dict[str, Any] = {}
    if backend == "asyncio":
        in_loop = {"loop_factory": partial(loop_for_handlers, use_uvloop=use_uvloop)}
        options = in_loop if own_signals else {"use_uvloop": use_uvloop}
    main = function if own_signals else lambda: _interruptible(function)
    try:
        return anyio.run(main, backend=backend, backend_options=options)
    except StreamqError as error:
        raise from_streamq_error(error) from error
    except redis.exceptions.RedisError as error:
        raise from_streamq_error(translated(error)) from error
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from group
        raise


async def _interruptible(function: Callable[[], Awaitable[R]]) -> R:
    """Run a function and cancel it at the first signal. A second signal gets Python's default handler."""
    results: list[R] = []
    failed: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_on_signal, group.cancel_scope)
        try:
            results.append(await function())
        except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
            failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed
    if not results:
        raise KeyboardInterrupt
    return results[0]


async def _cancel_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return
