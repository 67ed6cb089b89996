"""The tasks of one worker process: the good one, and those that poison is made of. What they do is in a file.

Each line is one short write with O_APPEND, so what a process wrote before it died stays written.
"""

from __future__ import annotations

import decimal
import logging
import os
import signal
from contextvars import ContextVar
from typing import Any

import anyio

from streamq import RetryLater, current_delivery, task
from tests.fuzz import hostile

MARK: ContextVar[str] = ContextVar("poison", default="")
PAUSE = 0.03  # seconds that a good task waits for something, as most tasks do


class Log:
    """The file of one fleet."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, word: str, what: str) -> None:
        """Write a line."""
        os.write(self._file, f"{word} {what}\n".encode())


def tasks(log: Log) -> list[Any]:
    """Return the tasks of a worker."""

    @task(retries=0)
    async def good(n: str) -> None:
        await anyio.sleep(PAUSE)
        if MARK.get() or decimal.getcontext().prec != 28:
            log.note("leak", n)
        log.note("done", n)

    @task(retries=0)
    async def echo(*args: Any, **kwargs: Any) -> Any:
        log.note("ran", current_delivery().task_id)
        return args

    @task(retries=0, result_ttl=60)
    async def kept(*args: Any) -> Any:
        log.note("ran", current_delivery().task_id)
        return args

    @task(retries=0)
    async def fail(*args: Any) -> None:
        raise ValueError("as always")

    @task(retries=3, backoff=0.01)
    async def flaky(*args: Any) -> None:
        raise ValueError("each time")

    @task(retries=0)
    async def later() -> None:
        if current_delivery().starts < 2:
            raise RetryLater(after=0.01)
        log.note("ran", current_delivery().task_id)

    @task(retries=0)
    async def deadly() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        await anyio.sleep(60)

    return [good, echo, kept, fail, flaky, later, deadly, *hostile.tasks(MARK)]


class RaisingFilter(logging.Filter):
    """A log filter that raises at every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Raise."""
        raise hostile.Odd


def raising_listener(event: object) -> None:
    """Raise at every event."""
    raise hostile.Odd


def quiet_listener(event: object) -> None:
    """Do nothing: to listen costs time by itself."""


# Tasks of the fuzzer, by what they do. Their places follow from `hostile.tasks`.
RAISED = range(len(hostile.RAISED))
LATER = range(len(RAISED), len(RAISED) + len(hostile.AFTER))
RETURNED = range(LATER.stop, LATER.stop + len(hostile.RETURNED))
LEFT = range(RETURNED.stop, RETURNED.stop + 7)  # contexts, filters, progress, hangs, swallows, generators, scopes
CONTEXTS, HANGS, SCOPES = LEFT[:3], LEFT[3:5], LEFT[5:]
