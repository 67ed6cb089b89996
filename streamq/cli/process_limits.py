"""What a worker process may take until it is replaced (`--max-rss`, `--max-tasks`), and how much it has taken.

The process measures itself, in a thread, so that a handler that blocks the event loop does not hide its memory. It only
reports: the supervisor starts a replacement, and has this one drain once that reads (see `recycling`).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from streamq.consumer.resident_memory import resident_bytes

JITTER = 0.1  # of --max-tasks: processes that share the work evenly reach their bounds at different moments
_LOOK_EVERY = 0.25  # seconds between two looks at the memory and the runs


class ProcessLimits:
    """The limits of this process. None stands for no limit."""

    def __init__(self, max_rss: int | None, max_tasks: int | None) -> None:
        self.max_rss = max_rss
        self._most_runs = None if max_tasks is None else max_tasks + int(max_tasks * JITTER * random.random())

    def __repr__(self) -> str:
        return f"<ProcessLimits max_rss={self.max_rss} runs={self._most_runs}>"

    def exceeded_at_start(self) -> str | None:
        """Say what is wrong if a process that has run nothing is too large already, and what to do."""
        if self.max_rss is None or (taken := resident_bytes()) <= self.max_rss:
            return None
        return (
            f"--max-rss {mebibytes(self.max_rss)} is too low: a process has {mebibytes(taken)} when it starts, before "
            "it runs a task; give it more than that, and what its handlers need"
        )

    def watch(self, runs: Callable[[], int], report: Callable[[int, int], None]) -> None:
        """Call `report` once, from a thread, with the memory (bytes) and the runs when they pass a limit."""
        if self.max_rss is not None or self._most_runs is not None:
            threading.Thread(target=self._look, args=(runs, report), name="streamq limits", daemon=True).start()

    def _look(self, runs: Callable[[], int], report: Callable[[int, int], None]) -> None:
        while not self._passed(taken := resident_bytes(), done := runs()):
            time.sleep(_LOOK_EVERY)
        report(taken, done)

    def _passed(self, taken: int, done: int) -> bool:
        too_large = self.max_rss is not None and taken > self.max_rss
        return too_large or (self._most_runs is not None and done >= self._most_runs)


def mebibytes(size: float) -> str:
    """Return a size as text: `312 MiB`."""
    return f"{size / (1 << 20):,.4g} MiB" if size < 1e9 else f"{size / (1 << 20):,.0f} MiB"
