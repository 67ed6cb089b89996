"""Runs that go on although they were cancelled: their timeout has passed, they were cancelled, or the worker ends.

A cancel scope cannot end a run that shields itself, or swallows its cancellation. Such a run holds its slot, its lease
and the permits of its limits, and a worker that ends waits for it. So the log names it, with the place where it is.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import anyio

from streamq.consumer.handler import TIMED
from streamq.consumer.timeouts import Slot
from streamq.diagnostics.safe_log import SafeLog
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

LOG_AFTER = 5.0  # seconds after which a run that does not end is logged
_LOOK_EVERY = 1.0  # seconds between two looks
_OURS = str(Path(__file__).parents[1])


class Overdue:
    """Looks for runs that do not end. `running` are those under way."""

    def __init__(self, running: Mapping[Delivery, Slot]) -> None:
        self._running = running
        self._since: dict[Delivery, float] = {}  # when a run was first seen to be cancelled; inf once it was logged
        self.worker_ends = False  # it has cancelled all of them

    def __repr__(self) -> str:
        return f"<Overdue {len(self._since)}>"

    def releases(self, delivery: Delivery, slot: Slot) -> bool:
        """Has the worker cut off a run, so that its delivery is released now? The last run may take long to end.

        Nothing may run beside a suspect, so it is released when the worker leaves.
        """
        return self.worker_ends and not slot.spent and not delivery.isolated

    async def watch_forever(self) -> None:
        """Log each run that goes on for 5 s after it was cancelled, until cancelled."""
        while True:
            await anyio.sleep(_LOOK_EVERY)
            now, before, self._since = anyio.current_time(), self._since, {}
            for delivery, slot in self._running.items():
                if not (self.worker_ends or slot.scope.cancel_called or (slot.inner and _has_timed_out(slot))):
                    continue
                since = before.get(delivery, now)
                if now - since >= LOG_AFTER:
                    self._log(delivery, slot)
                    since = float("inf")
                self._since[delivery] = since

    def _log(self, delivery: Delivery, slot: Slot) -> None:
        why = "the worker ends" if self.worker_ends and not slot.spent else "its timeout has passed"
        if slot.reason:
            why = {"cancelled": "its sender has cancelled it", "lost": "its lease was lost"}.get(slot.reason, why)
        where = "".join(traceback.format_list(_stack(slot.coroutine())))
        log.warning(
            "task %s %s was cancelled %g s ago (%s) and goes on: its handler shields itself, or swallows the "
            "cancellation. It holds its slot and its lease until it ends. It is at\n%s",
            delivery.task, delivery.task_id, LOG_AFTER, why, where or "an unknown place", event="overdue", of=delivery,
        )  # fmt: skip


def _has_timed_out(slot: Slot) -> bool:
    """Has the timeout of a message, or one inside of middleware, passed? It has a scope of its own."""
    timers = (frame.f_locals.get("scope") for frame in _frames(slot.coroutine()) if frame.f_code is TIMED)
    return any(isinstance(timer, anyio.CancelScope) and timer.cancel_called for timer in timers)


def _stack(coroutine: Any) -> list[traceback.FrameSummary]:
    """Return where a coroutine waits, from the first frame below streamq's."""
    frames = _frames(coroutine)
    ours = [one.f_code.co_filename.startswith(_OURS) for one in frames]
    first = next((at for at, (before, own) in enumerate(pairwise(ours), 1) if before and not own), 0)
    return [traceback.FrameSummary(one.f_code.co_filename, one.f_lineno, one.f_code.co_name) for one in frames[first:]]


def _frames(coroutine: Any) -> list[FrameType]:
    frames: list[FrameType] = []
    while coroutine is not None and len(frames) < sys.getrecursionlimit():
        frames += filter(None, (getattr(coroutine, name, None) for name in ("cr_frame", "gi_frame", "ag_frame")))
        waits = (getattr(coroutine, name, None) for name in ("cr_await", "gi_yieldfrom", "ag_await"))
        coroutine = next(filter(None, waits), None)
    return frames
