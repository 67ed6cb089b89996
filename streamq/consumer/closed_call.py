"""A call of the user's code, in the task of the caller, that leaves no cancel scope and no task group open in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio

from streamq.consumer.async_library import AsyncLibrary
from streamq.consumer.left_behind import MISNESTED, RunScope
from streamq.errors.readable import readable


async def call_closed(name: str, function: Callable[..., Awaitable[Any]], args: Iterable[Any]) -> Any:
    """Call a function. Raises LeftOpenError, which says `name`, if it leaves something open: that is closed."""
    task, library = anyio.get_current_task().id, AsyncLibrary()
    with anyio.CancelScope() as scope:
        run = RunScope(scope)
        with run.watched():
            try:
                try:
                    result = await function(*args)
                finally:
                    if library.thread.name != library.name:
                        library.put_back(name)
            except BaseException as raised:  # noqa: BLE001 - raised again
                error = readable(raised)
                try:
                    if is_left(task):  # this coroutine is being closed: it may await nothing
                        raise GeneratorExit from error
                    if run.inner or run.abandoned or isinstance(error, MISNESTED):
                        raise (await run.close(name, error)) from None
                    if error is raised:
                        raise
                    raise error from None
                finally:
                    del error
            await run.raise_left_open(name)
            return result


def is_left(task: int) -> bool:
    """Is a coroutine of this task being closed, by another task or when no event loop runs any more?"""
    try:
        return anyio.get_current_task().id != task
    except RuntimeError:
        return True
