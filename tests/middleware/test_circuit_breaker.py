"""The circuit breaker of one process: its three uses, and with a real worker."""

from __future__ import annotations

import contextlib
import gc
import inspect
import weakref

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, task
from streamq.errors import CircuitOpenError, ConfigurationError
from streamq.middleware import CircuitBreaker, Context, MiddlewareChain, RemoteFailureError
from streamq.middleware.circuit_breaker import OWN
from streamq.middleware.circuit_fleet import SequenceNumber
from streamq.middleware.circuit_log import CircuitLog
from streamq.middleware.circuit_registry import LocalCircuits
from streamq.middleware.circuit_report import CircuitReporter
from streamq.middleware.circuit_settings import CircuitSettings
from streamq.middleware.circuit_state_machine import UNNUMBERED, CallOutcome, State
from streamq.middleware.circuit_view import MAX_INDEXED, CircuitView
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import dumps
from streamq.wire.tiers import DEFAULT_TIERS
from tests.at_work import assert_nothing_left, burst
from tests.docs.pages import ROOT


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class NoJitter:
    """No jitter: always the lower bound."""

    def uniform(self, a, b):
        return a


def breaker(clock=None, threshold=2, **options):
    return CircuitBreaker(threshold, 10.0, clock=clock or Clock(), uniform=NoJitter(), **options)


class TestDecorator:
    async def test_stops_calling(self):
        """After the threshold calls are refused with the time that is left, and then tried again."""
        clock = Clock()
        guard = breaker(clock)
        calls = []

        @guard
        async def call(broken: bool) -> str:
            """Call it."""
            calls.append(broken)
            if broken:
                raise ConnectionError("down")
            return "fine"

        assert call.__doc__ == "Call it."
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await call(True)
        assert (guard.state, guard.failures, str(guard.last_failure)) == ("open", 2, "down")
        clock.now += 4
        with pytest.raises(CircuitOpenError, match="open for another 6 s; it failed with ConnectionError") as info:
            await call(False)
        assert info.value.after == pytest.approx(6.0)
        assert len(calls) == 2
        clock.now += 6
        assert guard.state == "half_open"
        assert await call(False) == "fine"
        assert (guard.state, guard.failures) == ("closed", 0)

    async def test_what_counts(self):
        """Only exceptions in `counts` are failures; RetryLater and Reject never are."""
        guard = breaker(counts=ConnectionError, threshold=1)

        @guard
        async def call(error):
            raise error

        for error in (ValueError(), RetryLater(after=1), Reject()):
            with pytest.raises(type(error)):
                await call(error)
        assert guard.state == "closed"
        guard = breaker(threshold=1)
        with pytest.raises(RetryLater):
            await guard(call.__wrapped__)(RetryLater(after=1))
        assert guard.state == "closed"

    def test_only_async_functions_can_be_decorated(self):
        with pytest.raises(ConfigurationError, match="give an async function"):
            breaker()(print)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"failure_threshold": 0}, {"reset_timeout": 0}, {"half_open_max": True}, {"failure_rate": 0},
            {"failure_rate": 1.5}, {"window": 0}, {"min_calls": 0}, {"release_rate": 0}, {"key": "{"},
            {"failure_threshold": None},
        ],
    )  # fmt: skip
    def test_wrong_options_are_refused(self, wrong):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            CircuitBreaker(**wrong)


