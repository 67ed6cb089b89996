"""The watchdog: logs which handler blocks the event loop, before the worker loses its leases.

A blocked loop cannot log that itself. A thread watches the time of the loop's last heartbeat. When there was none for a
third of the visibility timeout, which is when the next renewal is due, it logs the stack of the loop's thread.

A process that was stopped (SIGSTOP, a paused machine), or got no CPU, looks the same to the loop. But then the thread
was late as well, and the process has used next to no CPU. Code in C that computes and holds the GIL keeps the thread
waiting, too; the CPU that it uses tells it apart. Code in C that waits and holds the GIL cannot be told apart.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Any

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.tasks.task import Task

log = SafeLog("streamq")

_BEATS = 12  # heartbeats in one visibility timeout
_TASK = "Make the task a sync function: it runs in a thread, or with run_in='process' in a process."
_NO_TASK = "The stack shows where: what is called there (a listener, middleware, a log handler) must not take so long."
_FRAMES_SHOWN = 20  # of a stack without a handler
_CPU_SHARE = 0.2  # of the time that the thread was late: more CPU than that, and the process did not stand still


class Watchdog:
    """Watches the event loop in which `watch_forever` runs. `visibility_timeout` is in seconds."""

    def __init__(self, name: str, tasks: Iterable[Task[Any, Any]], *, visibility_timeout: float) -> None:
        self._name = name
        self._visibility_timeout = visibility_timeout
        self._tasks = {code: task.name for task in tasks if (code := _code(task.function)) is not None}
        self._last_beat = time.monotonic()
        self._stopped = threading.Event()
        self._thread_id = 0

    def __repr__(self) -> str:
        return f"<Watchdog of {self._name}: last beat {time.monotonic() - self._last_beat:.1f} s ago>"

    async def watch_forever(self) -> None:
        """Beat until cancelled, while a thread watches."""
        self._thread_id = threading.get_ident()
        self._last_beat = time.monotonic()
        watched = False
        try:
            while True:
                watched = watched or self._start_thread()
                await anyio.sleep(self._visibility_timeout / _BEATS)
                self._last_beat = time.monotonic()
        finally:
            self._stopped.set()

    def _start_thread(self) -> bool:
        """Start the thread that watches. Return False if the system has none left: the next beat tries again."""
        try:
            threading.Thread(target=self._watch_beats, name="streamq watchdog", daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _watch_beats(self) -> None:
        interval = self._visibility_timeout / _BEATS
        reported = last_beat = 0.0  # `reported`: the heartbeat after which a blocked loop was last logged
        stood_still = 0.0  # seconds since the last heartbeat in which nothing of this process ran
        woke, cpu = time.monotonic(), time.process_time()
        while not self._stopped.wait(interval):
            now, cpu_now = time.monotonic(), time.process_time()
            pause = standstill(now - woke - interval, cpu_now - cpu)
            woke, cpu = now, cpu_now
            if pause > self._visibility_timeout / 3:
                self._log_standstill(pause)
            beat = self._last_beat
            stood_still = pause + (stood_still if beat == last_beat else 0.0)
            last_beat = beat
            blocked_for = now - beat - stood_still
            if blocked_for > self._visibility_timeout / 3 and beat != reported:
                reported = beat
                self._log_blocked(blocked_for)

    def _log_standstill(self, seconds: float) -> None:
        log.warning(
            "%s: this process stood still for %.1f s: it was stopped (SIGSTOP, a paused machine) or got no CPU, and no "
            "task is known to be the cause; its leases end %.1f s after the last renewal",
            self._name, seconds, self._visibility_timeout, event="process_stood_still",
        )  # fmt: skip

    def _log_blocked(self, blocked_for: float) -> None:
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 - the documented way to see another thread
        if frame is None:
            return
        what, depth = self._blocking_task(frame)
        log.error(
            "%s: the event loop has been blocked for %.1f s by %s; its leases end %.1f s after the last renewal. %s",
            self._name, blocked_for, what or "code that is no task", self._visibility_timeout,
            _NO_TASK if what is None else _TASK, event="loop_blocked",
            stack="Stack of the event loop (most recent call last):\n" + "".join(traceback.format_stack(frame, depth)),
        )  # fmt: skip

    def _blocking_task(self, innermost: FrameType) -> tuple[str | None, int]:
        """Return which task the frames belong to, None if to none, and how many of them are worth to be shown.

        They are counted from the innermost on: those below the handler are ours, and those of the event loop and of the
        command line.
        """
        frame: FrameType | None = innermost
        depth = 1
        while frame is not None:
            if frame.f_code in self._tasks:
                return f"task {self._tasks[frame.f_code]!r}", depth
            frame, depth = frame.f_back, depth + 1
        return None, _FRAMES_SHOWN


def standstill(late: float, cpu: float) -> float:
    """Return for how long (s) the process stood still, if a thread woke so late and `cpu` seconds were used meanwhile.

    0 if something of it ran: the thread was kept waiting by that.
    """
    return late if late > 0 and cpu < late * _CPU_SHARE else 0.0


def _code(function: Any) -> CodeType | None:
    """Return the code of a function, through its decorators; None for other callables."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return getattr(function, "__code__", None)
