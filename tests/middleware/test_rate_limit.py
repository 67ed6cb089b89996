"""The rate limit of one process: the middleware by itself, and with real workers."""

from __future__ import annotations

import time
from statistics import linear_regression

import pytest

from streamq import RedisBroker, RetryLater, task
from streamq.errors import ConfigurationError
from streamq.middleware import Context, MiddlewareChain, RateLimitMiddleware
from streamq.middleware.limit_reached import LimitReached
from streamq.middleware.token_bucket import SLACK
from streamq.wire.delivery import Delivery
from tests.at_work import assert_nothing_left, burst

pytestmark = pytest.mark.paired("memory")


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@task
async def send():
    """Do nothing."""


def context(headers="{}", starts=0, name="send"):
    flat = [b"task", name.encode(), b"headers", headers.encode(), b"starts", str(starts).encode()]
    return Context(send, Delivery(0, "standard", b"1-0", flat), [], {}, None)


async def run(_):
    return "ran"


@pytest.mark.slow
class TestMiddleware:
    @pytest.mark.parametrize("wrong", [{"max_per_second": 0}, {"max_per_second": float("nan")}, {"burst": 0}])
    def test_wrong_options_are_refused(self, wrong):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            RateLimitMiddleware(**wrong)

    def test_repr(self):
        assert repr(RateLimitMiddleware(2.5)) == "<RateLimitMiddleware 2.5/s burst=1 keys=0>"

    async def postponed(self, limit, *args, **kwargs):
        with pytest.raises(LimitReached) as info:
            await limit(context(*args, **kwargs), run)
        return info.value

    async def test_the_reservation_travels_in_a_header(self):
        """A task that comes back with its header at its time starts, and takes no second token."""
        from streamq.wire.message import dumps

        clock = Clock()
        limit = RateLimitMiddleware(10.0, clock=clock)
        assert await limit(context(), run) == "ran"
        first, second = await self.postponed(limit), await self.postponed(limit)
        assert (first.after, second.after) == pytest.approx((0.1, 0.2))
        clock.now += 0.1
        assert await limit(context(dumps(first.headers).decode(), starts=1), run) == "ran"
        clock.now += 0.1
        assert await limit(context(dumps(second.headers).decode(), starts=1), run) == "ran"

    async def test_a_retry_takes_another_token(self):
        """The header is for one run: the retry of a task that ran is another start."""
        from streamq.wire.message import dumps

        clock = Clock()
        limit = RateLimitMiddleware(10.0, clock=clock)
        await limit(context(), run)
        postponed = dumps((await self.postponed(limit)).headers).decode()
        clock.now += 0.1
        await limit(context(postponed, starts=1), run)
        assert (await self.postponed(limit, postponed, starts=2)).after == pytest.approx(0.1)

    async def test_another_process_keeps_its_own_rate(self):
        """A task with a reservation of another process counts as due here; the tokens of this process decide."""
        from streamq.wire.message import dumps

        clock = Clock()
        there, here = RateLimitMiddleware(10.0, clock=clock), RateLimitMiddleware(10.0, clock=clock)
        await there(context(), run)
        postponed = [dumps((await self.postponed(there)).headers).decode() for _ in range(5)]
        ran = 0
        for headers in postponed:
            try:
                await here(context(headers, starts=1), run)
                ran += 1
            except LimitReached:
                pass
        assert ran == 2  # burst and slack

    async def test_nonsense_in_the_header(self):
        """A header that makes no sense is no reservation."""
        for odd in ('{"rate_limit:send":1}', '{"rate_limit:send":["a","b",0,1]}', '{"rate_limit:send":[]}'):
            assert await RateLimitMiddleware(10.0)(context(odd), run) == "ran"

    async def test_by_key(self):
        """Each value of the key has its own bucket; idle ones are forgotten."""
        clock = Clock()
        limit = RateLimitMiddleware(10.0, key=lambda context: context.delivery.task, clock=clock)
        for at in range(5000):
            clock.now += 0.01
            await limit(context(name=f"t{at}"), run)
        assert len(limit._local) <= 64
        assert (await self.postponed(limit, name="t4999")).after == pytest.approx(0.1)

    async def test_the_token_of_a_task_that_did_not_start_is_returned(self):
        """A task that an inner limit postpones takes no token of an outer one, and passes it when it comes back."""
        from streamq.wire.message import dumps

        clock = Clock()
        outer = RateLimitMiddleware(10.0, key=lambda _: "all", clock=clock)
        inner = RateLimitMiddleware(1.0, clock=clock)
        chain = MiddlewareChain(outer, inner).around(run)
        assert await chain(context()) == "ran"
        clock.now += 1.0 - 0.1
        with pytest.raises(RetryLater) as info:
            await chain(context())
        assert info.value.after == pytest.approx(0.1)
        assert set(info.value.headers) == {"rate_limit:all", "rate_limit:send"}
        clock.now += 0.1
        assert await chain(context(dumps(info.value.headers).decode(), starts=1)) == "ran"


class TestAtWork:
    @pytest.mark.slow
    async def test_the_rate_is_right(self, server):
        """Over several seconds the rate is kept, in order, with a concurrency to do much more."""
        rate, size = 40.0, 3
        starts = []

        @task(retries=0)
        async def limited(number):
            starts.append((time.monotonic(), number))

        count = int(rate * 2) + size
        for _ in range(4):
            starts.clear()
            async with RedisBroker(server.url) as broker:
                await broker.enqueue_many([limited.call(number) for number in range(count)])
                await burst(broker, limited, middleware=MiddlewareChain(RateLimitMiddleware(rate, burst=size)))
            assert len(starts) == count
            assert_nothing_left(server)
            first = starts[0][0]
            late = max(at - first - max(0, place - size) / rate for place, (at, _) in enumerate(starts))
            if late < SLACK:  # else a task has lost its place: the machine was busy, and that says nothing of the order
                break
        # The slope through all starts: one that a busy machine delays says nothing of the rate.
        slope = linear_regression(range(count), [moment for moment, _ in starts]).slope
        # Exactly it is kept in virtual time (tests/timed): here a busy machine may hold up a good part of the starts.
        assert 1 / slope == pytest.approx(rate, rel=0.2)
        lost = max(late, SLACK)  # tasks that were late by so much have lost their places to others
        assert max(abs(number - place) for place, (_, number) in enumerate(starts)) <= 2 * lost * rate + 1

    @pytest.mark.slow
    async def test_holds_no_slot_and_spends_no_attempt(self, server):
        """With one slot and no retries, others run while a limited task waits."""
        order = []

        @task(retries=0)
        async def limited(number):
            order.append(("limited", number))

        @task(retries=0)
        async def free(number):
            order.append(("free", number))

        limit = RateLimitMiddleware(
            2.0, key=lambda context: context.task.name + str(context.args if context.task is free else "")
        )
        async with RedisBroker(server.url) as broker:
            for number in range(3):
                await broker.enqueue(limited, number)
            for number in range(10):
                await broker.enqueue(free, number)
            await burst(broker, limited, free, concurrency=1, middleware=MiddlewareChain(limit))
            assert await broker.client.xlen("queue:dead") == 0
        assert order == [("limited", 0), *(("free", n) for n in range(10)), ("limited", 1), ("limited", 2)]
