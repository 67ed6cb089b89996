"""One circuit: closed, open, half-open (M. Nygard, "Release It!", 2007). Pure: no I/O, no clock of its own.

    closed     calls go through; `failure_threshold` failures in a row open it
    open       no call goes through for `reset_timeout` seconds; the next one after that is a probe
    half-open  `half_open_max` probes at a time; one that succeeds closes it, one that fails opens it again

A call belongs to the period in which it began: one that began before the circuit opened and ends
while it is half-open says nothing about now, and changes nothing. A probe that is not heard of for
`reset_timeout` seconds makes room for another, so one that hangs cannot keep the circuit shut.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never


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
class Pass:
    """A call that may go through: the period it belongs to, and when it began if it is a probe."""

    period: int
    probe: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A call that may not: the seconds until it makes sense to ask again."""

    seconds: float


class Circuit:
    """The state of one circuit. Times are monotonic seconds that the caller gives."""

    __slots__ = (
        "_half_open_max", "_opened", "_period", "_probes", "_reset_timeout", "_state", "_threshold",
        "failures", "last_failure",
    )  # fmt: skip

    def __init__(self, failure_threshold: int, reset_timeout: float, half_open_max: int) -> None:
        self._threshold = failure_threshold
        self._reset_timeout = reset_timeout
        self._half_open_max = half_open_max
        self._state = State.CLOSED
        self._opened = 0.0
        self._period = 0
        self._probes: list[float] = []
        self.failures = 0  # in a row
        self.last_failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Circuit {self._state} failures={self.failures}/{self._threshold} probes={len(self._probes)}>"

    @property
    def pristine(self) -> bool:
        """Is it like one that was never used?"""
        return self._state is State.CLOSED and not self.failures

    def state(self, now: float) -> State:
        """Return what a call would meet now: an open circuit whose time is up is half-open."""
        if self._state is State.OPEN and now >= self._opened + self._reset_timeout:
            return State.HALF_OPEN
        return self._state

    def enter(self, now: float) -> Pass | Wait:
        """Ask for a call to go through; what is let through has to `leave`."""
        match self.state(now):
            case State.CLOSED:
                return Pass(self._period)
            case State.OPEN:
                return Wait(self._opened + self._reset_timeout - now)
            case State.HALF_OPEN:
                return self._probe(now)
            case state:
                assert_never(state)

    def _probe(self, now: float) -> Pass | Wait:
        if self._state is State.OPEN:
            self._change(State.HALF_OPEN)
        self._probes = [began for began in self._probes if now < began + self._reset_timeout]
        if len(self._probes) >= self._half_open_max:
            # As long again as the oldest probe has taken: who waits comes back O(log) times.
            return Wait(now - self._probes[0])
        self._probes.append(now)
        return Pass(self._period, probe=now)

    def leave(self, now: float, passed: Pass, ended: Ended, error: BaseException | None = None) -> None:
        """Say how a call ended that was let through."""
        if passed.period != self._period:
            return
        if passed.probe in self._probes:
            self._probes.remove(passed.probe)
        match ended:
            case Ended.WELL:
                self.failures = 0
                if self._state is State.HALF_OPEN:
                    self._change(State.CLOSED)
            case Ended.FAILED:
                self.failures += 1
                self.last_failure = error
                if self._state is State.HALF_OPEN or self.failures >= self._threshold:
                    self._change(State.OPEN)
                    self._opened = now
            case Ended.OTHERWISE:
                pass
            case _:
                assert_never(ended)

    def _change(self, state: State) -> None:
        self._state = state
        self._period += 1
        self._probes = []
