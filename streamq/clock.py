"""The clocks. `Clock` is passed in, so that tests and simulations control it. `ServerClock` is the server's time.

The one place that reads this machine's wall clock. Whether a task has expired, is due, or is the last of a burst is
decided by the server's clock: the offset between that and the monotonic clock of this machine is compared now and then.
So a wall clock that is off, or that steps, changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

COMPARE_EVERY = 60.0  # seconds after which who sends a time compares the clocks again


@dataclass(frozen=True, slots=True)
class Clock:
    """Two readings in seconds: `now` since 1970, `elapsed` since any moment and never backwards.

    Pauses are anyio's, so `elapsed` must run at the pace of the event loop's own clock. `now` is this machine's wall
    clock. It counts only until the server has told its time.
    """

    now: Callable[[], float] = time.time
    elapsed: Callable[[], float] = time.monotonic


SYSTEM = Clock()


class ServerClock:
    """The time of one server, as far as it is known. `elapsed` is the monotonic clock of this machine."""

    __slots__ = ("_compared_at", "_offset", "elapsed", "local", "outdated")

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self.elapsed = clock.elapsed
        self.local = clock.now  # the wall clock of this machine
        self.outdated = False  # `now_to_send` was asked, and the clocks were not compared for long
        self._offset: float | None = None  # server's Unix time minus `elapsed`
        self._compared_at = -inf

    def __repr__(self) -> str:
        if self._offset is None:
            return "<ServerClock: not compared yet>"
        return f"<ServerClock {self._offset + self.elapsed() - self.local():+.3f} s from this machine's>"

    def now(self) -> float:
        """Return the server's Unix time (s), as of the last comparison; this machine's if there was none."""
        return self.local() if self._offset is None else self.elapsed() + self._offset

    def now_to_send(self) -> float:
        """Return `now`, for a time that is sent. Note if the clocks should be compared first."""
        self.outdated = self.outdated or self.elapsed() >= self._compared_at + COMPARE_EVERY
        return self.now()

    def compare(self, server: float, asked: float, answered: float, *, precision: float = 1e-6) -> None:
        """Take the server's Unix time, which it read between two times of `elapsed`.

        `server` is cut off to `precision` (s). An offset that may be right is kept: a slow answer proves little.
        """
        least, most = server - answered, server + precision - asked
        if self._offset is None or not least <= self._offset <= most:
            self._offset = server - (asked + answered) / 2
        self._compared_at, self.outdated = answered, False

    def give_up(self) -> None:
        """Note that the server does not tell its time: do not ask again for a while."""
        self._compared_at, self.outdated = self.elapsed(), False
