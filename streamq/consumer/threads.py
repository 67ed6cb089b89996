"""Handlers in threads: told to stop through an event, and counted until they really end.

A thread cannot be cancelled. A run may end before its thread does: it was cancelled, its lease was lost, its timeout or
the worker's grace period has passed. Then the delivery is settled at once, what the thread returns is ignored, and the
thread is told to stop. It counts as one of the worker's threads until it ends. So threads that never end cannot pile
up: a worker has as many threads as slots.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import EventLoopToken

from streamq.client.owner import end_child
from streamq.consumer.calls_from_thread import THREAD, closing_token
from streamq.consumer.shortage import Shortage
from streamq.consumer.thread_start import Boxed, Raised, returned, says_no_thread
from streamq.consumer.unrun_result import PLAIN
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import RetryLater
from streamq.errors.readable import readable
from streamq.handlers.context import Cancellation, cancellation_var, delivery_var
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

LOG_AFTER = 5.0  # seconds after which a thread that does not stop is logged
WAIT_FOR_THREAD = 5.0  # seconds that a run waits for a free thread
_LOOK_EVERY = 0.05  # seconds between two looks at the threads that were told to stop
_RETRY_AFTER = 1.0  # seconds until a run that found no thread is retried, by any worker


class _ThreadRun:
    """One handler in a thread."""

    __slots__ = (
        "_call",
        "_lock",
        "_token",
        "begun",
        "cancellation",
        "delivery",
        "ended",
        "logged",
        "stop_requested_at",
        "thread",
    )

    def __init__(self, call: Callable[[], Any], delivery: Delivery | None, token: EventLoopToken) -> None:
        self.delivery = delivery
        self.cancellation = Cancellation()
        self.ended = False
        self.logged = False
        self.thread = 0
        self.stop_requested_at = 0.0  # when it was told to stop, on anyio's clock
        self._call = call
        self._token = token
        self._lock = threading.Lock()
        self.begun = False

    def __call__(self) -> Any:
        """Run the handler in this thread; do nothing if the run ended before the thread began."""
        with self._lock:
            if self.cancellation.is_set():
                return None
            self.begun = True
        self.thread, process = threading.get_ident(), os.getpid()
        cancellation_var.set(self.cancellation)
        before = getattr(THREAD, "current_token", None)  # as `calls_closed`, which would be four calls more
        if before is not None:
            THREAD.current_token = self._token
        try:
            result = self._call()
            if type(result) not in PLAIN:
                result = Boxed(result)
        except BaseException as error:  # noqa: BLE001 - raised again by `returned`
            return Raised(readable(error))
        finally:
            if os.getpid() != process:  # the handler forked, and this is the child
                end_child()
            if before is not None:
                THREAD.current_token = before
            self.ended = True
        return result

    def tell_to_stop(self) -> bool:
        """Tell the thread to stop; return whether the handler still runs in it."""
        with self._lock:
            self.cancellation.request()
            return self.begun and not self.ended


class Threads:
    """The threads of one worker, at most `limit`, those included that were told to stop and go on."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: set[_ThreadRun] = set()
        self._stopping: set[_ThreadRun] = set()
        self._some_stopping = anyio.Event()
        self._freed = anyio.Event()
        self._shortage = Shortage("threads")
        self._token: EventLoopToken | None = None  # of the event loop that it belongs to
        # This class limits: anyio's limiter counts an abandoned thread under trio, and forgets it under asyncio.
        self._unlimited = anyio.CapacityLimiter(math.inf)

    def __repr__(self) -> str:
        return f"<Threads {len(self._busy)} of {self._limit} busy, {len(self._stopping)} told to stop>"

    @property
    def trouble(self) -> str | None:
        """What keeps handlers from their threads, None if nothing does."""
        return self._shortage.trouble

    async def wait_for_thread(self) -> None:
        """Wait until a thread is free. It is not reserved: `run` takes one.

        There are as many threads as runners, so this only waits for threads that were told to stop, and for a system
        that has no more of them. Raises RetryLater if none is free for 5 s.
        """
        if self._shortage.failures:
            await self._shortage.wait()
        if len(self._busy) < self._limit:
            return
        with anyio.move_on_after(WAIT_FOR_THREAD):
            while len(self._busy) >= self._limit:
                await self._freed.wait()
            return
        raise RetryLater(f"no thread is free: {len(self._stopping)} were told to stop and go on", after=_RETRY_AFTER)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a thread is free, as `wait_for_thread`."""
        await self.wait_for_thread()
        yield

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call a function in a thread; if this is cancelled, tell the thread to stop and do not wait for it.

        Raises NotStartedError if the system has no thread for it: then it has not begun, and `wait_for_thread` waits.
        """
        if self._token is None:
            self._token = closing_token()
        run = _ThreadRun(call, delivery_var.get(), self._token)
        self._busy.add(run)
        try:
            outcome = await anyio.to_thread.run_sync(run, limiter=self._unlimited, abandon_on_cancel=True)
        except RuntimeError as error:
            if run.begun or not says_no_thread(error):
                raise
            raise self._shortage.note(error) from error
        else:
            self._shortage.failures = 0
            return returned(outcome)
        finally:
            if run.tell_to_stop():
                run.stop_requested_at = anyio.current_time()
                self._stopping.add(run)
                self._some_stopping.set()
            else:
                self._free(run)

    async def watch_forever(self) -> None:
        """Free the threads that ended after they were told to stop, and log those that do not end."""
        while True:
            if not self._stopping:
                self._some_stopping = anyio.Event()
                await self._some_stopping.wait()
            await anyio.sleep(_LOOK_EVERY)
            now = anyio.current_time()
            for run in list(self._stopping):
                if run.ended:
                    self._stopping.discard(run)
                    self._free(run)
                elif not run.logged and now - run.stop_requested_at >= LOG_AFTER:
                    run.logged = True
                    self._log_late(run)

    def _free(self, run: _ThreadRun) -> None:
        self._busy.discard(run)
        self._freed.set()
        self._freed = anyio.Event()

    def _log_late(self, run: _ThreadRun) -> None:
        frame = sys._current_frames().get(run.thread)  # noqa: SLF001 - the one way to another thread's stack
        stack = traceback.extract_stack(frame) if frame is not None else []
        ours = max((at for at, where in enumerate(stack) if where.filename == __file__), default=-1)
        what = "a handler" if run.delivery is None else f"task {run.delivery.task} {run.delivery.task_id}"
        log.warning(
            "%s was told to stop %g s ago and its thread goes on; %d of %d threads do. It is at\n%s",
            what, LOG_AFTER, len(self._stopping), self._limit, "".join(traceback.format_list(stack[ours + 1 :])),
            event="overdue",
        )  # fmt: skip
