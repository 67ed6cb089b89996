"""`CircuitBreaker`: stop calling what is broken, and find out carefully whether it works again.

It has three uses: middleware, decorator, context manager. `circuit_registry` keeps the circuits,
`circuit_state_machine` has their rules (pure), `circuit_fleet` carries them out in Redis, `circuit_log` says in the log
that one opens or closes, `circuit_report` writes what the monitor shows.

No library does all of this. purgatory and circuitbreaker let any number of probes through, and let calls that began
before the circuit opened decide. The async side of pybreaker is tornado's, that of aiobreaker (2021) is asyncio's.
"""

from __future__ import annotations

import functools
import inspect
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar, Token
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, ParamSpec, Protocol, Self, TypeVar, overload

from streamq.diagnostics.safe_text import repr_of
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import CircuitOpenError, ConfigurationError, Reject, RetryLater
from streamq.errors.readable import readable
from streamq.handlers.context import store_var
from streamq.middleware.chain import CallNext, Context
from streamq.middleware.circuit_fleet import SequenceNumber
from streamq.middleware.circuit_log import CircuitLog
from streamq.middleware.circuit_registry import Circuits, FleetCircuits, LocalCircuits, RunningCall
from streamq.middleware.circuit_report import CircuitReporter
from streamq.middleware.circuit_settings import CircuitSettings
from streamq.middleware.circuit_state_machine import NEW, UNNUMBERED, CallOutcome, Postponed, State
from streamq.middleware.circuit_view import CircuitView, circuit_name, shown_name
from streamq.middleware.limit_key import Key, check_key, resolve_key
from streamq.queue.store import Store
from streamq.tasks.exception_groups import leaves
from streamq.tasks.retry_policy import Uniform
from streamq.wire.delivery import Delivery
from streamq.wire.names import check_name

P = ParamSpec("P")
R = TypeVar("R")

OWN: Final = ""  # the key of the circuit that the decorator and the context manager use
_JITTER: Final = 0.1  # of the reset timeout: calls without a number are spread over so long
_HEADER: Final = "circuit:"
_SEVERITY: Final = (State.CLOSED, State.HALF_OPEN, State.OPEN)
_NO_NUMBER_YET: Final = SequenceNumber("", NEW)
_NEVER_NUMBERED: Final = SequenceNumber("", UNNUMBERED)

# The breakers that this task has entered by `async with`, innermost last.
_entered: ContextVar[tuple[Entered, ...]] = ContextVar("streamq_entered", default=())


class Entered:
    """A breaker that was entered by `async with`, and the token of the first one: it takes the variable away again."""

    __slots__ = ("breaker", "call", "token")

    def __init__(self, breaker: CircuitBreaker, call: RunningCall) -> None:
        self.breaker = breaker
        self.call = call
        self.token: Token[tuple[Entered, ...]] | None = None


class HasStore(Protocol):
    """The part of a broker that a breaker needs."""

    @property
    def store(self) -> Store: ...