class TestContextManager:
    async def test_counts_what_is_inside(self):
        """Failures inside the block open the circuit."""
        guard = breaker(name="db")
        for _ in range(2):
            with pytest.raises(OSError):  # noqa: PT011 - any
                async with guard:
                    raise OSError
        with pytest.raises(CircuitOpenError, match="'db'"):
            async with guard:
                pass
        assert repr(guard) == "<CircuitBreaker db open failures=2/2 not closed: (own)>"

    async def test_side_by_side_and_nested(self):
        """Each task leaves what it entered, in any order; breakers may be nested."""
        clock = Clock()
        outer, inner = breaker(clock), breaker(clock, threshold=1)
        go, entered = anyio.Event(), anyio.Event()

        async def early():
            with contextlib.suppress(OSError):
                async with inner:
                    entered.set()
                    await go.wait()
                    raise OSError

        async with anyio.create_task_group() as group:
            group.start_soon(early)
            await entered.wait()
            async with outer:
                with pytest.raises(OSError):  # noqa: PT011 - any
                    async with inner:
                        raise OSError
                clock.now += 10
                async with inner:  # a probe
                    go.set()  # the call that began before fails now
                    await anyio.wait_all_tasks_blocked()
                assert inner.state == "closed"
        assert (outer.state, outer.failures, inner.failures) == ("closed", 0, 0)

    async def test_a_cancelled_probe_makes_room(self):
        """Cancellation is no failure, and another probe may start."""
        clock = Clock()
        guard = breaker(clock, threshold=1)
        with pytest.raises(OSError):  # noqa: PT011 - any
            async with guard:
                raise OSError
        clock.now += 10
        with anyio.CancelScope() as scope:
            async with guard:
                scope.cancel()
                await anyio.sleep(1)
        async with guard:
            pass
        assert guard.state == "closed"

    async def test_a_probe_that_is_cancelled_while_it_is_reported_makes_room(self):
        """The circuit is half-open now, the monitor is told, and the probe is cancelled before it begins."""
        clock = Clock()
        guard = breaker(clock, threshold=1)
        with pytest.raises(OSError):  # noqa: PT011 - any
            async with guard:
                raise OSError
        clock.now += 10

        class Deaf:
            keys = Keys.of("queue", "workers", DEFAULT_TIERS)

            async def one(self, command):
                scope.cancel()
                await anyio.sleep_forever()

        with anyio.CancelScope() as scope:
            await guard._circuits.enter(OWN, Deaf(), SequenceNumber("", UNNUMBERED))
        assert scope.cancelled_caught
        async with guard:
            pass
        assert guard.state == "closed"


class TestMiddleware:
    @staticmethod
    def context(name):
        flat = [b"task", name.encode()]
        return Context(task(name=name)(anyio.sleep), Delivery(0, "standard", b"1-0", flat), [], {}, None)

    async def test_each_task_has_its_own(self):
        """One task that fails does not stop the others; `state` is the worst."""
        guard = breaker(threshold=1)

        async def fail(_):
            raise OSError

        async def run(_):
            return 1

        with pytest.raises(OSError):  # noqa: PT011 - any
            await guard(self.context("bad"), fail)
        with pytest.raises(CircuitOpenError) as info:
            await guard(self.context("bad"), run)
        assert isinstance(info.value, RetryLater)
        assert await guard(self.context("good"), run) == 1
        assert guard.circuits == {"bad": "open", "good": "closed"}
        assert guard.state == "open"
        for at in range(1000):
            await guard(self.context(f"t{at}"), run)
        assert len(guard.circuits) <= 64 + 1
        assert guard.circuits["bad"] == "open"

    async def test_postponed_tasks_come_back_in_order(self):
        """Each gets a number and so a time of its own; the number is valid for the next start of that task only."""
        clock = Clock()
        guard = breaker(clock, threshold=1, key="{n}", release_rate=2)
        handler = task(name="call")(handled)

        def context(entry, headers=b"", starts=b"0"):
            flat = [b"task", b"call", b"id", entry, b"starts", starts]
            if headers:
                flat += [b"headers", headers]
            return Context(handler, Delivery(0, "standard", b"1-0", flat), [], {"n": 7}, None)

        async def fail(_):
            raise OSError

        async def run(_):
            return 1

        async def held(context):
            with pytest.raises(CircuitOpenError) as info:
                await guard(context, run)
            return info.value

        with pytest.raises(OSError):  # noqa: PT011 - any
            await guard(context(b"a"), fail)
        errors = [await held(context(bytes([98 + at]))) for at in range(4)]
        assert [error.after for error in errors] == [10.0, 10.5, 11.0, 11.5]
        headers = errors[3].headers
        assert list(headers) == ["circuit:7"]
        again = await held(context(b"e", dumps(headers), str(headers["circuit:7"][2] - 1).encode()))
        assert (again.after, again.headers["circuit:7"][1]) == (11.5, 3)
        late = await held(context(b"e", dumps(headers), b"9"))
        assert (late.after, late.headers["circuit:7"][1]) == (12.0, 4)
        assert guard.circuits == {"7": "open"}


