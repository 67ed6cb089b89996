"""Timeouts of runs that share the cancel scope of their runner.

A cancel scope for each run would cost as much as all the rest of a short run, and a timer a good part of that. So a run
only notes, when it begins, when it has to end. A regular look at all runs sets a deadline for those that have to end
soon. The timeout is exact: a run ends at its time, however rare the looks are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextvars import Context, copy_context
from math import inf

import anyio

from streamq.clock import Clock, ServerClock
from streamq.consumer.left_behind import RunScope
from streamq.wire.delivery import Delivery

_LOOK_EVERY = 0.05  # seconds between two looks, at least; each sets the deadlines until the look after the next one


class Slot(RunScope):
    """The cancel scope of one runner, and why its run was ended."""

    __slots__ = ("_armed", "context", "cut_off", "due", "reason", "spent")

    def __init__(self, scope: anyio.CancelScope) -> None:
        super().__init__(scope)
        self.context: Context | None = None  # in which the run began, None between runs
        self.spent = False  # the scope is cancelled: the next run needs a new one
        self.reason = ""  # why the run was ended; empty if by its timeout
        self.cut_off: Delivery | None = None  # its run was cancelled from outside, and is not settled
        self.due = inf  # when the run has to end, on the clock of `Timeouts`
        self._armed = False

    def as_before(self) -> bool:
        """Is the context as it was when the last run began, was nothing left open, and no cancellation requested?"""
        try:
            return not (self.left_open or (self.asked_to_end() and not self.spent)) and (
                self.context is None or copy_context() == self.context
            )
        except Exception:  # noqa: BLE001 - the value of a variable cannot be compared: it is another one
            return False

    def arm(self, deadline: float) -> None:
        """Set the deadline of the run, on the event loop's clock, unless it has one."""
        if not self._armed:
            self._armed = True
            self.scope.deadline = deadline

    def over(self) -> None:
        """Note that the run ended; remove its deadline."""
        self.due = inf
        if self._armed:
            self._armed = False
            self.scope.deadline = inf  # before `cancel_called` is read: trio would look at the clock
            self.spent |= self.scope.cancel_called

    def end_run(self, reason: str) -> None:
        """End the run now."""
        if not self.reason:
            self.reason = reason
            self.spent = True
            self.scope.cancel()


class Timeouts:
    """Ends the runs of a worker whose timeout has passed. `slots` returns the slots of the runs under way.

    `shortest` is the shortest timeout (s) of any task. The next look is never later than that. So no run gets its
    deadline as it begins, unless its timeout is too short for two looks.
    """

    def __init__(self, clock: Clock | ServerClock, slots: Callable[[], Collection[Slot]], *, shortest: float) -> None:
        self._shortest = shortest
        self._horizon = inf  # a run that is due before this is not found in time by the next look
        self._elapsed = clock.elapsed
        self._slots = slots
        self._none_due: anyio.Event | None = None  # while no run has to end

    def __repr__(self) -> str:
        return f"<Timeouts {sum(slot.due < inf for slot in self._slots())} running>"

    def begin(self, slot: Slot, due: float) -> None:
        """Have the run that begins now end when it is `due`."""
        slot.due = due
        if due < self._horizon:
            if self._none_due is None:
                self._arm(slot, self._elapsed())
            else:
                self._none_due.set()

    async def watch_forever(self) -> None:
        """Set the deadlines of runs that have to end soon, until cancelled."""
        while True:
            now, due = self._elapsed(), min((slot.due for slot in self._slots()), default=inf)
            if due == inf:
                await self._wait_until_due()
                continue
            pause = max(_LOOK_EVERY, min(due - now, self._shortest) - _LOOK_EVERY)
            self._horizon = now + pause + _LOOK_EVERY
            for slot in self._slots():
                if slot.due < self._horizon:
                    self._arm(slot, now)
            await anyio.sleep(pause)

    async def _wait_until_due(self) -> None:
        self._horizon = inf
        self._none_due = anyio.Event()
        try:
            await self._none_due.wait()
        finally:
            self._none_due = None

    def _arm(self, slot: Slot, now: float) -> None:
        slot.arm(anyio.current_time() + (slot.due - now))
