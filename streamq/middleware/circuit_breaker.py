"""`CircuitBreaker`: stop calling what is broken, and find out carefully whether it works again.

No library does it: purgatory and circuitbreaker let any number of probes through and let calls that began
before the circuit opened decide; pybreaker's async side is tornado's, aiobreaker's (of 2021) asyncio's.
The rules are in `circuit.py`, pure; `circuit_fleet.py` has them carried out in Redis.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, ParamSpec, Protocol, Self, TypeVar, overload

import anyio

from streamq.errors import (
    BrokerError,
    CircuitOpenError,
    ConfigurationError,
    Reject,
    RetryLater,
    check_integer,
    check_number,
)
from streamq.handlers.context import queue
from streamq.middleware.chain import CallNext, Context
from streamq.middleware.circuit_fleet import MOST_NAMED, CircuitView, FleetCircuit, Ticket, told_of
from streamq.middleware.circuit_states import NEW, PASSING, Circuit, Ended, Pass, State, Terms, Wait
from streamq.middleware.limit_key import Key, check_key, keyed
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.retry_policy import Uniform
from streamq.wire.delivery import Delivery

log = logging.getLogger("streamq")

P = ParamSpec("P")
R = TypeVar("R")

OWN: Final = ""  # the key of the circuit of the decorator and the context manager
_JITTER: Final = 0.1  # of the reset timeout: over so long come back those that have no number
_FEW: Final = 64  # circuits that are not worth a look for idle ones
_BLIND: Final = 1.0  # seconds for which a server that could not be used is not asked again
_LAST_WORD: Final = 2.0  # seconds for which a call that has ended may wait for the server to hear of it
_HEADER: Final = "circuit:"
_SEVERITY: Final = (State.CLOSED, State.HALF_OPEN, State.OPEN)
_NO_TICKET: Final = Ticket("", NEW)
_UNPLANNED: Final = Ticket("", PASSING)

# What this task has entered by `async with`, innermost last.
_entered: ContextVar[tuple[tuple[CircuitBreaker, _Call], ...]] = ContextVar("streamq_entered", default=())


class HasStore(Protocol):
    """A broker, as far as a breaker needs one."""

    @property
    def store(self) -> Store: ...


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that goes through. `store` is where its end is told; for a circuit of this process it may be None."""

    key: str
    circuit: Circuit | FleetCircuit
    passed: Pass
    store: Store | None


