"""Rate limits and circuit breakers, with workers, to the millisecond."""

from __future__ import annotations

import random
from itertools import pairwise

import anyio
import pytest

from streamq import task
from streamq.middleware import CircuitBreaker, MiddlewareChain, RateLimitMiddleware
from tests.timed.stage import OnTime

pytestmark = pytest.mark.paired("memory")


def chain(*middleware):
    """Return these as one chain."""
    chain = MiddlewareChain()
    for one in middleware:
        chain.add(one)
    return chain


class Half(random.Random):
    """Jitter without chance: always the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class TestRate:
    """The token bucket."""

    @pytest.mark.slow
    @pytest.mark.parametrize(("rate", "count"), [(10.0, 50), (0.1, 20), (1 / 3600, 3)])
    async def test_starts_are_evenly_spread(self, stage, rate, count):
        """So many a second, or one an hour: each start is on time for its slot."""

        @task(retries=0)
        async def limited() -> None:
            stage.note("limited")

        limit = RateLimitMiddleware(rate, clock=stage.virtual.elapsed)
        async with stage.broker() as broker:
            await broker.enqueue_many([limited.call() for _ in range(count)])
            async with stage.working(broker, limited, middleware=chain(limit), visibility_timeout=600):
                await anyio.sleep(count / rate + 1)
        times = stage.times("limited")
        assert times == [pytest.approx(number / rate, abs=0.005) for number in range(count)]
        assert all(later - earlier >= 1 / rate - 0.005 for earlier, later in pairwise(times))

    async def test_a_burst_is_saved_up(self, stage):
        """After a pause so many start at once, and the others are spread."""

        @task(retries=0)
        async def limited() -> None:
            stage.note("limited")

        limit = RateLimitMiddleware(1.0, burst=5, clock=stage.virtual.elapsed)
        async with stage.broker() as broker, stage.working(broker, limited, middleware=chain(limit)):
            for start in (0, 100):
                await anyio.sleep(start - stage.at)
                await broker.enqueue_many([limited.call() for _ in range(8)])
            await anyio.sleep(20)
        expected = [0, 0, 0, 0, 0, 1, 2, 3]
        assert stage.times("limited") == pytest.approx([*expected, *(100 + at for at in expected)], abs=0.005)

    async def test_two_names_two_buckets(self, stage):
        """A task does not wait for tokens of another."""

        @task(retries=0)
        async def one() -> None:
            stage.note("one")

        @task(retries=0)
        async def two() -> None:
            stage.note("two")

        limit = RateLimitMiddleware(0.1, clock=stage.virtual.elapsed)
        async with stage.broker() as broker, stage.working(broker, one, two, middleware=chain(limit)):
            await broker.enqueue_many([one.call(), one.call(), two.call(), two.call()])
            await anyio.sleep(30)
        for name in ("one", "two"):
            assert stage.times(name) == pytest.approx([0, 10], abs=0.005)


class TestBreaker:
    """The circuit breaker."""

    async def test_opens_waits_probes_and_closes(self, stage):
        """Five failures open it; what comes then waits for the minute; one probe decides."""
        working_from = 100.0

        @task(retries=9)
        async def call(number: int) -> None:
            stage.note("call")
            if stage.at < working_from:
                raise OSError("down")
            stage.note(f"done {number}")

        options = {"clock": stage.virtual.elapsed, "uniform": Half()}
        breaker = CircuitBreaker(failure_threshold=5, reset_timeout=60, **options)
        once = call.options(retries=0)
        async with stage.broker() as broker, stage.working(broker, call, middleware=chain(breaker), concurrency=1):
            await broker.enqueue_many([once.call(number) for number in range(5)])
            await anyio.sleep(1)
            # Open until 60: this one is held until then, is the probe, and fails.
            await broker.enqueue(once, 5)
            await anyio.sleep(70 - stage.at)
            # Open again until 120: held until then, by when the other side works.
            await broker.enqueue(once, 6)
            await anyio.sleep(130 - stage.at)
            await broker.enqueue(once, 7)
            await anyio.sleep(1)
        assert stage.times("call") == [OnTime(0)] * 5 + [OnTime(60), OnTime(120), OnTime(130)]
        assert stage.times("done 6") == [OnTime(120)]
        assert stage.times("done 7") == [OnTime(130)]
        assert [letter["attempts"] for letter in stage.dead()] == ["1"] * 6

    @pytest.mark.slow
    async def test_what_it_holds_spends_no_attempt(self, stage):
        """Tasks with no retries left wait out two hours of an open circuit."""

        @task(retries=0)
        async def call(*, fail: bool = False) -> None:
            stage.note("failed" if fail else "done")
            if fail:
                raise OSError("down")

        breaker = CircuitBreaker(1, 7200, clock=stage.virtual.elapsed, uniform=Half())
        options = {"middleware": chain(breaker), "visibility_timeout": 600}
        async with stage.broker() as broker, stage.working(broker, call, **options):
            await broker.enqueue(call, fail=True)
            await anyio.sleep(1)
            await broker.enqueue_many([call.call() for _ in range(20)])
            await anyio.sleep(7200 * 1.1)
        times = stage.times("done")
        assert len(times) == 20
        assert times[0] == OnTime(7200)
        assert times == pytest.approx([7200 + number / 10 for number in range(20)], abs=0.02)  # ten a second
        assert len(stage.dead()) == 1

    async def test_a_probe_that_hangs_makes_room_for_another(self, stage):
        """After `reset_timeout` without a word from it."""

        @task(retries=0)
        async def call(what: str) -> None:
            stage.note(what)
            if what == "fails":
                raise OSError("down")
            if what == "hangs":
                await anyio.sleep(1000)

        breaker = CircuitBreaker(1, 60, clock=stage.virtual.elapsed, uniform=Half())
        async with stage.broker() as broker, stage.working(broker, call, middleware=chain(breaker)):
            await broker.enqueue(call, "fails")
            await anyio.sleep(60)
            await broker.enqueue(call, "hangs")
            await anyio.sleep(0.5)
            await broker.enqueue(call, "waits")
            await anyio.sleep(120)
        assert stage.times("hangs") == [OnTime(60)]
        (at,) = stage.times("waits")
        assert 120 <= at <= 60 + 2 * 60 + 6
