"""A circuit that a fleet shares: its state is one hash in Redis, and the server's clock is its clock.

Cost: one command on the way in, and another for a call that is held back. On the way out one if the call
failed, if it was a probe, or if it succeeded after failures; else nothing changes and nothing is said. With a
failure rate successes count too: they are told in one command for many, in the round trip of a call's way in, a
twentieth of the window late at most, or by the last call that leaves.

A probe is leased: the hash has the time at which it began, and `reset_timeout` later its place is free
again, whatever became of the worker that held it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from streamq.client import Command
from streamq.clock import SYSTEM
from streamq.errors import StreamqError
from streamq.middleware.circuit_states import BUCKETS, PASSING, Ended, Pass, State, Terms, Wait
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.outcome import failure_of

MOST_NAMED: Final = 1000  # circuits that are not closed, in the index that the monitor reads
FORGOTTEN: Final = 3600.0  # seconds that an unused circuit is remembered beyond its timeouts
_LONGEST: Final = 500  # characters of an error's text
_FIELDS: Final = ("state", "period", "failures", "since", "error_type", "error", "failed_at")


class RemoteFailureError(StreamqError):
    """What another process told of a failure: its type, its text, and when it was. Never raised."""

    def __init__(self, error_type: str, error: str, at: datetime) -> None:
        self.error_type = error_type
        self.error = error
        self.at = at
        super().__init__(f"{error_type}: {error}")

    def __repr__(self) -> str:
        return f"<RemoteFailureError {self.error_type}: {self.error}>"


@dataclass(frozen=True, slots=True)
class CircuitView:
    """One circuit as it is seen from here.

    `failures` were in a row. `last_failure` is the exception itself if it was raised here, and a
    RemoteFailureError if it was not. `since` is when the state was last changed; None if it never was, and for
    circuits of this process.
    """

    state: State = State.CLOSED
    failures: int = 0
    last_failure: BaseException | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """The number that a held call was given, and by which life of the circuit."""

    born: str
    number: int


def told_of(error: BaseException) -> tuple[str, str]:
    """Return the type and the text of an exception, as they are kept in Redis."""
    failure = failure_of(error)
    return failure.error_type[:_LONGEST], failure.error[:_LONGEST]


class FleetCircuit:
    """What one process knows of a circuit in Redis, and how it asks and tells."""

    def __init__(self, name: str, terms: Terms) -> None:
        self.name = name
        self._terms = terms
        self._keep = _ms(2 * terms.reset_timeout + terms.window + FORGOTTEN)
        self._period = 0
        self._failed_at = ""
        self._view = CircuitView()
        self._elapsed: Callable[[], float] = SYSTEM.elapsed
        self._tried = math.inf  # when an open one may be tried, on that clock
        self._inside = 0
        self._well = 0  # calls that succeeded and of which nothing was said yet
        self._said = -math.inf  # when something was last said, on that clock

    def __repr__(self) -> str:
        return f"<FleetCircuit {self.name} {self._view.state} failures={self._view.failures} inside={self._inside}>"

    @property
    def forgettable(self) -> bool:
        """Would a new one do as well?"""
        quiet = self._view.state is State.CLOSED and not self._view.failures
        return quiet and not self._inside and not self._well

    def view(self) -> CircuitView:
        """Return what was last heard; an open one whose time is up since is half-open."""
        view = self._view
        if view.state is State.OPEN and self._elapsed() >= self._tried:
            return CircuitView(State.HALF_OPEN, view.failures, view.last_failure, view.since)
        return view

    async def enter(self, store: Store, ticket: Ticket) -> tuple[Pass | Wait, str]:
        """Ask for a call to go through; returns the answer, and which life of the circuit gave it.

        Raises BrokerError if the server cannot be used.
        """
        keys = [store.keys.circuit(self.name), store.keys.circuits]
        terms = self._terms
        commands = [step("circuit_enter")(
            keys, self.name, _ms(terms.reset_timeout), terms.half_open_max, terms.interval * 1000, self._keep,
            ticket.born, ticket.number,
        )]  # fmt: skip
        if self._well and self._late(store):
            commands.insert(0, self._told(store, self._period, Ended.OTHERWISE))
        now, *seen, number, began, base, due = (await store.call(commands))[-1]
        self._hear(store, now, seen)
        if due:
            return Wait((float(due) - now) / 1000, number), ticket.born
        if base and number == PASSING:
            return Wait((float(base) - now) / 1000), ""
        if base:
            number, born, due = await store.one(step("circuit_hold")(
                [store.keys.circuit(self.name)], terms.interval * 1000, self._keep, number, now, base,
            ))  # fmt: skip
            return Wait((float(due) - now) / 1000, number), born.decode()
        self._inside += 1
        return Pass(self._period, float(began) if began else None), ticket.born

    async def leave(self, store: Store, passed: Pass, ended: Ended, error: BaseException | None) -> None:
        """Say how a call ended, if that says anything. Raises BrokerError if the server cannot be used."""
        self._inside -= 1
        if passed.period != self._period:
            return
        if passed.probe is None and not self._matters(store, ended):
            return
        command = self._told(store, passed.period, ended, probe=passed.probe, error=error)
        now, *seen = await store.one(command)
        self._hear(store, now, seen, error)

    async def look(self, store: Store) -> None:
        """Ask how it is. Raises BrokerError if the server cannot be used."""
        (seconds, micros), values = await store.call(
            [("TIME",), ("HMGET", store.keys.circuit(self.name), *_FIELDS)]
        )  # fmt: skip
        state, period, failures, since, *error = (value or b"" for value in values)
        seen = [state or b"closed", int(period or 0), int(failures or 0), since or b"0", *error]
        self._hear(store, int(seconds) * 1000 + int(micros) // 1000, seen)

    # --- saying and hearing ---------------------------------------------------------------------

    def _matters(self, store: Store, ended: Ended) -> bool:
        """Does it change anything that a call of a closed circuit ended so?"""
        if ended is Ended.OTHERWISE:
            return False
        if ended is Ended.FAILED or self._view.failures:
            return True
        if not self._terms.failure_rate:
            return False
        if self._inside and not self._late(store):
            self._well += 1
            return False
        return True

    def _late(self, store: Store) -> bool:
        return store.clock.elapsed() >= self._said + self._terms.window / BUCKETS / 2

    def _told(
        self, store: Store, period: int, ended: Ended, *, probe: float | None = None, error: BaseException | None = None
    ) -> Command:
        terms = self._terms
        well, self._well = self._well + (ended is Ended.WELL), 0
        self._said = store.clock.elapsed()
        kind, text = ("", "") if error is None or ended is not Ended.FAILED else told_of(error)
        return step("circuit_leave")(
            [store.keys.circuit(self.name), store.keys.circuits], self.name, terms.failure_threshold,
            terms.failure_rate, _ms(terms.window), terms.min_calls, self._keep, MOST_NAMED, period,
            "" if probe is None else f"{probe:.0f}", well, int(ended is Ended.FAILED), kind, text,
            terms.interval * 1000,
        )  # fmt: skip

    def _hear(self, store: Store, now: int, seen: list[Any], error: BaseException | None = None) -> None:
        """Take in what the server said of the circuit at its time `now` (ms)."""
        state, period, failures, since, kind, text, failed_at = seen
        if period != self._period:
            self._well = 0
        last = self._view.last_failure
        stamp = failed_at.decode()
        if stamp != self._failed_at:
            ours = error is not None and stamp == str(now)
            at = datetime.fromtimestamp(int(stamp or 0) / 1000, UTC)
            last = error if ours else RemoteFailureError(_text(kind), _text(text), at) if stamp else None
        self._period, self._failed_at = period, stamp
        changed = datetime.fromtimestamp(int(since) / 1000, UTC) if int(since) else None
        self._view = CircuitView(State(state.decode()), failures, last, changed)
        left = int(since) / 1000 + self._terms.reset_timeout - now / 1000
        self._elapsed = store.clock.elapsed
        self._tried = self._elapsed() + left


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
