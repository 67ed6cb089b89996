"""The name of the async library in a thread, as sniffio keeps it: anyio looks there which backend to use.

A run that leaves another name there would have every call of anyio fail, those of the worker too.
"""

from __future__ import annotations

import sys
from typing import Any

from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of

log = SafeLog("streamq")


class _NoThread:
    """What stands where anyio does without sniffio."""

    name = None


class AsyncLibrary:
    """The async library of the thread that this is made in. It was changed if `thread.name` is not `name`."""

    __slots__ = ("name", "thread")

    def __init__(self) -> None:
        self.thread: Any = getattr(sys.modules.get("sniffio"), "thread_local", _NoThread)
        self.name = self.thread.name

    def __repr__(self) -> str:
        return f"<AsyncLibrary {self.name}>"

    def put_back(self, task: str) -> None:
        """Put the name back after a run of a task has changed it."""
        log.warning(
            "the task %s has changed sniffio.thread_local.name to %s, and it is put back: put it back in the handler "
            "before it awaits anything", task, repr_of(self.thread.name), event="left_behind",
        )  # fmt: skip
        self.thread.name = self.name