async def handled(n):
    """Be a handler with one parameter."""


def test_the_page_names_every_option():
    """The table of docs/circuit-breakers.md has them all."""
    page = (ROOT / "docs" / "circuit-breakers.md").read_text()
    options = inspect.signature(CircuitBreaker).parameters.keys() - {"clock", "uniform"}
    assert [name for name in options if f"`{name}`" not in page] == []


class TestAtWork:
    @pytest.mark.slow
    async def test_tasks_wait_while_it_is_open(self, server):
        """While it is open tasks wait in the delayed set and spend no attempt; then one probes, and all succeed."""
        runs = []
        guard = CircuitBreaker(2, 0.3, release_rate=200)

        @task(retries=0)
        async def call(number):
            runs.append(number)
            if len(runs) <= 2:
                raise ConnectionError("down")

        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([call.call(number) for number in range(20)])
            await burst(broker, call, concurrency=1, middleware=MiddlewareChain(guard))
            assert await broker.client.xlen("queue:dead") == 2
        assert runs[:2] == [0, 1]
        assert sorted(runs) == list(range(20))
        assert guard.state == "closed"
        assert_nothing_left(server)

    @pytest.mark.slow
    async def test_a_handler_that_meets_an_open_circuit_is_postponed(self, server):
        """CircuitOpenError that a handler does not catch is a request to wait: no attempt is spent."""
        guard = CircuitBreaker(1, 0.2)
        runs = []

        @guard
        async def service():
            runs.append("called")
            if len(runs) == 1:
                raise ConnectionError("down")

        @task(retries=0)
        async def call():
            await service()

        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([call.call() for _ in range(3)])
            await burst(broker, call, concurrency=1)
            assert await broker.client.xlen("queue:dead") == 1
        assert len(runs) == 3


class Response:
    """What a handler has in its hands when it fails."""


class OwnError(Exception):
    """Cannot be made anew from its arguments."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


@pytest.mark.parametrize("scope", ["process", "fleet"])
@pytest.mark.parametrize("error", [ConnectionError("down"), OwnError(5, "down"), ExceptionGroup("down", [OSError()])])
async def test_a_circuit_keeps_no_frames_of_what_failed(real_server, scope, error):
    """One for each host that failed held a response each, until the worker had no memory left."""
    alive = []
    async with RedisBroker(real_server.url) as broker:
        options = {"scope": "fleet", "broker": broker, "name": "b"} if scope == "fleet" else {}
        guard = CircuitBreaker(5, 10.0, **options)

        async def fetch():
            response = Response()
            alive.append(weakref.ref(response))
            raise error

        with pytest.raises(type(error)):
            async with guard:
                await fetch()
        error.__traceback__ = None
        gc.collect()
        assert alive[0]() is None
        assert "down" in str(guard.last_failure)
        assert guard.last_failure.__traceback__ is None
        assert isinstance(guard.last_failure, ConnectionError if type(error) is ConnectionError else RemoteFailureError)


def test_a_circuit_that_nobody_uses_is_forgotten():
    """Also one that has failed, or is open: its key may never come again."""
    clock = Clock()
    settings = CircuitSettings(failure_threshold=1, reset_timeout=10.0)
    circuits = LocalCircuits(settings, clock, "here", None, CircuitLog("", 1, clock))
    for at in range(50):
        circuits.count(f"old {at}", CallOutcome.FAILED, OSError())
    clock.now += 2 * 10.0 + 60 + 3601
    for at in range(50):
        circuits.count(f"new {at}", CallOutcome.FAILED, OSError())
    assert not any(key.startswith("old") for key in circuits.views())


async def test_reports_of_many_circuits_are_bounded(real_server):
    """What is dropped here expires on the server."""
    async with RedisBroker(real_server.url) as broker:
        reporter = CircuitReporter("b", 1.0, "1")
        for at in range(MAX_INDEXED + 10):
            await reporter.report(str(at), CircuitView(State.OPEN, 1), broker.store)
    assert repr(reporter) == f"<CircuitReporter b reported={MAX_INDEXED}>"
