"""The circuit breaker: the circuit by itself, its three uses, and with a real worker."""

from __future__ import annotations

import contextlib

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq import RedisBroker, Reject, RetryLater, task
from streamq.delivery import Delivery
from streamq.errors import CircuitOpenError, ConfigurationError
from streamq.middleware import CircuitBreaker, Context, MiddlewareChain
from streamq.middleware.circuit import Circuit, Ended, Pass, State, Wait
from tests.at_work import assert_nothing_left, burst


class Clock:
    """A monotonic clock that stands still unless told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class NoJitter:
    """Randomness that is none."""

    def uniform(self, a, b):
        return a


def breaker(clock=None, threshold=2, **options):
    return CircuitBreaker(threshold, 10.0, clock=clock or Clock(), uniform=NoJitter(), **options)


class TestCircuit:
    def test_opens_after_failures_in_a_row(self):
        """A success in between starts the count anew."""
        circuit = Circuit(3, 10.0, 1)
        for ended in (Ended.FAILED, Ended.FAILED, Ended.WELL, Ended.FAILED, Ended.FAILED, Ended.OTHERWISE):
            circuit.leave(0.0, circuit.enter(0.0), ended)
        assert circuit.state(0.0) is State.CLOSED
        circuit.leave(0.0, circuit.enter(0.0), Ended.FAILED)
        assert circuit.state(0.0) is State.OPEN
        assert circuit.enter(4.0) == Wait(6.0)

    def test_probes(self):
        """When the time is up, `half_open_max` calls go through; a success closes, a failure opens again."""
        circuit = Circuit(1, 10.0, 2)
        circuit.leave(0.0, circuit.enter(0.0), Ended.FAILED)
        assert circuit.state(10.0) is State.HALF_OPEN
        one, two = circuit.enter(10.0), circuit.enter(11.0)
        assert circuit.enter(13.0) == Wait(3.0)
        circuit.leave(13.0, one, Ended.FAILED)
        assert circuit.state(13.0) is State.OPEN
        circuit.leave(14.0, two, Ended.WELL)  # of the period before: too late to say anything
        assert circuit.enter(15.0) == Wait(8.0)
        circuit.leave(23.0, circuit.enter(23.0), Ended.WELL)
        assert circuit.state(23.0) is State.CLOSED
        assert circuit.pristine

    def test_a_probe_that_ends_otherwise_makes_room(self):
        """A probe that is cancelled says nothing, and the next one may try."""
        circuit = Circuit(1, 10.0, 1)
        circuit.leave(0.0, circuit.enter(0.0), Ended.FAILED)
        circuit.leave(11.0, circuit.enter(10.0), Ended.OTHERWISE)
        assert isinstance(circuit.enter(11.0), Pass)

    def test_a_probe_that_hangs_makes_room(self):
        """A probe that is not heard of for the reset timeout does not keep the circuit shut."""
        circuit = Circuit(1, 10.0, 1)
        circuit.leave(0.0, circuit.enter(0.0), Ended.FAILED)
        circuit.enter(10.0)
        assert isinstance(circuit.enter(19.9), Wait)
        assert isinstance(circuit.enter(20.0), Pass)

    def test_what_began_before_changes_nothing(self):
        """Calls that began while it was closed do not close, open or prolong it later."""
        circuit = Circuit(1, 10.0, 1)
        old = [circuit.enter(0.0) for _ in range(3)]
        circuit.leave(1.0, old[0], Ended.FAILED)
        circuit.leave(5.0, old[1], Ended.FAILED)
        circuit.leave(5.0, old[2], Ended.WELL)
        assert circuit.enter(6.0) == Wait(5.0)
        assert circuit.failures == 1

    @given(st.lists(st.tuples(st.sampled_from(["enter", *Ended]), st.integers(0, 3), st.floats(0, 8)), max_size=80))
    def test_whatever_happens(self, steps):
        """Never more probes than allowed, never open for longer than the timeout, and it can always recover."""
        circuit = Circuit(2, 10.0, 2)
        now, inside = 0.0, []
        for what, which, pause in steps:
            now += pause
            if what == "enter":
                answer = circuit.enter(now)
                if isinstance(answer, Wait):
                    assert 0 <= answer.seconds <= 10.0 + 1e-9
                else:
                    inside.append(answer)
            elif inside:
                circuit.leave(now, inside.pop(which % len(inside)), what)
            probes = [p for p in inside if p.probe is not None and p.period == circuit._period and now < p.probe + 10.0]
            assert len(probes) <= 2
        now += 20.0
        circuit.leave(now, circuit.enter(now), Ended.WELL)
        assert circuit.state(now) is State.CLOSED


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
        """Only `counts` are failures, and requests of a handler never are."""
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

    def test_not_of_anything(self):
        with pytest.raises(ConfigurationError, match="give an async function"):
            breaker()(print)

    @pytest.mark.parametrize("wrong", [{"failure_threshold": 0}, {"reset_timeout": 0}, {"half_open_max": True}])
    def test_must_make_sense(self, wrong):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            CircuitBreaker(**wrong)


class TestContextManager:
    async def test_counts_what_is_inside(self):
        """As the decorator, with the same circuit."""
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
                    go.set()  # what began before fails now
                    await anyio.wait_all_tasks_blocked()
                assert inner.state == "closed"
        assert (outer.state, outer.failures, inner.failures) == ("closed", 0, 0)

    async def test_a_cancelled_probe_makes_room(self):
        """Cancellation is no failure, and gives the probe's place back."""
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


class TestMiddleware:
    @staticmethod
    def context(name):
        flat = [b"task", name.encode()]
        return Context(task(name=name)(anyio.sleep), Delivery(0, "standard", b"1-0", flat), [], {}, None)

    async def test_each_task_has_its_own(self):
        """One task that fails does not stop the others; the state told is the worst."""
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


class TestAtWork:
    async def test_open_means_wait(self, server):
        """While it is open tasks wait in the delayed set and spend no attempt; then one probes, and all succeed."""
        runs = []
        guard = CircuitBreaker(2, 0.3)

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
