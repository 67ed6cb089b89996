"""The circuits of one breaker: looked up by key, entered and left. Idle ones are forgotten.

`LocalCircuits` has the circuits of this process. `FleetCircuits` has those that all workers share in Redis, and goes
by circuits of this process while the server cannot be used. Neither knows what is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, ConfigurationError
from streamq.middleware.circuit_fleet import FleetCircuit, SequenceNumber
from streamq.middleware.circuit_log import CircuitLog
from streamq.middleware.circuit_report import CircuitReporter
from streamq.middleware.circuit_settings import CircuitSettings
from streamq.middleware.circuit_state_machine import NEW, Admitted, CallOutcome, Circuit, Postponed
from streamq.middleware.circuit_view import CircuitView, circuit_name, remembered
from streamq.middleware.per_key import PerKey
from streamq.queue.store import Store

log = SafeLog("streamq")

_RETRY_SERVER_AFTER: Final = 1.0  # seconds without a question to a server that could not be used
_MOST: Final = 10_000  # circuits of one breaker in a process: keys may come from messages
_LEAVE_WITHIN: Final = 2.0  # seconds that a call that has ended may wait for the server's answer


class RunningCall(Protocol):
    """A call that a circuit let through. It must leave."""

    async def leave(self, outcome: CallOutcome, error: BaseException | None) -> None:
        """Report how the call ended."""
        ...


class Circuits(Protocol):
    """The circuits of one breaker, by key."""

    async def enter(self, key: str, store: Store | None, number: SequenceNumber) -> RunningCall | Postponed:
        """Ask to let a call through. `store` is the queue at hand, None if there is none."""
        ...

    async def refresh(self, key: str, store: Store | None) -> None:
        """Ask the server for the state of a circuit, if it is there. Raises BrokerError if it cannot be used."""
        ...

    def views(self) -> Mapping[str, CircuitView]:
        """Return each circuit as this process knows it."""
        ...


class LocalCircuits:
    """Circuits of this process. `reporter` reports changes of state to the monitor; without one nothing is reported.

    `said` names those that open and close in the log.
    `incarnation` marks the sequence numbers of this object: those of another process mean nothing here.
    """

    def __init__(
        self, settings: CircuitSettings, clock: Callable[[], float], incarnation: str,
        reporter: CircuitReporter | None, said: CircuitLog,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._retry_after = settings.reset_timeout
        self._said = said
        self._incarnation = incarnation
        self._reporter = reporter
        self._circuits = PerKey(
            lambda _: Circuit(settings), lambda circuit: circuit.idle(clock()), most=_MOST,
            used_at=lambda circuit: circuit.used,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<LocalCircuits {len(self._circuits)}>"

    async def enter(self, key: str, store: Store | None, number: SequenceNumber) -> RunningCall | Postponed:
        """Ask to let a call through."""
        circuit = self._circuits.get(key)
        period = circuit.period
        known = number.value < 0 or number.incarnation == self._incarnation
        answer = circuit.enter(self._clock(), number.value if known else NEW)
        if isinstance(answer, Postponed):
            return replace(answer, incarnation=self._incarnation)
        call = _LocalCall(self, key, circuit, answer, store)
        if circuit.period != period:
            try:
                await self._report(call)
            except BaseException:  # cancelled: the call that was let through will not be made
                circuit.leave(self._clock(), answer, CallOutcome.IGNORED)
                raise
        return call

    async def leave(self, call: _LocalCall, outcome: CallOutcome, error: BaseException | None) -> None:
        """Count how a call ended."""
        circuit = call.circuit
        period = circuit.period
        circuit.leave(self._clock(), call.admitted, outcome, error and remembered(error))
        if outcome is CallOutcome.FAILED:
            self._circuits.restore(call.key, circuit)  # it may have been forgotten while the call ran
        if circuit.period != period:
            await self._report(call)

    def count(self, key: str, outcome: CallOutcome, error: BaseException | None) -> None:
        """Count how a call ended that another circuit let through."""
        circuit = self._circuits.get(key)
        period = circuit.period
        circuit.leave(self._clock(), Admitted(period), outcome, error and remembered(error))
        if circuit.period != period:
            self._said.note(key, _view(circuit, self._clock()), self._retry_after)

    async def refresh(self, key: str, store: Store | None) -> None:
        """Do nothing: what this process knows is all there is."""

    def views(self) -> Mapping[str, CircuitView]:
        """Return each circuit."""
        now = self._clock()
        return {key: _view(circuit, now) for key, circuit in self._circuits.items()}

    async def _report(self, call: _LocalCall) -> None:
        view = _view(call.circuit, self._clock())
        self._said.note(call.key, view, self._retry_after)
        if self._reporter is not None and call.store is not None:
            await self._reporter.report(call.key, view, call.store)


class FleetCircuits:
    """Circuits in Redis. While the server cannot be used, circuits of this process (`local`) decide."""

    def __init__(
        self, breaker: str, settings: CircuitSettings, clock: Callable[[], float], local: LocalCircuits,
        said: CircuitLog,
    ) -> None:  # fmt: skip
        self._breaker = breaker
        self._settings = settings
        self._clock = clock
        self._local = local
        self._said = said
        self._leaving = f"the report of a call to circuit breaker {breaker!r}"
        self._ask_server_at = -math.inf  # after a server that could not be used, on that clock
        self._circuits = PerKey(
            self._create, lambda circuit: circuit.idle, most=_MOST, used_at=lambda circuit: circuit.used
        )

    def __repr__(self) -> str:
        return f"<FleetCircuits {self._breaker} {len(self._circuits)}>"

    async def enter(self, key: str, store: Store | None, number: SequenceNumber) -> RunningCall | Postponed:
        """Ask the server to let a call through, or the circuits of this process if it cannot be used.

        Raises ConfigurationError if the circuit has no name, or if there is no store.
        """
        circuit, store = self._circuits.get(key), self._required(store)
        period = circuit.period
        if self._clock() >= self._ask_server_at:
            try:
                answer = await circuit.enter(store, number)
            except BrokerError as error:
                self._use_local(f"circuit breaker {self._breaker!r}", key, store, error)
            else:
                if store.refusals:
                    store.refusals.note_accepted(f"circuit breaker {self._breaker!r}", key)
                if circuit.period != period or self._said.open:
                    self._said.note(key, circuit.view(), circuit.retry_after)
                return answer if isinstance(answer, Postponed) else _FleetCall(self, key, circuit, answer, store)
        return await self._local.enter(key, store, number)

    async def leave(self, call: _FleetCall, outcome: CallOutcome, error: BaseException | None) -> None:
        """Tell the server how a call ended, or count it in this process if the server cannot be used.

        Shielded: a probe makes room and a success counts even if the run is being cancelled.
        """
        period = call.circuit.period
        with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVE_WITHIN):
            try:
                sent = await call.circuit.leave(call.store, call.admitted, outcome, error)
            except BrokerError as unreachable:
                self._use_local(self._leaving, call.key, call.store, unreachable)
                self._local.count(call.key, outcome, error)
            else:
                if sent and call.store.refusals:
                    call.store.refusals.note_accepted(self._leaving, call.key)
                if call.circuit.period != period:
                    self._said.note(call.key, call.circuit.view(), call.circuit.retry_after)

    async def refresh(self, key: str, store: Store | None) -> None:
        """Ask the server for the state of a circuit.

        Raises BrokerError if the server cannot be used, ConfigurationError as `enter` does.
        """
        await self._circuits.get(key).refresh(self._required(store))

    def views(self) -> Mapping[str, CircuitView]:
        """Return each circuit as the server last described it, or that of this process while it decides."""
        shared = {key: circuit.view() for key, circuit in self._circuits.items()}
        return {**shared, **self._local.views()} if self._clock() < self._ask_server_at else shared

    def _create(self, key: str) -> FleetCircuit:
        name = circuit_name(self._breaker, key)
        if not name:
            raise ConfigurationError("a circuit of the fleet needs a name: give CircuitBreaker(..., name=...)")
        return FleetCircuit(name, self._settings)

    def _required(self, store: Store | None) -> Store:
        if store is None:
            raise ConfigurationError(
                f"circuit breaker {self._breaker!r} is used outside a worker: "
                "give CircuitBreaker(..., scope='fleet', broker=broker)"
            )
        return store

    def _use_local(self, what: str, key: str, store: Store, error: BrokerError) -> None:
        """Let the circuits of this process decide for a while."""
        now = self._clock()
        refused = store.refusals.note_failed(what, error, part=key, then="calls of this process alone decide")
        if not refused and now >= self._ask_server_at + _RETRY_SERVER_AFTER:
            log.warning(
                "circuit breaker %r cannot use the server, so calls of this process alone decide: %s",
                self._breaker, error, event="circuit_alone",
            )  # fmt: skip
        self._ask_server_at = now + _RETRY_SERVER_AFTER


@dataclass(frozen=True, slots=True)
class _LocalCall:
    """A call that a circuit of this process let through. `store` is the queue whose monitor shows the circuit."""

    circuits: LocalCircuits
    key: str
    circuit: Circuit
    admitted: Admitted
    store: Store | None

    async def leave(self, outcome: CallOutcome, error: BaseException | None) -> None:
        await self.circuits.leave(self, outcome, error)


@dataclass(frozen=True, slots=True)
class _FleetCall:
    """A call that a circuit in Redis let through."""

    circuits: FleetCircuits
    key: str
    circuit: FleetCircuit
    admitted: Admitted
    store: Store

    async def leave(self, outcome: CallOutcome, error: BaseException | None) -> None:
        await self.circuits.leave(self, outcome, error)


def _view(circuit: Circuit, now: float) -> CircuitView:
    return CircuitView(circuit.state(now), circuit.failures, circuit.last_failure)
