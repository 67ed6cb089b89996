"""Loads pydantic for tasks of plain values, when their worker has run for a second.

Numbers and texts go as they are, and most workers convert none. A worker that loaded pydantic for them as it starts
would start later, by more than it takes to run ten thousand tasks. One that loaded it at the first value to be
converted might have no descriptor left by then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread

from streamq.tasks.json_type import has_pydantic
from streamq.tasks.task import Task

AFTER: Final = 1.0  # seconds


async def prepare_later(tasks: Iterable[Task[Any, Any]]) -> None:
    """Make the types of tasks ready for values that need a conversion. The import runs in a thread."""
    await anyio.sleep(AFTER)
    prepare = partial(_prepare, list(tasks))
    if not has_pydantic() or "pydantic" in sys.modules:
        return prepare()
    with suppress(Exception):  # no thread to be had: it is loaded at the first conversion
        await anyio.to_thread.run_sync(prepare, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    return None


def _prepare(tasks: Iterable[Task[Any, Any]]) -> None:
    for task in tasks:
        with suppress(Exception):  # the first value that needs it says what is wrong
            task.arguments.prepare()
