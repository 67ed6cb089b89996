"""A circuit that all workers share: its state is one hash in Redis, and it goes by the server's clock.

Cost. To enter is one command, and one more for a call that is postponed. To leave is one command if the call failed,
was a probe, or succeeded after failures. Else nothing changes and nothing is sent. With a failure rate successes count
too. They are sent in one command for many, in the round trip in which a call enters, at most a twentieth of the window
late, or by the last running call when it leaves.

A probe is leased: the hash has the time at which it began. `reset_timeout` later there is room for another, even if the
worker of the first one died.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from streamq.client import Command
from streamq.clock import SYSTEM
from streamq.middleware.circuit_settings import CircuitSettings
from streamq.middleware.circuit_state_machine import (
    BUCKETS,
    KEEP_UNUSED,
    UNNUMBERED,
    Admitted,
    CallOutcome,
    Postponed,
    State,
)
from streamq.middleware.circuit_view import MAX_INDEXED, CircuitView, RemoteFailureError, failure_fields, remembered
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.stored_numbers import stored_count, stored_time

_STATES: Final = frozenset(state.encode() for state in State)
_FIELDS: Final = ("state", "period", "failures", "since", "error_type", "error", "failed_at")


@dataclass(frozen=True, slots=True)
class SequenceNumber:
    """The number of a postponed call: it says when the call comes back, and in which order.

    `incarnation` is the life of the circuit that issued it: a circuit that begins anew issues the numbers again.
    """

    incarnation: str
    value: int


class FleetCircuit:
    """One circuit in Redis, and what this process knows of it."""

    def __init__(self, name: str, settings: CircuitSettings) -> None:
        self.name = name
        self._settings = settings
        self._keep_ms = _ms(2 * settings.reset_timeout + settings.window + KEEP_UNUSED)
        self.period = 0  # counts the changes of state, as this process knows them
        self._failed_at = ""
        self._view = CircuitView()
        self._elapsed: Callable[[], float] = SYSTEM.elapsed
        self._half_open_at = math.inf  # when an open circuit lets a probe through, on that clock
        self._used = -math.inf  # when a call last entered or left, on that clock
        self._running = 0
        self._unsent_successes = 0
        self._sent_at = -math.inf  # when successes were last sent, on that clock

    def __repr__(self) -> str:
        return f"<FleetCircuit {self.name} {self._view.state} failures={self._view.failures} running={self._running}>"

    @property
    def idle(self) -> bool:
        """Whether a new object would do the same, or Redis has forgotten the circuit."""
        if not self._running and self._elapsed() > self._used + self._keep_ms / 1000:
            return True
        quiet = self._view.state is State.CLOSED and not self._view.failures
        return quiet and not self._running and not self._unsent_successes

    @property
    def used(self) -> float:
        """When a call last entered or left, on the clock of the store."""
        return self._used

    def view(self) -> CircuitView:
        """Return the last known state. An open circuit is half-open once its time is over."""
        view = self._view
        if view.state is State.OPEN and self._elapsed() >= self._half_open_at:
            return CircuitView(State.HALF_OPEN, view.failures, view.last_failure, view.since)
        return view

    @property
    def retry_after(self) -> float:
        """In how many seconds an open circuit lets a call through."""
        return self._half_open_at - self._elapsed()

    async def enter(self, store: Store, number: SequenceNumber) -> Admitted | Postponed:
        """Ask the server to let a call through. Raises BrokerError if the server cannot be used."""
        self._elapsed = store.clock.elapsed
        self._used = self._elapsed()
        keys = [store.keys.circuit(self.name), store.keys.circuits]
        settings = self._settings
        commands = [step("circuit_enter")(
            keys, self.name, _ms(settings.reset_timeout), settings.half_open_max, settings.interval * 1000,
            self._keep_ms, number.incarnation, number.value,
        )]  # fmt: skip
        if self._unsent_successes and self._must_send(store):
            commands.insert(0, self._leave_command(store, self.period, CallOutcome.IGNORED))
        now, *fields, value, began, base, due = (await store.call(commands))[-1]
        self._update(store, now, fields)
        if due:
            return Postponed((float(due) - now) / 1000, value, number.incarnation)
        if base and value == UNNUMBERED:
            return Postponed((float(base) - now) / 1000, value)
        if base:
            value, incarnation, due = await store.one(step("circuit_postpone")(
                [store.keys.circuit(self.name)], settings.interval * 1000, self._keep_ms, value, now, base,
            ))  # fmt: skip
            return Postponed((float(due) - now) / 1000, value, incarnation.decode())
        self._running += 1
        return Admitted(self.period, float(began) if began else None)

    async def leave(
        self, store: Store, admitted: Admitted, outcome: CallOutcome, error: BaseException | None
    ) -> bool:  # fmt: skip
        """Send how a call ended, if that changes the circuit, and return whether it was sent.

        Raises BrokerError if the server cannot be used.
        """
        self._running -= 1
        self._used = self._elapsed()
        if admitted.period != self.period:
            return False
        if admitted.probe is None and not self._changes_circuit(store, outcome):
            return False
        command = self._leave_command(store, admitted.period, outcome, probe=admitted.probe, error=error)
        now, *fields = await store.one(command)
        self._update(store, now, fields, error)
        return True

    async def refresh(self, store: Store) -> None:
        """Read the state from the server. Raises BrokerError if the server cannot be used."""
        (seconds, micros), values = await store.call(
            [("TIME",), ("HMGET", store.keys.circuit(self.name), *_FIELDS)]
        )  # fmt: skip
        state, period, failures, since, *error = (value or b"" for value in values)
        fields = [state or b"closed", stored_count(period) or 0, stored_count(failures) or 0, since or b"0", *error]
        self._update(store, int(seconds) * 1000 + int(micros) // 1000, fields)

    # --- what is sent, and what the server answers ------------------------------------------------

    def _changes_circuit(self, store: Store, outcome: CallOutcome) -> bool:
        """Return whether the outcome of a call must be sent, given that it was no probe; count it if it can wait."""
        if outcome is CallOutcome.IGNORED:
            return False
        if outcome is CallOutcome.FAILED or self._view.failures:
            return True
        if not self._settings.failure_rate:
            return False
        if self._running and not self._must_send(store):
            self._unsent_successes += 1
            return False
        return True

    def _must_send(self, store: Store) -> bool:
        """Return whether successes were last sent half a part of the window ago."""
        return store.clock.elapsed() >= self._sent_at + self._settings.window / BUCKETS / 2

    def _leave_command(
        self, store: Store, period: int, outcome: CallOutcome, *, probe: float | None = None,
        error: BaseException | None = None,
    ) -> Command:  # fmt: skip
        settings = self._settings
        successes, self._unsent_successes = self._unsent_successes + (outcome is CallOutcome.SUCCEEDED), 0
        self._sent_at = store.clock.elapsed()
        failed = outcome is CallOutcome.FAILED
        error_type, text = ("", "") if error is None or not failed else failure_fields(error)
        return step("circuit_leave")(
            [store.keys.circuit(self.name), store.keys.circuits], self.name, settings.failure_threshold,
            settings.failure_rate, _ms(settings.window), settings.min_calls, self._keep_ms, MAX_INDEXED, period,
            "" if probe is None else f"{probe:.0f}", successes, int(failed), error_type, text,
            settings.interval * 1000,
        )  # fmt: skip

    def _update(self, store: Store, now: int, fields: list[Any], error: BaseException | None = None) -> None:
        """Take in the fields of the circuit at the server's time `now` (ms)."""
        state, period, failures, since, error_type, text, failed_at = fields
        if period != self.period:
            self._unsent_successes = 0
        last = self._view.last_failure
        stamp = str(stored_count(failed_at) or "")
        if stamp != self._failed_at:
            at = stored_time(stamp) or datetime.fromtimestamp(0, UTC)
            last = None
            if error is not None and stamp == str(now):
                last = remembered(error, at)
            elif stamp:
                last = RemoteFailureError(_text(error_type), _text(text), at)
        self.period, self._failed_at = period, stamp
        began = stored_count(since, most=now) or 0  # somebody else's value is read around, as the scripts do it
        known = State(state.decode()) if state in _STATES else State.CLOSED
        self._view = CircuitView(known, failures, last, stored_time(began) if began else None)
        left = began / 1000 + self._settings.reset_timeout - now / 1000
        self._elapsed = store.clock.elapsed
        self._half_open_at = self._elapsed() + left


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
