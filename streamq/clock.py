"""Where the time comes from. Passed in, so that tests and simulations can have it pass as they like."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Two readings, both in seconds: `now` since 1970, `elapsed` since some moment and never backwards.

    Pauses are anyio's, so `elapsed` must run as the event loop's own clock does.
    """

    now: Callable[[], float] = time.time
    elapsed: Callable[[], float] = time.monotonic


SYSTEM = Clock()
