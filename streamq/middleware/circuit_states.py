"""One circuit: closed, open, half-open (M. Nygard, "Release It!", 2007). Pure: no I/O, no clock of its own.

    closed     calls go through; `failure_threshold` failures in a row open it, and so does a share of
               `failure_rate` failures among the calls of the last `window` (of `min_calls` at least)
    open       no call goes through for `reset_timeout`; the next one after that is a probe
    half-open  `half_open_max` probes at a time; one that succeeds closes it, one that fails opens it again

A call belongs to the period in which it began: one that began before the circuit opened and ends
while it is half-open says nothing about now, and changes nothing. A probe that is not heard of for
`reset_timeout` makes room for another, so one that hangs cannot keep the circuit shut.

Those that are held back draw numbers. `head` is the first number that has not been let through. While the
circuit is open number n is told to come back n - head intervals after it makes sense to try; who finds it
open again keeps his number. So the k-th reset timeout's worth of numbers is held again at every (k + 1)-th
reopening, and of N that wait at most 1 + ln(N * interval / reset_timeout) times the release rate comes back.

When it closes, number n may go at `origin` + n intervals: the line, in order. Who comes before that waits for it, once.
Two gates (GCRA, as in `bucket.py`) are for those who come late, because no worker ran or their tier was
busy: they let `SLACK` through at once, and then one per interval. If those at the head are late, the line is moved, and
everybody keeps his place in it; who is late alone, behind the head, has the other gate.

Calls without a number ramp up: they go through at a rate that begins with one per interval and doubles every
tenth of `reset_timeout`; those beyond draw numbers. After `reset_timeout` none of them is held any more.
`circuit_enter.lua` and `circuit_leave.lua` do the same for a fleet.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

NEW: Final = -1  # a call that has no number yet, and comes back if it is held
PASSING: Final = -2  # a call that is given no number: nobody knows whether it comes back
SLACK: Final = 10  # intervals that those who come late with their numbers may catch up at once
EARLY: Final = 0.1  # of an interval that a number may come before its time: clocks count in whole milliseconds
STEPS: Final = 10  # of the ramp: the rate doubles so often in one reset timeout
BUCKETS: Final = 10  # of the window


class State(StrEnum):
    """What a circuit does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Ended(StrEnum):
    """How a call ended."""

    WELL = "well"
    FAILED = "failed"
    OTHERWISE = "otherwise"  # cancelled, or with an error that does not count


@dataclass(frozen=True, slots=True)
class Terms:
    """When a circuit opens, and how it is tried again. Times are in the unit of whoever tells the time.

    `interval` is between two that are released, 1/release_rate. A `failure_rate` of 0 is not looked at.
    """

    failure_threshold: int = 5
    reset_timeout: float = 60.0
    half_open_max: int = 1
    interval: float = 0.1
    failure_rate: float = 0.0
    window: float = 60.0
    min_calls: int = 20


