"""Says in the log that a circuit has opened, and that it has closed again: each once, however many calls wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from streamq.diagnostics.safe_log import SafeLog
from streamq.middleware.circuit_state_machine import State
from streamq.middleware.circuit_view import CircuitView, RemoteFailureError, circuit_name, failure_fields, shown_name
from streamq.queue.refusals import REMIND_EVERY

log = SafeLog("streamq")

_MOST: Final = 20  # circuits of one breaker that are named while they are open: keys may come from messages


@dataclass(slots=True)
class _Open:
    """An open circuit: since when, and when that was said last (on the clock of the breaker)."""

    since: float
    said: float


class CircuitLog:
    """What the log says of the circuits of one breaker. `open` has those that it has named as open.

    A circuit that opens again after a probe was open all the time: it is named again after 10 minutes. Of more than 20
    circuits at a time the others are not named.
    """

    def __init__(self, breaker: str, failure_threshold: int | None, clock: Callable[[], float]) -> None:
        self._breaker = breaker
        self._failure_threshold = failure_threshold
        self._clock = clock
        self.open: dict[str, _Open] = {}

    def __repr__(self) -> str:
        return f"<CircuitLog {self._breaker or 'breaker'} open={len(self.open)}>"

    def note(self, key: str, view: CircuitView, after: float) -> None:
        """Note the state of a circuit, which may have changed. An open one is tried again `after` seconds."""
        if view.state is State.OPEN:
            self._opened(key, view, after)
        elif view.state is State.CLOSED and (known := self.open.pop(key, None)) is not None:
            lasted = round(self._clock() - known.since, 1)
            log.info("the circuit %r is closed again, after %g s", self._name(key), lasted, event="circuit_closed")

    def _opened(self, key: str, view: CircuitView, after: float) -> None:
        now, known = self._clock(), self.open.get(key)
        if known is None and not self._has_room(now):
            return
        if known is not None and now < known.said + REMIND_EVERY:
            return
        self.open[key] = _Open(now if known is None else known.since, now)
        still = "" if known is None else f" still, for {round(now - known.since, 1):g} s"
        log.warning(
            "the circuit %r is open%s: %s; its calls wait, and it is tried again in %g s",
            self._name(key), still, self._why(view), round(max(0.0, after), 1), event="circuit_open",
        )  # fmt: skip

    def _has_room(self, now: float) -> bool:
        """Return whether one more circuit may be named. Those that nobody has tried for long are forgotten."""
        if len(self.open) < _MOST:
            return True
        self.open = {key: one for key, one in self.open.items() if now < one.said + REMIND_EVERY}
        return len(self.open) < _MOST

    def _why(self, view: CircuitView) -> str:
        many = self._failure_threshold is not None and view.failures >= self._failure_threshold
        failed = f"{view.failures} calls in a row failed" if many else "too many calls failed"
        return failed if view.last_failure is None else f"{failed}, the last with {_text(view.last_failure)}"

    def _name(self, key: str) -> str:
        return shown_name(circuit_name(self._breaker, key))


def _text(error: BaseException) -> str:
    if isinstance(error, RemoteFailureError):
        return str(error)
    return ": ".join(filter(None, failure_fields(error)))