class CircuitBreaker(AbstractAsyncContextManager["CircuitBreaker"]):
    """Opens after `failure_threshold` failures in a row, for `reset_timeout` seconds.

    With a `failure_rate` (0 to 1) it opens, too, when so many of the calls of the last `window`
    seconds failed, of `min_calls` at least; a `failure_threshold` of None leaves the rate alone.
    Then `half_open_max` calls at a time probe: the first that succeeds closes it again, one that fails
    opens it for as long again. Failures are the exceptions in `counts`, but never RetryLater
    and Reject; other exceptions change nothing. Use it

    - as middleware: `chain.add(CircuitBreaker())`. Each task name has a circuit of its own, or each
      value of `key`: a function of the context, or a format string over the task's arguments. While it is open
      tasks go to the delayed set and spend no attempt. They come back in their order, `release_rate` per second;
    - as decorator of async functions, and as async context manager: all of these share one circuit.
      CircuitOpenError says that it is open; a handler that raises it on is postponed likewise,
      for the time that is left and up to a tenth of `reset_timeout` at random.

    With `scope="fleet"` the circuits lie in Redis and all workers share them, by `name` and key. Outside a
    worker's handler that needs a `broker`. While the server cannot be used calls go through, and
    what this process sees of them decides.

    `clock` returns monotonic seconds, for circuits of this process; `uniform` is where jitter comes from.
    Raises ConfigurationError for what cannot be used.
    """

    def __init__(
        self, failure_threshold: int | None = 5, reset_timeout: float = 60.0, *, failure_rate: float | None = None,
        window: float = 60.0, min_calls: int = 20, half_open_max: int = 1, release_rate: float = 10.0,
        counts: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
        key: Key = None, name: str = "",
        scope: Literal["process", "fleet"] = "process", broker: HasStore | None = None,
        clock: Callable[[], float] = time.monotonic, uniform: Uniform = random,
    ) -> None:  # fmt: skip
        if failure_threshold is None and failure_rate is None:
            raise ConfigurationError("failure_threshold=None and failure_rate=None: such a circuit never opens")
        if failure_rate is not None and not 0 < check_number("failure_rate", failure_rate, 0.0) <= 1:
            raise ConfigurationError(f"failure_rate={failure_rate!r} cannot be used: give a share above 0, at most 1")
        for what, value in (("reset_timeout", reset_timeout), ("release_rate", release_rate), ("window", window)):
            if not 0 < value < math.inf:
                raise ConfigurationError(f"{what}={value!r} cannot be used: give a number above 0")
        if scope not in ("process", "fleet"):
            raise ConfigurationError(f"scope={scope!r} is none: give 'process' or 'fleet'")
        if broker is not None and scope != "fleet":
            raise ConfigurationError("broker is for scope='fleet': a circuit of this process needs none")
        if failure_threshold is not None:
            check_integer("failure_threshold", failure_threshold, 1)
        self.name = name
        self.scope = scope
        self._terms = Terms(
            failure_threshold=sys.maxsize if failure_threshold is None else failure_threshold,
            reset_timeout=float(reset_timeout), half_open_max=check_integer("half_open_max", half_open_max, 1),
            interval=1 / release_rate, failure_rate=failure_rate or 0.0, window=float(window),
            min_calls=check_integer("min_calls", min_calls, 1),
        )  # fmt: skip
        self.failure_threshold = failure_threshold
        self.reset_timeout = self._terms.reset_timeout
        self.half_open_max = half_open_max
        self._counts = counts
        self._key = check_key(key)
        self._broker = broker
        self._clock = clock
        self._random = uniform
        self._token = secrets.token_urlsafe(4)
        self._circuits: dict[str, Circuit] = {}
        self._shared: dict[str, FleetCircuit] = {}
        self._look_at = _FEW
        self._blind_until = -math.inf
        self._reported: dict[str, Store] = {}  # what the monitor was told of, by its name there

    def __repr__(self) -> str:
        named = f" {self.name}" if self.name else ""
        fleet = " fleet" if self.scope == "fleet" else ""
        broken = [key or "(own)" for key, state in self.circuits.items() if state is not State.CLOSED]
        where = f" not closed: {', '.join(broken[:5])}" if broken else ""
        most = "" if self.failure_threshold is None else f"/{self.failure_threshold}"
        return f"<CircuitBreaker{named}{fleet} {self.state} failures={self.failures}{most}{where}>"

    # --- what it is -----------------------------------------------------------------------------

    @property
    def views(self) -> Mapping[str, CircuitView]:
        """Each circuit by its key, as this process last knew it; that of decorator and context manager is ''."""
        now = self._clock()
        found = {
            key: CircuitView(circuit.state(now), circuit.failures, circuit.last_failure)
            for key, circuit in self._circuits.items()
            if self.scope == "process" or now < self._blind_until
        }
        shared = {key: circuit.view() for key, circuit in self._shared.items()}
        return MappingProxyType({**shared, **found})

    @property
    def circuits(self) -> Mapping[str, State]:
        """The state of each circuit by its key; that of decorator and context manager has the key ''."""
        return MappingProxyType({key: view.state for key, view in self.views.items()})

    @property
    def state(self) -> State:
        """The state: of several circuits, that of the one which is worst off."""
        return max(self.circuits.values(), key=_SEVERITY.index, default=State.CLOSED)

    @property
    def failures(self) -> int:
        """How many calls failed in a row: of several circuits, where there are most."""
        return max((view.failures for view in self.views.values()), default=0)

    @property
    def last_failure(self) -> BaseException | None:
        """The last exception that counted, of the circuit with most failures in a row; None if there is none.

        A RemoteFailureError stands for an exception of another process.
        """
        worst = max(self.views.values(), key=lambda view: view.failures, default=None)
        return None if worst is None else worst.last_failure

    async def refresh(self, key: str = OWN) -> CircuitView:
        """Return how a circuit is now: that of the decorator and the context manager, or that of a key.

        One of the fleet is looked up, and `state`, `failures` and `last_failure` are as new. Raises
        BrokerError if the server cannot be used, ConfigurationError if there is none.
        """
        if self.scope == "fleet":
            circuit = self._fleet(key)
            await circuit.look(self._needed(self._near(None)))
        return self.views.get(key, CircuitView())

    # --- as middleware and as decorator -----------------------------------------------------------

    @overload
    def __call__(self, context: Context, call_next: CallNext, /) -> Coroutine[Any, Any, Any]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __call__(self, first: Any, call_next: CallNext | None = None, /) -> Any:
        """Run a task through the breaker (as middleware), or wrap an async function (as decorator)."""
        if call_next is not None:
            return self._run(first, call_next)
        if not inspect.iscoroutinefunction(first):
            raise ConfigurationError(f"{first!r} cannot be decorated: give an async function; @task goes above")
        return self._decorated(first)

    async def _run(self, context: Context, call_next: CallNext) -> Any:
        key = keyed(self._key, context)
        header = _HEADER + self._label(key)
        try:
            call = await self._enter(key, self._near(context), _ticket(context.delivery, header))
        except _Held as held:
            drawn = [held.ticket.born, held.ticket.number, context.delivery.starts + 1]
            raise self._refusal(key, held.after, headers={header: drawn}) from None
        return await self._through(call, call_next, context)

    def _decorated(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        @functools.wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return await self._through(await self._enter_own(), function, *args, **kwargs)

        return guarded

    async def _through(self, call: _Call, function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            await self._leave(call, error)
            raise
        await self._leave(call, None)
        return result

    # --- as context manager -----------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Raises CircuitOpenError if the circuit is open."""
        call = await self._enter_own()
        _entered.set((*_entered.get(), (self, call)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered = list(_entered.get())
        for at in range(len(entered) - 1, -1, -1):
            breaker, call = entered[at]
            if breaker is self:
                del entered[at]
                _entered.set(tuple(entered))
                await self._leave(call, error)
                return

    async def live(self, store: Store) -> None:
        """Have the monitor forget the circuits of this process when its worker ends (see Resident)."""
        try:
            await anyio.sleep_forever()
        finally:
            names = [name for name, where in self._reported.items() if where is store]
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_WORD):
                for name in names:
                    await self._report(name, store, ())

    # --- in and out -------------------------------------------------------------------------------

    async def _enter_own(self) -> _Call:
        try:
            return await self._enter(OWN, self._near(None), _UNPLANNED)
        except _Held as held:
            spread = self._random.uniform(0.0, _JITTER * self.reset_timeout)
            raise self._refusal(OWN, held.after + spread) from None

    def _refusal(self, key: str, after: float, headers: Mapping[str, Any] | None = None) -> CircuitOpenError:
        view = self.views.get(key, CircuitView())
        refusal = CircuitOpenError(self._label(key) or "breaker", after=after, last_failure=view.last_failure)
        refusal.headers = headers
        return refusal

    async def _enter(self, key: str, store: Store | None, ticket: Ticket) -> _Call:
        """Raises _Held if the circuit does not let the call through."""
        if self.scope == "fleet":
            shared, store = self._fleet(key), self._needed(store)
            if self._clock() >= self._blind_until:
                try:
                    answer, born = await shared.enter(store, ticket)
                except BrokerError as error:
                    self._blinded(error)
                else:
                    return _passed(key, shared, answer, born, store)
        circuit = self._local(key)
        period = circuit.period
        number = ticket.number if ticket.number < 0 or ticket.born == self._token else NEW
        answer = circuit.enter(self._clock(), number)
        call = _passed(key, circuit, answer, self._token, store)
        if circuit.period != period:
            await self._changed(key, circuit, store)
        return call

    async def _leave(self, call: _Call, error: BaseException | None) -> None:
        if error is None:
            ended = Ended.WELL
        elif isinstance(error, self._counts) and not isinstance(error, RetryLater | Reject):
            ended = Ended.FAILED
        else:
            ended = Ended.OTHERWISE
        circuit = call.circuit
        if isinstance(circuit, FleetCircuit):
            assert call.store is not None  # noqa: S101 - it was let through by it
            # A probe's place comes back and a success stays one even if the run is being cancelled.
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_WORD):
                try:
                    await circuit.leave(call.store, call.passed, ended, error)
                except BrokerError as unheard:
                    self._blinded(unheard)
                    local = self._local(call.key)
                    local.leave(self._clock(), Pass(local.period), ended, error)
            return
        period = circuit.period
        circuit.leave(self._clock(), call.passed, ended, error)
        if ended is Ended.FAILED:
            self._circuits.setdefault(call.key, circuit)  # it may have been forgotten meanwhile
        if circuit.period != period:
            await self._changed(call.key, circuit, call.store)

    def _blinded(self, error: BrokerError) -> None:
        """Go by what is seen here for a while."""
        now = self._clock()
        if now >= self._blind_until + _BLIND:
            log.warning("%r cannot ask the fleet, and goes by what it sees itself: %s", self, error)
        self._blind_until = now + _BLIND

    # --- the circuits -------------------------------------------------------------------------------

    def _label(self, key: str) -> str:
        return ":".join(filter(None, (self.name, key)))

    def _near(self, context: Context | None) -> Store | None:
        """Return the queue whose server is at hand, None if there is none."""
        if self._broker is not None:
            return self._broker.store
        return queue.get(None) if context is None else context.store

    def _needed(self, store: Store | None) -> Store:
        if store is None:
            raise ConfigurationError(
                f"{self!r} is used outside a worker: give CircuitBreaker(..., scope='fleet', broker=broker)"
            )
        return store

    def _fleet(self, key: str) -> FleetCircuit:
        circuit = self._shared.get(key)
        if circuit is None:
            label = self._label(key)
            if not label:
                raise ConfigurationError("a circuit of the fleet needs a name: give CircuitBreaker(..., name=...)")
            if len(self._shared) >= self._look_at:
                self._shared = {key: one for key, one in self._shared.items() if not one.forgettable}
                self._look_at = max(_FEW, 2 * len(self._shared))
            circuit = self._shared[key] = FleetCircuit(label, self._terms)
        return circuit

    def _local(self, key: str) -> Circuit:
        circuit = self._circuits.get(key)
        if circuit is None:
            if len(self._circuits) >= self._look_at:
                now = self._clock()
                self._circuits = {key: one for key, one in self._circuits.items() if not one.idle(now)}
                self._look_at = max(_FEW, 2 * len(self._circuits))
            circuit = self._circuits[key] = Circuit(self._terms)
        return circuit

    # --- what the monitor is told -------------------------------------------------------------------

    async def _changed(self, key: str, circuit: Circuit, store: Store | None) -> None:
        """Tell the monitor, if there is a queue whose monitor may look, that a circuit of this process changed."""
        if store is None or self.scope == "fleet":
            return
        worker = f"{socket.gethostname()}-{os.getpid()}"
        name = f"{self._label(key) or 'breaker'}@{worker}-{self._token}"
        state = circuit.state(self._clock())
        if state is State.CLOSED:
            await self._report(name, store, ())
            return
        kind, text = ("", "") if circuit.last_failure is None else told_of(circuit.last_failure)
        fields: dict[str, str | int] = {
            "name": self._label(key), "worker": worker, "state": state, "failures": circuit.failures,
            "error_type": kind, "error": text,
        }  # fmt: skip
        await self._report(name, store, tuple(part for pair in fields.items() for part in pair))

    async def _report(self, name: str, store: Store, fields: tuple[str | int, ...]) -> None:
        if fields:
            self._reported[name] = store
        else:
            self._reported.pop(name, None)
        keep = round((2 * self.reset_timeout + 60) * 1000)
        keys = [store.keys.circuit(name), store.keys.circuits]
        try:
            await store.one(step("circuit_report")(keys, name, keep, MOST_NAMED, *fields))
        except BrokerError as error:
            log.info("the monitor is not told of circuit %s: %s", name, error)


class _Held(Exception):  # noqa: N818 - a message from one part of the breaker to the other
    """A call is not let through."""

    def __init__(self, after: float, ticket: Ticket) -> None:
        self.after = after
        self.ticket = ticket
        super().__init__(after)


def _passed(key: str, circuit: Circuit | FleetCircuit, answer: Pass | Wait, born: str, store: Store | None) -> _Call:
    if isinstance(answer, Wait):
        raise _Held(answer.after, Ticket(born, answer.number))
    return _Call(key, circuit, answer, store)


def _ticket(delivery: Delivery, header: str) -> Ticket:
    """Return the ticket that a delivery carries for this run, one without a number if it has none."""
    if b"headers" in delivery.fields:
        match delivery.headers.get(header):
            case [str() as born, int() as number, int() as starts] if starts == delivery.starts and number >= 0:
                return Ticket(born, number)
    return _NO_TICKET
