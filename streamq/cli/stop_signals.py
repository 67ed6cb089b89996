"""Hears SIGTERM, SIGINT and the supervisor in every state of a worker process: while it loads, starts, runs and ends.

The first request drains, the second releases at once, the third exits. The handlers are Python's own and not those of
an event loop: they are called even if a handler of a task blocks the loop. Then nobody in the loop can act on them, so
a thread ends the process when its time is over. Whoever ends it waits for no reader of its output: a write to a full
pipe may never end.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from streamq.diagnostics.safe_log import SafeLog

log = SafeLog("streamq.cli")

_EXIT_AT: Final = 3  # the third signal exits at once
_MARGIN: Final = 20.0  # seconds beyond the grace period until a process whose loop is blocked exits
_AT_ONCE: Final = 10.0  # seconds that the second request may take
_LAST_WORDS: Final = 1.0  # seconds that a reader of the output gets before the process exits


class StopSignals:
    """Passes requests to stop on to the worker once there is one; before that, they end the process."""

    def __init__(self) -> None:
        self._signals = 0
        self._grace = 0.0
        self._request: Callable[[int], None] | None = None
        self._obstacle: Callable[[], str] | None = None

    def __repr__(self) -> str:
        return f"<StopSignals {self._signals} heard>"

    def install(self) -> None:
        """Hear the signals from now on. For the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_default_signals)

    def pass_on(
        self, request: Callable[[int], None], *, grace: float, obstacle: Callable[[], str] | None = None
    ) -> None:
        """Call `request` with each level from now on, in the main thread or in that of the supervisor's channel.

        `grace` (s) is how long running tasks may take after the first. `obstacle` says what keeps the process when its
        time is over, as the end of a sentence.
        """
        self._obstacle = obstacle
        self._grace = grace
        self._request = request
        if self._signals:  # heard between two steps
            request(self._signals)

    def ask(self, level: int) -> None:
        """Ask the worker to stop: 1 drain, 2 now. Without a worker, end the process: nothing is held."""
        if self._request is None:
            exit_now(0)
        self._request(level)
        exit_after(self._grace + _MARGIN if level == 1 else _AT_ONCE, self._obstacle)

    def _on_signal(self, number: int, frame: Any) -> None:  # noqa: ARG002 - as `signal` calls it
        self._signals += 1
        if self._signals >= _EXIT_AT:
            exit_now(128 + number, b"got 3 stop signals: exiting at once\n")
        self.ask(self._signals)


def ignore() -> None:
    """Hear no signal any more: all tasks are released, and a signal must not change the exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _default_signals() -> None:
    """Let signals end the child of a fork. They must not reach its parent, whose wake-up pipe it has."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_now(code: int, words: bytes = b"") -> NoReturn:
    """Exit at once, whatever waits. `words` are written to stderr, if somebody reads it."""

    def say() -> None:
        if words:
            with contextlib.suppress(OSError):
                os.write(2, words)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # a signal handler may interrupt a write
                stream.flush()

    _try_for(_LAST_WORDS, say)
    os._exit(code)


def exit_after(seconds: float, obstacle: Callable[[], str] | None = None) -> None:
    """Exit with 1 after this time even if the event loop or the interpreter waits for what never ends."""

    def end() -> None:
        time.sleep(seconds)
        why = obstacle() if obstacle is not None else ""
        _try_for(
            _LAST_WORDS, lambda: log.error("not stopped within %g s%s: exiting", seconds, why, event="worker_exits")
        )
        exit_now(1)

    with contextlib.suppress(RuntimeError):  # no thread to be had: the next signal, or SIGKILL, ends it
        threading.Thread(target=end, name="streamq shutdown timeout", daemon=True).start()


def _try_for(seconds: float, step: Callable[[], None]) -> None:
    """Carry out a step that may never end, in a thread, and wait for it this long at most.

    A signal handler may call this in the middle of anything, so it takes no lock but its own.
    """
    done = _thread.allocate_lock()
    done.acquire()

    def carry_out() -> None:
        try:
            step()
        finally:
            done.release()

    with contextlib.suppress(RuntimeError):  # no thread to be had: nothing is said
        _thread.start_new_thread(carry_out, ())
        done.acquire(timeout=seconds)
