"""Names a handler that blocks the event loop, before its worker loses its leases for it.

A blocked loop cannot say so itself: a thread watches a tick that the loop ought to make, and
logs the stack of the loop's thread when it has not been made for a third of the visibility
timeout, which is when the next renewal is due.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Any

import anyio

from streamq.tasks.task import Task

log = logging.getLogger("streamq")

_TICKS = 12  # in one visibility timeout


class Watchdog:
    """Watches the event loop in which `watch_forever` runs. `visibility_timeout` is in seconds."""

    def __init__(self, name: str, tasks: Iterable[Task[Any, Any]], *, visibility_timeout: float) -> None:
        self._name = name
        self._visibility_timeout = visibility_timeout
        self._tasks = {code: task.name for task in tasks if (code := _code(task.function)) is not None}
        self._ticked = time.monotonic()
        self._over = threading.Event()
        self._thread_id = 0

    def __repr__(self) -> str:
        return f"<Watchdog of {self._name}: last tick {time.monotonic() - self._ticked:.1f} s ago>"

    async def watch_forever(self) -> None:
        """Tick, and have a thread look at it, until cancelled."""
        self._thread_id = threading.get_ident()
        thread = threading.Thread(target=self._look, name="streamq watchdog", daemon=True)
        self._ticked = time.monotonic()
        thread.start()
        try:
            while True:
                await anyio.sleep(self._visibility_timeout / _TICKS)
                self._ticked = time.monotonic()
        finally:
            self._over.set()

    def _look(self) -> None:
        told = 0.0  # the tick after which the loop was last said to be blocked
        while not self._over.wait(self._visibility_timeout / _TICKS):
            ticked = self._ticked
            silent = time.monotonic() - ticked
            if silent > self._visibility_timeout / 3 and ticked != told:
                told = ticked
                self._tell(silent)

    def _tell(self, silent: float) -> None:
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 - the documented way to see another thread
        if frame is None:
            return
        log.error(
            "%s: the event loop has been blocked for %.1f s by %s; its leases end %.1f s after the last renewal. "
            "A sync function runs in a thread instead.\n%s",
            self._name, silent, self._culprit(frame), self._visibility_timeout,
            "".join(traceback.format_stack(frame)),
        )  # fmt: skip

    def _culprit(self, frame: FrameType | None) -> str:
        while frame is not None:
            if frame.f_code in self._tasks:
                return f"task {self._tasks[frame.f_code]!r}"
            frame = frame.f_back
        return "something that is no task"


def _code(function: Any) -> CodeType | None:
    """Return the code of a function, through its decorators; None for other callables."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return getattr(function, "__code__", None)
