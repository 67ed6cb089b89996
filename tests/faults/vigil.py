"""Threads of a scenario's processes: does whoever started it live, and does it get its share of the machine?"""

from __future__ import annotations

import functools
import os
import stat
import threading
import time

from streamq.testing import Recorder

_PULSE = 0.05  # seconds between two looks at the clock
STARVED = 0.25  # seconds that a look may be late; beyond that the machine is at fault, and not the worker


@functools.cache  # once in a process
def leashed() -> None:
    """End this process when whoever started it has ended, killed or not: its standard input is closed then."""

    def follow() -> None:
        while os.read(0, 1):
            pass
        os._exit(3)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=follow, name="leash", daemon=True).start()


@functools.cache
def pulse(recorder: Recorder) -> None:
    """Write down when this process did not run though it wanted to: that excuses it as SIGSTOP does.

    A thread of its own, so a loop that is blocked by a handler, or by streamq, does not look like this.
    """

    def look() -> None:
        while True:
            before = time.monotonic()
            time.sleep(_PULSE)
            late = time.monotonic() - before - _PULSE
            if late > STARVED:
                recorder.record("frozen", starved=round(late, 3))
                recorder.record("thawed")
                recorder.record("starved", seconds=round(late, 3))

    threading.Thread(target=look, name="pulse", daemon=True).start()