@dataclass(frozen=True, slots=True)
class Pass:
    """A call that may go through: the period it belongs to, and when it began if it is a probe."""

    period: int
    probe: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A call that may not: the time until it makes sense to ask again, with this number (NEW: none)."""

    after: float
    number: int = NEW


class Circuit:
    """The state of one circuit. Times are monotonic, in the unit of the terms, and given by the caller."""

    __slots__ = (
        "_closed", "_gate", "_head", "_issued", "_last_due", "_late", "_origin", "_probes", "_ramp", "_since", "_state",
        "_terms", "_window", "failures", "last_failure", "period",
    )  # fmt: skip

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._state = State.CLOSED
        self._since = -math.inf  # the last change of state
        self._closed = -math.inf  # when it last closed
        self._probes: list[float] = []
        self._window: deque[list[int]] = deque()  # [which tenth of a window, calls, failures], the oldest first
        self._issued = 0  # numbers
        self._head = 0
        self._last_due = -math.inf  # of all numbers
        self._origin = 0.0  # of the line: when number 0 may go
        self._gate = -math.inf  # when the next of the line is due by what went through
        self._late = -math.inf  # the same for those behind the head
        self._ramp = -math.inf  # and for those without a number
        self.period = 0
        self.failures = 0  # in a row
        self.last_failure: BaseException | None = None

    def __repr__(self) -> str:
        waiting = max(0, self._issued - self._head)
        return f"<Circuit {self._state} failures={self.failures} probes={len(self._probes)} waiting={waiting}>"

    def idle(self, now: float) -> bool:
        """Is it like one that was never used?"""
        window = bool(self._window) and now < (self._window[-1][0] + BUCKETS) * self._terms.window / BUCKETS
        planned = now <= max(self._last_due, self._closed + self._terms.reset_timeout)
        return self._state is State.CLOSED and not self.failures and not window and not planned

    def state(self, now: float) -> State:
        """Return what a call would meet now: an open circuit whose time is up is half-open."""
        if self._state is State.OPEN and now >= self._since + self._terms.reset_timeout:
            return State.HALF_OPEN
        return self._state

    # --- in ----------------------------------------------------------------------------------

    def enter(self, now: float, number: int = PASSING) -> Pass | Wait:
        """Ask for a call to go through; what is let through has to `leave`.

        `number` is what a `Wait` before has given, NEW for who will come back with one.
        """
        if number >= self._issued:
            number = NEW
        match self.state(now):
            case State.CLOSED if number >= 0:
                return self._in_line(now, number)
            case State.CLOSED:
                return self._ramped(now, number)
            case State.OPEN:
                return self._hold(now, self._since + self._terms.reset_timeout, number)
            case State.HALF_OPEN:
                return self._try(now, number)
            case state:
                assert_never(state)

    def _in_line(self, now: float, number: int) -> Pass | Wait:
        """Let a number through a closed circuit if it is its time."""
        interval = self._terms.interval
        if number < self._head:
            opens = self._late - SLACK * interval
            if opens > now:
                return self._hold(now, opens, number)
            self._late = max(self._late, now) + interval
            return Pass(self.period)
        opens = self._gate - SLACK * interval
        if self._origin + number * interval <= now < opens:
            self._origin = opens - number * interval
        if self._origin + (number - EARLY) * interval > now:
            return self._held(now, self._origin + number * interval, number)
        self._gate = max(self._gate, now) + interval
        self._head = number + 1
        return Pass(self.period)

    def _ramped(self, now: float, number: int) -> Pass | Wait:
        """Let a call without a number through a closed circuit, unless it closed a short time ago."""
        terms = self._terms
        if now >= self._closed + terms.reset_timeout:
            return Pass(self.period)
        gap = terms.interval / 2 ** math.floor((now - self._closed) * STEPS / terms.reset_timeout)
        if self._ramp <= now + gap:
            self._ramp = max(self._ramp, now) + gap
            return Pass(self.period)
        if number == PASSING:
            return Wait(terms.interval)
        number = self._drawn(now)
        self._origin = max(self._origin, now + terms.interval - number * terms.interval)
        return self._held(now, self._origin + number * terms.interval, number)

    def _try(self, now: float, number: int) -> Pass | Wait:
        """Let a probe through if there is a place for it."""
        terms = self._terms
        if self._state is State.OPEN:
            self._change(now, State.HALF_OPEN)
        self._probes = [began for began in self._probes if now < began + terms.reset_timeout]
        if len(self._probes) >= terms.half_open_max:
            # As long again as the oldest probe has taken: who waits comes back O(log) times.
            return self._hold(now, now + max(now - self._probes[0], terms.interval), number)
        self._probes.append(now)
        if number == self._head:
            self._head += 1
        return Pass(self.period, now)

    def _hold(self, now: float, base: float, number: int) -> Wait:
        """Hold a call until it makes sense to try, and as long again as its place in the line asks for."""
        if number == PASSING:
            return Wait(base - now)
        if number < 0:
            number = self._drawn(now)
        return self._held(now, base + abs(number - self._head) * self._terms.interval, number)

    def _drawn(self, now: float) -> int:
        """Return a new number."""
        if now > self._last_due:  # nobody is on the way: what is missing will not come
            self._head = self._issued
        self._issued += 1
        return self._issued - 1

    def _held(self, now: float, due: float, number: int) -> Wait:
        self._last_due = max(self._last_due, due)
        return Wait(due - now, number)

    # --- out ---------------------------------------------------------------------------------

    def leave(self, now: float, passed: Pass, ended: Ended, error: BaseException | None = None) -> None:
        """Say how a call ended that was let through."""
        if passed.period != self.period:
            return
        if passed.probe in self._probes:
            self._probes.remove(passed.probe)
        match ended:
            case Ended.WELL:
                self._count(now, failed=0)
                self.failures = 0
                if self._state is State.HALF_OPEN:
                    self._change(now, State.CLOSED)
            case Ended.FAILED:
                calls, failed = self._count(now, failed=1)
                self.failures += 1
                self.last_failure = error
                terms = self._terms
                much = terms.failure_rate > 0 and calls >= terms.min_calls and failed >= terms.failure_rate * calls
                if self._state is State.HALF_OPEN or self.failures >= terms.failure_threshold or much:
                    self._change(now, State.OPEN)
            case Ended.OTHERWISE:
                pass
            case _:
                assert_never(ended)

    def _count(self, now: float, *, failed: int) -> tuple[int, int]:
        """Count a call, and return the calls and the failures of the window."""
        if not self._terms.failure_rate:
            return 0, 0
        window = self._window
        tenth = math.floor(now * BUCKETS / self._terms.window)
        if not window or window[-1][0] != tenth:
            window.append([tenth, 0, 0])
        window[-1][1] += 1
        window[-1][2] += failed
        while window[0][0] <= tenth - BUCKETS:
            window.popleft()
        return sum(row[1] for row in window), sum(row[2] for row in window)

    def _change(self, now: float, state: State) -> None:
        self._state = state
        self._since = now
        self._probes = []
        self._window.clear()
        self.period += 1
        if state is State.CLOSED:
            self._closed = now
            self._origin = now - self._head * self._terms.interval
