"""Timeouts of runs that share their runner's cancel scope: only a run that lasts is given a deadline.

A cancel scope of its own costs as much as all the rest of a short run, and a timer a good part of that.
So a run only notes, as it begins, when it has to end; a look at all of them, now and then, gives a deadline
to those whose time is about to come. That is exact: a run ends at its time, however rare the looks are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf

import anyio

from streamq.clock import Clock

_LOOK = 0.05  # seconds between two looks, at least; runs that end within one more get their deadline at each


class Slot:
    """One runner: its scope, and what its run is to be ended for."""

    __slots__ = ("_armed", "due", "reason", "scope", "spent")

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self.spent = False  # the scope is cancelled: the next run needs another
        self.reason = ""  # why somebody ended the run; empty if it was its time
        self.due = inf  # when the run has to end, on the clock of `Timeouts`
        self._armed = False

    def arm(self, deadline: float) -> None:
        """End the run at a time on the event loop's clock, unless it was said before."""
        if not self._armed:
            self._armed = True
            self.scope.deadline = deadline

    def over(self) -> None:
        """The run ended, or was ended."""
        self.due = inf
        if self._armed:
            self._armed = False
            self.scope.deadline = inf  # before it is asked: trio would look at the clock
            self.spent |= self.scope.cancel_called

    def give_up(self, reason: str) -> None:
        """End the run now."""
        if not self.reason:
            self.reason = reason
            self.spent = True
            self.scope.cancel()


class Timeouts:
    """When the runs of a worker have to end; `slots` returns those that are at work.

    `shortest` is the least timeout (s) of any task: the next look is never farther off than that, so that no run is
    given a deadline as it begins, whatever else runs, unless there is no time for two looks.
    """

    def __init__(self, clock: Clock, slots: Callable[[], Collection[Slot]], *, shortest: float) -> None:
        self._shortest = shortest
        self._horizon = inf  # what is due before it, the next look does not find in time
        self._elapsed = clock.elapsed
        self._slots = slots
        self._rest: anyio.Event | None = None  # while no run has to end

    def __repr__(self) -> str:
        return f"<Timeouts {sum(slot.due < inf for slot in self._slots())} running>"

    def begin(self, slot: Slot, due: float) -> None:
        """Have the run that begins now end when it is `due`."""
        slot.due = due
        if due < self._horizon:
            if self._rest is None:
                self._arm(slot, self._elapsed())
            else:
                self._rest.set()

    async def watch_forever(self) -> None:
        """Look after the runs that have to end."""
        while True:
            now, due = self._elapsed(), min((slot.due for slot in self._slots()), default=inf)
            if due == inf:
                await self._resting()
                continue
            pause = max(_LOOK, min(due - now, self._shortest) - _LOOK)
            self._horizon = now + pause + _LOOK
            for slot in self._slots():
                if slot.due < self._horizon:
                    self._arm(slot, now)
            await anyio.sleep(pause)

    async def _resting(self) -> None:
        self._horizon = inf
        self._rest = anyio.Event()
        try:
            await self._rest.wait()
        finally:
            self._rest = None

    def _arm(self, slot: Slot, now: float) -> None:
        slot.arm(anyio.current_time() + (slot.due - now))
