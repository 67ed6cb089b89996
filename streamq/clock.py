"""The clock that is passed in wherever time is needed, so that tests and simulations can control it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Two readings in seconds: `now` since 1970, `elapsed` since any moment and never backwards.

    Pauses are anyio's, so `elapsed` must run at the pace of the event loop's own clock.
    """

    now: Callable[[], float] = time.time
    elapsed: Callable[[], float] = time.monotonic


SYSTEM = Clock()