class CircuitBreaker(AbstractAsyncContextManager["CircuitBreaker"]):
    """Open after `failure_threshold` failures in a row, for `reset_timeout` seconds.

    With a `failure_rate` (0 to 1) the circuit also opens when this share of the calls in the last `window` seconds
    failed, if there were `min_calls` or more. With `failure_threshold=None` the rate alone decides.
    Afterwards `half_open_max` calls at a time are probes. The first success closes the circuit; a failure opens it
    again for the same time. Failures are the exceptions in `counts`, except RetryLater and Reject. Other exceptions
    change nothing.

    - As middleware, `chain.add(CircuitBreaker())`: each task name has a circuit of its own, or each value of `key`.
      `key` is a function of the context, or a format string over the task's arguments. While the circuit is open,
      tasks go to the delayed set and spend no attempt. They come back in order, `release_rate` per second.
    - As decorator of async functions and as async context manager: all uses of one breaker share one circuit.
      An open circuit raises CircuitOpenError. A handler that does not catch it is postponed for the time that is
      left, plus a random part of up to a tenth of `reset_timeout`.

    With `scope="fleet"` the circuits are in Redis, and all workers share them by `name` and key. Outside a worker's
    handler that needs a `broker`. While the server cannot be used, calls go through, and circuits of this process
    decide.

    `clock` returns monotonic seconds, for circuits of this process. `uniform` is the source of jitter.
    Raises ConfigurationError if an option is out of range.
    """

    def __init__(
        self, failure_threshold: int | None = 5, reset_timeout: float = 60.0, *, failure_rate: float | None = None,
        window: float = 60.0, min_calls: int = 20, half_open_max: int = 1, release_rate: float = 10.0,
        counts: type[BaseException] | tuple[type[BaseException], ...] = (Exception,),
        key: Key = None, name: str = "",
        scope: Literal["process", "fleet"] = "process", broker: HasStore | None = None,
        clock: Callable[[], float] = time.monotonic, uniform: Uniform = random,
    ) -> None:  # fmt: skip
        settings = CircuitSettings.checked(
            failure_threshold=failure_threshold, reset_timeout=reset_timeout, failure_rate=failure_rate, window=window,
            min_calls=min_calls, half_open_max=half_open_max, release_rate=release_rate,
        )  # fmt: skip
        if scope not in ("process", "fleet"):
            raise ConfigurationError(f"scope={repr_of(scope)} does not exist: give 'process' or 'fleet'")
        if broker is not None and scope != "fleet":
            raise ConfigurationError("broker is for scope='fleet': a circuit of this process needs none")
        self.name = check_name("limit", name, what="name") if name else ""
        self.scope = scope
        self.failure_threshold = failure_threshold
        self.reset_timeout = settings.reset_timeout
        self.half_open_max = half_open_max
        self._counts = counts if isinstance(counts, tuple) else (counts,)
        self._key = check_key(key)
        self._broker = broker
        self._random = uniform
        instance = secrets.token_urlsafe(4)
        self._reporter = CircuitReporter(name, settings.reset_timeout, instance)
        fleet, said = scope == "fleet", CircuitLog(name, failure_threshold, clock)
        local = LocalCircuits(settings, clock, instance, None if fleet else self._reporter, said)
        self._circuits: Circuits = FleetCircuits(name, settings, clock, local, said) if fleet else local

    def __repr__(self) -> str:
        named = f" {self.name}" if self.name else ""
        fleet = " fleet" if self.scope == "fleet" else ""
        broken = [key or "(own)" for key, state in self.circuits.items() if state is not State.CLOSED]
        where = f" not closed: {', '.join(broken[:5])}" if broken else ""
        most = "" if self.failure_threshold is None else f"/{self.failure_threshold}"
        return f"<CircuitBreaker{named}{fleet} {self.state} failures={self.failures}{most}{where}>"

    # --- state ----------------------------------------------------------------------------------

    @property
    def views(self) -> Mapping[str, CircuitView]:
        """Each circuit by its key, as this process last knew it. The decorator and the context manager have key ''."""
        return MappingProxyType(dict(self._circuits.views()))

    @property
    def circuits(self) -> Mapping[str, State]:
        """The state of each circuit by its key. The decorator and the context manager have the key ''."""
        return MappingProxyType({key: view.state for key, view in self.views.items()})

    @property
    def state(self) -> State:
        """The state. Of several circuits it is the worst: open, then half-open, then closed."""
        return max(self.circuits.values(), key=_SEVERITY.index, default=State.CLOSED)

    @property
    def failures(self) -> int:
        """How many calls failed in a row. Of several circuits it is the highest number."""
        return max((view.failures for view in self.views.values()), default=0)

    @property
    def last_failure(self) -> BaseException | None:
        """The last failure of the circuit with most failures in a row, None if there is none.

        A RemoteFailureError stands for an exception of another process.
        """
        worst = max(self.views.values(), key=lambda view: view.failures, default=None)
        return None if worst is None else worst.last_failure

    async def refresh(self, key: str = OWN) -> CircuitView:
        """Return the present state of a circuit: that of a key, or that of the decorator and the context manager.

        A circuit of the fleet is read from the server, and `state`, `failures` and `last_failure` are updated.
        Raises BrokerError if the server cannot be used, ConfigurationError if there is no broker and no worker.
        """
        await self._circuits.refresh(key, self._store(None))
        return self.views.get(key, CircuitView())

    # --- as middleware and as decorator -----------------------------------------------------------

    @overload
    def __call__(self, context: Context, call_next: CallNext, /) -> Coroutine[Any, Any, Any]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __call__(self, first: Any, call_next: CallNext | None = None, /) -> Any:
        """Run a task through the breaker (as middleware), or wrap an async function (as decorator).

        Raises CircuitOpenError if the circuit does not let the call through, ConfigurationError if the function
        is not async.
        """
        if call_next is not None:
            return self._run_task(first, call_next)
        if not inspect.iscoroutinefunction(first):
            raise ConfigurationError(f"{repr_of(first)} cannot be decorated: give an async function; @task goes above")
        return self._decorate(first)

    async def _run_task(self, context: Context, call_next: CallNext) -> Any:
        key = resolve_key(self._key, context)
        header = _HEADER + circuit_name(self.name, key)
        answer = await self._circuits.enter(key, self._store(context), _number_of(context.delivery, header))
        if isinstance(answer, Postponed):
            number = [answer.incarnation, answer.number, context.delivery.starts + 1]
            raise self._open_error(key, answer.after, headers={header: number})
        return await self._run_call(answer, call_next, context)

    def _decorate(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        @functools.wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return await self._run_call(await self._enter_own(), function, *args, **kwargs)

        return guarded

    async def _run_call(
        self, call: RunningCall, function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            error = readable(error)  # for us alone
            await call.leave(self._outcome(error), error)
            raise
        await call.leave(CallOutcome.SUCCEEDED, None)
        return result

    # --- as context manager -----------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Enter the circuit. Raises CircuitOpenError if it does not let the call through."""
        call = await self._enter_own()
        before = _entered.get()
        entered = Entered(self, call)
        token = _entered.set((*before, entered))
        entered.token = None if before else token
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = _entered.get()
        for one in reversed(now):
            if one.breaker is self:
                _entered.set(tuple(other for other in now if other is not one))
                if not _entered.get() and one.token is not None:
                    with suppress(ValueError):  # it was entered in another context
                        _entered.reset(one.token)  # the context is as it was before, and does not have the variable
                error = None if error is None else readable(error)
                await one.call.leave(self._outcome(error), error)
                return

    # --- shared by all uses -----------------------------------------------------------------------

    async def live(self, store: Store) -> None:
        """Remove the circuits of this process from the monitor when its worker ends (see Resident)."""
        await self._reporter.remove_when_cancelled(store)

    async def _enter_own(self) -> RunningCall:
        answer = await self._circuits.enter(OWN, self._store(None), _NEVER_NUMBERED)
        if isinstance(answer, Postponed):
            jitter = self._random.uniform(0.0, _JITTER * self.reset_timeout)
            raise self._open_error(OWN, answer.after + jitter)
        return answer

    def _outcome(self, error: BaseException | None) -> CallOutcome:
        if error is None:
            return CallOutcome.SUCCEEDED
        for one in leaves(error, self._counts):  # what a task group raises is a group
            if isinstance(one, self._counts) and not isinstance(one, RetryLater | Reject):
                return CallOutcome.FAILED
        return CallOutcome.IGNORED

    def _open_error(self, key: str, after: float, headers: Mapping[str, Any] | None = None) -> CircuitOpenError:
        view = self.views.get(key, CircuitView())
        name = shown_name(circuit_name(self.name, key))
        error = CircuitOpenError(name, after=after, last_failure=view.last_failure)
        error.headers = headers
        return error

    def _store(self, context: Context | None) -> Store | None:
        """Return the queue whose server is at hand, None if there is none."""
        if self._broker is not None:
            return self._broker.store
        return store_var.get(None) if context is None else context.store


def _number_of(delivery: Delivery, header: str) -> SequenceNumber:
    """Return the sequence number that a delivery carries for this run."""
    if b"headers" in delivery.fields:
        match delivery.headers.get(header):
            case [str() as incarnation, int() as number, int() as starts] if starts == delivery.starts and number >= 0:
                return SequenceNumber(incarnation, number)
    return _NO_NUMBER_YET


name_remedies(CircuitBreaker, "breaker")
