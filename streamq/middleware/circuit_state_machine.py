"""One circuit: closed, open, half-open (M. Nygard, "Release It!", 2007). Pure: no I/O, no clock of its own.

    closed     calls go through; `failure_threshold` failures in a row open it, and so does a share of
               `failure_rate` failures among the calls of the last `window` (at least `min_calls`)
    open       no call goes through for `reset_timeout`; the next call after that is a probe
    half-open  `half_open_max` probes at a time; one that succeeds closes it, one that fails opens it again

Periods. A call belongs to the period in which it began. One that began before the circuit opened and ends while it is
half-open says nothing about the present, and changes nothing. A probe that does not end within `reset_timeout` makes
room for another, so a probe that hangs cannot keep the circuit open.

Sequence numbers. Postponed calls draw numbers. `head` is the first number that was not let through. While the circuit
is open, number n comes back n - head intervals after the next probe may start. A call that finds the circuit open again
keeps its number. So the k-th block of numbers, a block being one reset timeout long, is postponed again at every
(k + 1)-th reopening. With N waiting calls, at most 1 + ln(N * interval / reset_timeout) times the release rate comes
back.

After closing, number n may go at `origin` + n intervals, in order. A call that comes before that waits for it, once.
Two rate limits (GCRA, as in `token_bucket`) are for calls that come late, because no worker ran or their tier was busy:
each lets `SLACK` calls through at once, and then one per interval. If the calls at the head are late, `origin` moves
and all keep their order. Calls that are late behind the head have the other limit.

Ramp. Calls without a number go through at a rate that begins with one per interval and doubles every tenth of
`reset_timeout`. Calls beyond that rate draw numbers. After `reset_timeout` all go through.

`circuit_enter.lua`, `circuit_postpone.lua` and `circuit_leave.lua` do the same for a fleet. Their hash has `gate`,
`late` and `ramp` for `_next_in_order`, `_next_late` and `_next_unnumbered`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from streamq.middleware.circuit_settings import CircuitSettings

NEW: Final = -1  # a call that has no number yet; it draws one if it is postponed
UNNUMBERED: Final = -2  # a call that never draws a number: nobody knows whether it comes back
SLACK: Final = 10  # intervals that late calls with numbers may catch up at once
EARLY: Final = 0.1  # of an interval that a number may come before its time: clocks count in whole milliseconds
STEPS: Final = 10  # of the ramp: the rate doubles so often in one reset timeout
BUCKETS: Final = 10  # parts of the window
KEEP_UNUSED: Final = 3600.0  # seconds that an unused circuit is kept beyond its timeouts


class State(StrEnum):
    """What a circuit does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CallOutcome(StrEnum):
    """How a call ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    IGNORED = "ignored"  # cancelled, or with an error that does not count


@dataclass(frozen=True, slots=True)
class Admitted:
    """A call goes through. `period` is the one it belongs to; a probe has the time at which it began."""

    period: int
    probe: float | None = None


@dataclass(frozen=True, slots=True)
class Postponed:
    """A call does not go through: ask again `after` this time with this sequence number (NEW: none).

    `incarnation` says which life of which circuit issued the number. A circuit by itself leaves it empty.
    """

    after: float
    number: int = NEW
    incarnation: str = ""


class Circuit:
    """The state of one circuit. The caller gives all times: monotonic, in the unit of the settings."""

    __slots__ = (
        "_closed", "_head", "_issued", "_last_due", "_next_in_order", "_next_late", "_next_unnumbered", "_origin",
        "_probes", "_settings", "_since", "_state", "_window", "failures", "last_failure", "period", "used",
    )  # fmt: skip

    def __init__(self, settings: CircuitSettings) -> None:
        self._settings = settings
        self._state = State.CLOSED
        self._since = -math.inf  # the last change of state
        self._closed = -math.inf  # when it last closed
        self._probes: list[float] = []  # when the running ones began
        self._window: deque[list[int]] = deque()  # [which tenth of a window, calls, failures], the oldest first
        self._issued = 0  # how many numbers were drawn
        self._head = 0  # the first number that was not let through
        self._last_due = -math.inf  # of all numbers
        self._origin = 0.0  # when number 0 may go
        # Theoretical arrival times (GCRA): when the next call is due if the rate is kept.
        self._next_in_order = -math.inf  # for numbers from the head on
        self._next_late = -math.inf  # for numbers behind the head
        self._next_unnumbered = -math.inf  # for calls without a number
        self.period = 0
        self.used = -math.inf  # when a call last entered or left
        self.failures = 0  # in a row
        self.last_failure: BaseException | None = None

    def __repr__(self) -> str:
        waiting = max(0, self._issued - self._head)
        return f"<Circuit {self._state} failures={self.failures} probes={len(self._probes)} waiting={waiting}>"

    def idle(self, now: float) -> bool:
        """Return whether a new circuit would do the same, or this one is not used any more."""
        settings = self._settings
        if now > self.used + 2 * settings.reset_timeout + settings.window + KEEP_UNUSED:
            return True
        window = bool(self._window) and now < (self._window[-1][0] + BUCKETS) * settings.window / BUCKETS
        expected = now <= max(self._last_due, self._closed + settings.reset_timeout)
        return self._state is State.CLOSED and not self.failures and not window and not expected

    def state(self, now: float) -> State:
        """Return the state that a call meets now: an open circuit is half-open once its time is over."""
        if self._state is State.OPEN and now >= self._since + self._settings.reset_timeout:
            return State.HALF_OPEN
        return self._state

    # --- enter -------------------------------------------------------------------------------

    def enter(self, now: float, number: int = UNNUMBERED) -> Admitted | Postponed:
        """Ask to let a call through. An admitted call must `leave`.

        `number` is the one of a former `Postponed`, NEW for a call that will come back with one.
        """
        self.used = now
        if number >= self._issued:
            number = NEW
        match self.state(now):
            case State.CLOSED if number >= 0:
                return self._enter_numbered(now, number)
            case State.CLOSED:
                return self._enter_unnumbered(now, number)
            case State.OPEN:
                return self._postpone(now, self._since + self._settings.reset_timeout, number)
            case State.HALF_OPEN:
                return self._enter_as_probe(now, number)
            case state:
                assert_never(state)

    def _enter_numbered(self, now: float, number: int) -> Admitted | Postponed:
        """Let a number through a closed circuit at its time."""
        interval = self._settings.interval
        if number < self._head:
            earliest = self._next_late - SLACK * interval
            if earliest > now:
                return self._postpone(now, earliest, number)
            self._next_late = max(self._next_late, now) + interval
            return Admitted(self.period)
        earliest = self._next_in_order - SLACK * interval
        if self._origin + number * interval <= now < earliest:
            self._origin = earliest - number * interval
        if self._origin + (number - EARLY) * interval > now:
            return self._postpone_until(now, self._origin + number * interval, number)
        self._next_in_order = max(self._next_in_order, now) + interval
        self._head = number + 1
        return Admitted(self.period)

    def _enter_unnumbered(self, now: float, number: int) -> Admitted | Postponed:
        """Let a call without a number through a closed circuit, within the ramp if it closed a short time ago."""
        settings = self._settings
        if now >= self._closed + settings.reset_timeout:
            return Admitted(self.period)
        gap = settings.interval / 2 ** math.floor((now - self._closed) * STEPS / settings.reset_timeout)
        if self._next_unnumbered <= now + gap:
            self._next_unnumbered = max(self._next_unnumbered, now) + gap
            return Admitted(self.period)
        if number == UNNUMBERED:
            return Postponed(settings.interval)
        number = self._draw_number(now)
        self._origin = max(self._origin, now + settings.interval - number * settings.interval)
        return self._postpone_until(now, self._origin + number * settings.interval, number)

    def _enter_as_probe(self, now: float, number: int) -> Admitted | Postponed:
        """Let a probe through if there is room for it."""
        settings = self._settings
        if self._state is State.OPEN:
            self._change(now, State.HALF_OPEN)
        self._probes = [began for began in self._probes if now < began + settings.reset_timeout]
        if len(self._probes) >= settings.half_open_max:
            # As long again as the oldest probe has taken: a waiting call comes back O(log) times.
            return self._postpone(now, now + max(now - self._probes[0], settings.interval), number)
        self._probes.append(now)
        if number == self._head:
            self._head += 1
        return Admitted(self.period, now)

    def _postpone(self, now: float, base: float, number: int) -> Postponed:
        """Postpone a call until the time `base`, and by one interval more for each number before its own."""
        if number == UNNUMBERED:
            return Postponed(base - now)
        if number < 0:
            number = self._draw_number(now)
        return self._postpone_until(now, base + abs(number - self._head) * self._settings.interval, number)

    def _postpone_until(self, now: float, due: float, number: int) -> Postponed:
        self._last_due = max(self._last_due, due)
        return Postponed(due - now, number)

    def _draw_number(self, now: float) -> int:
        """Return a new number."""
        if now > self._last_due:  # all that was due has come: numbers that are missing will not come
            self._head = self._issued
        self._issued += 1
        return self._issued - 1

    # --- leave -------------------------------------------------------------------------------

    def leave(self, now: float, admitted: Admitted, outcome: CallOutcome, error: BaseException | None = None) -> None:
        """Count how an admitted call ended."""
        self.used = now
        if admitted.period != self.period:
            return
        if admitted.probe in self._probes:
            self._probes.remove(admitted.probe)
        match outcome:
            case CallOutcome.SUCCEEDED:
                self._count(now, failed=0)
                self.failures = 0
                if self._state is State.HALF_OPEN:
                    self._change(now, State.CLOSED)
            case CallOutcome.FAILED:
                calls, failed = self._count(now, failed=1)
                self.failures += 1
                self.last_failure = error
                rules = self._settings
                over_rate = rules.failure_rate > 0 and calls >= rules.min_calls and failed >= rules.failure_rate * calls
                if self._state is State.HALF_OPEN or self.failures >= rules.failure_threshold or over_rate:
                    self._change(now, State.OPEN)
            case CallOutcome.IGNORED:
                pass
            case _:
                assert_never(outcome)

    def _count(self, now: float, *, failed: int) -> tuple[int, int]:
        """Count a call; return the calls and the failures of the window."""
        if not self._settings.failure_rate:
            return 0, 0
        window = self._window
        tenth = math.floor(now * BUCKETS / self._settings.window)
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
            self._origin = now - self._head * self._settings.interval
