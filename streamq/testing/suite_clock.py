"""The clock of a test on `memory://`: of the server and of its broker, which the test moves forward.

Where the event loop has a real clock, the server follows this machine's wall clock, frozen or not, plus what the test
has moved it by: no delay is waited for, and the loop does not know. Where the loop has a virtual clock (`VirtualTime`,
the `autojump_clock` of pytest-trio), both clocks are the loop's, and to move them is to sleep, which costs nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
from anyio.lowlevel import current_token

from streamq.clock import SYSTEM, Clock, ServerClock
from streamq.errors import ConfigurationError

_STANDS_STILL = (
    "the clock of the event loop stands still, so every wait would last for ever: freezegun has frozen it. Write "
    "freeze_time(..., tick=True), under asyncio also freeze_time(..., real_asyncio=True), or use time-machine; see "
    "docs/testing-your-tasks.md (frozen time)"
)


class SuiteClock:
    """The clock of one server on `memory://` and its broker. Made in the event loop that uses it, if there is one.

    It begins at `start` (Unix seconds), None: at the time of this machine. `is_virtual`: that of the loop is virtual.
    """

    def __init__(self, start: float | None = None) -> None:
        virtual = _virtual_time_of_loop()
        self.is_virtual = virtual is not None
        self._elapsed: Callable[[], float] = virtual or SYSTEM.elapsed
        here = time.time()
        self._moved = 0.0
        self._ahead = 0.0 if start is None else start - here  # of the wall clock of this machine
        self._at_zero = here + self._ahead - self._elapsed()  # what it shows when the loop's clock shows 0
        self.clock = Clock(now=self.now, elapsed=self.elapsed)

    def __repr__(self) -> str:
        return f"<SuiteClock {'virtual' if self.is_virtual else f'moved by {self._moved:.3f} s'}>"

    def now(self) -> float:
        """Return the Unix time (s) of the server."""
        return self._at_zero + self._elapsed() if self.is_virtual else time.time() + self._ahead + self._moved

    def elapsed(self) -> float:
        """Return seconds since any moment, which never go backwards."""
        return self._elapsed() + self._moved

    async def move_to(self, moment: float) -> None:
        """Move on to a Unix time (s), if it is not over. No worker may run: it would take it for a pause."""
        if (seconds := moment - self.now()) <= 0:
            return
        if self.is_virtual:
            await anyio.sleep(seconds)
        else:
            self._moved += seconds


class KnownServerClock(ServerClock):
    """The time of a server whose clock is at hand, so that nothing need be compared, however it is moved or frozen."""

    __slots__ = ()

    def now(self) -> float:
        """Return the server's Unix time (s)."""
        return self.local()

    def now_to_send(self) -> float:
        """Return the server's Unix time (s)."""
        return self.local()


def refuse_frozen_loop() -> None:
    """Raise ConfigurationError if freezegun has stopped the clock of the event loop. Takes a millisecond if it is used.

    In virtual time the clock stands still as well, until all tasks wait.
    """
    freezegun: Any = sys.modules.get("freezegun.api")
    if not getattr(freezegun, "freeze_factories", None) or _virtual_time_of_loop() is not None:
        return
    before = anyio.current_time()
    threading.Event().wait(0.001)
    if anyio.current_time() == before:
        raise ConfigurationError(_STANDS_STILL)


def _virtual_time_of_loop() -> Callable[[], float] | None:
    """Return the clock of the event loop if that is virtual, None if it is real."""
    try:
        loop: Any = current_token().native_token
    except RuntimeError:  # a test that is not async
        return None
    if hasattr(loop, "call_soon_threadsafe"):  # of asyncio
        replaced: Callable[[], float] | None = vars(loop).get("time") if hasattr(loop, "__dict__") else None
        return replaced
    clock = sys.modules["trio"].lowlevel.current_clock()
    return None if type(clock).__name__ == "SystemClock" else clock.current_time
