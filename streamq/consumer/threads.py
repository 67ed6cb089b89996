"""Handlers in threads: told to stop through an event, and counted until they really end.

A thread cannot be cancelled. When its run ends before it (cancelled by its sender, its lease
lost, its timeout or the worker's grace period over), the delivery is settled at once and what the
thread returns is ignored; the thread is told, and takes up one of the worker's threads until it
ends. So threads that never end cannot pile up: a worker has as many as it has slots.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

from streamq.errors import RetryLater
from streamq.handlers.context import Cancellation, cancellation, running
from streamq.wire.delivery import Delivery

log = logging.getLogger("streamq")

LATE = 5.0  # seconds after which a thread that goes on is named in the log
PATIENCE = 5.0  # seconds that a run waits for a thread
_LOOK = 0.05  # seconds between two looks at the threads that were told to stop
_ELSEWHERE = 1.0  # seconds until a run that found no thread is tried again, by whoever has room


class _Run:
    """One handler in a thread."""

    __slots__ = ("_begun", "_call", "_lock", "cancellation", "delivery", "ended", "named", "thread", "told")

    def __init__(self, call: Callable[[], Any], delivery: Delivery | None) -> None:
        self.delivery = delivery
        self.cancellation = Cancellation()
        self.ended = False
        self.named = False
        self.thread = 0
        self.told = 0.0  # when it was told to stop, by anyio's clock
        self._call = call
        self._lock = threading.Lock()
        self._begun = False

    def __call__(self) -> Any:
        """Be the thread. A run that ended before its thread began does nothing."""
        with self._lock:
            if self.cancellation.is_set():
                return None
            self._begun = True
        self.thread = threading.get_ident()
        cancellation.set(self.cancellation)
        try:
            return self._call()
        finally:
            self.ended = True

    def tell(self) -> bool:
        """Tell the thread to stop; return whether the handler is at work in it."""
        with self._lock:
            self.cancellation.tell()
            return self._begun and not self.ended


class Threads:
    """The threads of one worker, at most `limit`; those included that were told to stop and go on."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: set[_Run] = set()
        self._told: set[_Run] = set()
        self._first = anyio.Event()
        self._room = anyio.Event()
        # The limit is kept here: anyio's own counts an abandoned thread under trio and forgets it under asyncio.
        self._endless = anyio.CapacityLimiter(math.inf)

    def __repr__(self) -> str:
        return f"<Threads {len(self._busy)} of {self._limit} busy, {len(self._told)} told to stop>"

    async def room(self) -> None:
        """Wait until a thread is free; raises RetryLater if none is for 5 s. Takes none: `run` does.

        There are as many threads as runners, so this waits for nothing but threads that were told to stop.
        """
        if len(self._busy) < self._limit:
            return
        with anyio.move_on_after(PATIENCE):
            while len(self._busy) >= self._limit:
                await self._room.wait()
            return
        raise RetryLater(f"no thread is free: {len(self._told)} were told to stop and go on", after=_ELSEWHERE)

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call a function in a thread; if this is cancelled, the thread is told and left to itself."""
        run = _Run(call, running.get(None))
        self._busy.add(run)
        try:
            return await anyio.to_thread.run_sync(run, limiter=self._endless, abandon_on_cancel=True)
        finally:
            if run.tell():
                run.told = anyio.current_time()
                self._told.add(run)
                self._first.set()
            else:
                self._free(run)

    async def look_after_forever(self) -> None:
        """Take back the threads that ended after all, and name those that do not."""
        while True:
            if not self._told:
                self._first = anyio.Event()
                await self._first.wait()
            await anyio.sleep(_LOOK)
            now = anyio.current_time()
            for run in list(self._told):
                if run.ended:
                    self._told.discard(run)
                    self._free(run)
                elif not run.named and now - run.told >= LATE:
                    run.named = True
                    self._name(run)

    def _free(self, run: _Run) -> None:
        self._busy.discard(run)
        self._room.set()
        self._room = anyio.Event()

    def _name(self, run: _Run) -> None:
        frame = sys._current_frames().get(run.thread)  # noqa: SLF001 - the one way to another thread's stack
        stack = traceback.extract_stack(frame) if frame is not None else []
        ours = max((at for at, where in enumerate(stack) if where.filename == __file__), default=-1)
        what = "a handler" if run.delivery is None else f"task {run.delivery.task} {run.delivery.task_id}"
        log.warning(
            "%s was told to stop %g s ago and its thread goes on; %d of %d threads are held so. It is at\n%s",
            what, LATE, len(self._told), self._limit, "".join(traceback.format_list(stack[ours + 1 :])),
        )  # fmt: skip
