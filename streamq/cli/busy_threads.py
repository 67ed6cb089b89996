"""The threads that keep a process alive, and which of them are busy. Knows no worker.

anyio keeps threads for the next call. At the end of the event loop it tells them to end, which takes them a moment:
they wait at their queue until then, and no function of anybody runs in them.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from typing import Final

_PATIENCE: Final = 0.1  # seconds that threads on their way out get
_WAITING: Final = frozenset({queue.__file__, threading.__file__})


def living_threads() -> list[threading.Thread]:
    """Return the threads for which Python waits at the exit of the process."""
    return [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon and t.is_alive()]


def busy_threads() -> list[threading.Thread]:
    """Return those of them that run something, after 0.1 s at most."""
    busy = [thread for thread in living_threads() if not _waits_for_a_call(thread)]
    deadline = time.monotonic() + _PATIENCE
    for thread in busy:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in busy if thread.is_alive() and not _waits_for_a_call(thread)]


def _waits_for_a_call(thread: threading.Thread) -> bool:
    """Is this a thread of anyio that waits at its queue, for a call or for the end?"""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the one way to another thread's stack
    at_queue = False
    while frame is not None and frame.f_code.co_filename in _WAITING:
        at_queue = at_queue or frame.f_code.co_filename == queue.__file__
        frame = frame.f_back
    return at_queue and frame is not None and frame.f_globals.get("__name__", "").startswith("anyio.")
