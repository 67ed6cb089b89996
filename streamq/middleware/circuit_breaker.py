"""`CircuitBreaker`: stop calling what is broken, and find out carefully whether it works again.

No library does it: purgatory and circuitbreaker let any number of probes through and let calls that began
before the circuit opened decide; pybreaker's async side is tornado's, aiobreaker's (of 2021) asyncio's.
"""

from __future__ import annotations

import functools
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from streamq.errors import CircuitOpenError, ConfigurationError, Reject, RetryLater
from streamq.middleware.chain import CallNext, Context
from streamq.middleware.circuit import Circuit, Ended, Pass, State, Wait
from streamq.retry import Uniform

P = ParamSpec("P")
R = TypeVar("R")

OWN = ""  # the circuit of the decorator and the context manager
_JITTER = 0.1  # of the reset timeout: over so long those that waited come back
_FEW = 64  # circuits that are not worth a look for pristine ones
_SEVERITY = (State.CLOSED, State.HALF_OPEN, State.OPEN)

# What this task has entered by `async with`, innermost last.
_entered: ContextVar[tuple[tuple[CircuitBreaker, _Call], ...]] = ContextVar("streamq_entered", default=())


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that goes through."""

    key: str
    circuit: Circuit
    passed: Pass


class CircuitBreaker(AbstractAsyncContextManager["CircuitBreaker"]):
    """Opens after `failure_threshold` failures in a row, for `reset_timeout` seconds.

    Then `half_open_max` calls at a time probe: the first that succeeds closes it again, one that fails
    opens it for as long again. Failures are the exceptions in `counts`, but never RetryLater
    and Reject; other exceptions change nothing. Use it

    - as middleware: `chain.add(CircuitBreaker())`. Each task name has a circuit of its own, or each
      value of `key(context)`. While it is open, tasks go to the delayed set for the time that is
      left, plus up to a tenth of `reset_timeout` at random; they spend no attempt;
    - as decorator of async functions, and as async context manager: all of these share one circuit.
      CircuitOpenError says that it is open; a handler that raises it on is postponed likewise.

    `clock` returns monotonic seconds; `uniform` is where jitter comes from. Raises
    ConfigurationError for what cannot be used.
    """

    def __init__(
        self, failure_threshold: int = 5, reset_timeout: float = 60.0, *, half_open_max: int = 1,
        counts: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
        key: Callable[[Context], object] | None = None, name: str = "", clock: Callable[[], float] = time.monotonic,
        uniform: Uniform = random,
    ) -> None:  # fmt: skip
        for what, value in (("failure_threshold", failure_threshold), ("half_open_max", half_open_max)):
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"{what}={value!r} cannot be used: give an integer of at least 1")
        if not 0 < reset_timeout < float("inf"):
            raise ConfigurationError(f"reset_timeout={reset_timeout!r} cannot be used: give seconds above 0")
        self.name = name
        self.failure_threshold = failure_threshold
        self.reset_timeout = float(reset_timeout)
        self.half_open_max = half_open_max
        self._counts = counts
        self._key = key
        self._clock = clock
        self._random = uniform
        self._circuits: dict[str, Circuit] = {}
        self._look_at = _FEW

    def __repr__(self) -> str:
        named = f" {self.name}" if self.name else ""
        broken = [key or "(own)" for key, state in self.circuits.items() if state is not State.CLOSED]
        where = f" not closed: {', '.join(broken[:5])}" if broken else ""
        return f"<CircuitBreaker{named} {self.state} failures={self.failures}/{self.failure_threshold}{where}>"

    # --- what it is -----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state: of several circuits, that of the one which is worst off."""
        return max(self.circuits.values(), key=_SEVERITY.index, default=State.CLOSED)

    @property
    def failures(self) -> int:
        """How many calls failed in a row: of several circuits, where there are most."""
        return max((circuit.failures for circuit in self._circuits.values()), default=0)

    @property
    def last_failure(self) -> BaseException | None:
        """The last exception that counted, of the circuit with most failures in a row; None if there is none."""
        worst = max(self._circuits.values(), key=lambda circuit: circuit.failures, default=None)
        return None if worst is None else worst.last_failure

    @property
    def circuits(self) -> Mapping[str, State]:
        """The state of each circuit by its key; that of decorator and context manager has the key ''."""
        now = self._clock()
        return MappingProxyType({key: circuit.state(now) for key, circuit in self._circuits.items()})

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
        key = context.task.name if self._key is None else str(self._key(context))
        return await self._guarded(key, call_next, context)

    def _decorated(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        @functools.wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return await self._guarded(OWN, function, *args, **kwargs)

        return guarded

    async def _guarded(self, key: str, function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        call = self._enter(key)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            self._leave(call, error)
            raise
        self._leave(call, None)
        return result

    # --- as context manager -----------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Raises CircuitOpenError if the circuit is open."""
        call = self._enter(OWN)
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
                self._leave(call, error)
                return

    # --- the circuits -------------------------------------------------------------------------------

    def _enter(self, key: str) -> _Call:
        circuit = self._circuits.get(key)
        if circuit is None:
            circuit = self._new(key)
        match circuit.enter(self._clock()):
            case Pass() as passed:
                return _Call(key, circuit, passed)
            case Wait(seconds):
                spread = self._random.uniform(0.0, _JITTER * self.reset_timeout)
                raise CircuitOpenError(
                    key or self.name or "breaker", after=seconds + spread, last_failure=circuit.last_failure
                )

    def _leave(self, call: _Call, error: BaseException | None) -> None:
        if error is None:
            ended = Ended.WELL
        elif isinstance(error, self._counts) and not isinstance(error, RetryLater | Reject):
            ended = Ended.FAILED
        else:
            ended = Ended.OTHERWISE
        call.circuit.leave(self._clock(), call.passed, ended, error)
        if ended is Ended.FAILED:
            self._circuits.setdefault(call.key, call.circuit)  # it may have been forgotten meanwhile

    def _new(self, key: str) -> Circuit:
        if len(self._circuits) >= self._look_at:
            self._circuits = {key: circuit for key, circuit in self._circuits.items() if not circuit.pristine}
            self._look_at = max(_FEW, 2 * len(self._circuits))
        circuit = self._circuits[key] = Circuit(self.failure_threshold, self.reset_timeout, self.half_open_max)
        return circuit
