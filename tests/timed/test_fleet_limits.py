"""The limits of a fleet, with several workers, to the millisecond."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import pairwise

import anyio
import pytest

from streamq import RetryLater, task
from streamq.middleware import ConcurrencyLimit, MiddlewareChain, RateLimitMiddleware

SLIP = 0.02  # seconds: servers count in milliseconds, and who is called is looked at after a few of them


async def work(stage, stack, number, limit, *tasks):
    """Start so many workers, each with a broker and a limit of its own; return one of the brokers."""
    brokers = [await stack.enter_async_context(stage.broker()) for _ in range(number)]
    for broker in brokers:
        chain = MiddlewareChain(limit())
        await stack.enter_async_context(stage.working(broker, *tasks, middleware=chain, visibility_timeout=600))
    return brokers[0]


@pytest.mark.slow
async def test_four_workers_start_as_one(stage):
    """Starts of the whole fleet are evenly spread, whoever makes them."""

    @task(retries=0)
    async def limited() -> None:
        stage.note("limited")

    async with AsyncExitStack() as stack:
        broker = await work(stage, stack, 4, lambda: RateLimitMiddleware(10.0, scope="fleet"), limited)
        await broker.enqueue_many([limited.call() for _ in range(300)])
        await anyio.sleep(32)
    times = stage.times("limited")
    assert len(times) == 300
    assert times == pytest.approx([times[0] + number / 10 for number in range(300)], abs=SLIP)


@pytest.mark.slow
async def test_retry_after_is_exact_for_the_whole_fleet(stage):
    """A drain by one worker's task holds the others' too, and then they start evenly."""

    @task(retries=0)
    async def call(number: int) -> None:
        stage.note("call")
        if len(stage.times("call")) == 10:
            raise RetryLater(after=60, drain=True)

    async with AsyncExitStack() as stack:
        broker = await work(stage, stack, 2, lambda: RateLimitMiddleware(10.0, scope="fleet"), call)
        await broker.enqueue_many([call.call(number) for number in range(30)])
        await anyio.sleep(70)
    times = stage.times("call")
    assert len(times) == 31
    drained = times[9]
    assert times[10:] == pytest.approx([drained + 60 + number / 10 for number in range(21)], abs=SLIP)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
async def test_a_permit_that_is_free_is_in_use_at_once(stage, workers):
    """Runs of a second each, two at a time: a pair starts each second, in order, and nobody asks in between."""

    @task(retries=0)
    async def narrow(number: int) -> None:
        stage.note("narrow")
        stage.note(number)
        await anyio.sleep(1)

    async with AsyncExitStack() as stack:
        broker = await work(stage, stack, workers, lambda: ConcurrencyLimit(2), narrow)
        await broker.enqueue_many([narrow.call(number) for number in range(40)])
        await anyio.sleep(22)
    times = stage.times("narrow")
    assert len(times) == 40
    assert all(later >= earlier + 1 for earlier, later in zip(times, times[2:], strict=False))
    assert times == pytest.approx([number // 2 for number in range(40)], abs=20 * SLIP)
    assert all(later - earlier <= 1 + SLIP for earlier, later in pairwise(times))


@pytest.mark.slow
async def test_permits_of_a_worker_that_is_cut_off_come_back_after_its_lease(stage):
    """Nobody hears of it again: its permits are over 30 s after it last renewed them, and the next one starts."""

    @task(retries=0)
    async def narrow(seconds: float) -> None:
        stage.note(f"narrow {seconds:g}")
        await anyio.sleep(seconds)

    options = {"visibility_timeout": 3600}
    one, other = (MiddlewareChain(ConcurrencyLimit(1)) for _ in range(2))
    async with stage.mortal(narrow, middleware=one, **options) as cable, stage.broker() as broker:
        await broker.enqueue(narrow, 10_000.0)
        await anyio.sleep(60)
        assert len(stage.times("narrow 10000")) == 1
        async with stage.working(broker, narrow, middleware=other, **options):
            await broker.enqueue(narrow, 1.0)
            await anyio.sleep(100)
            assert stage.times("narrow 1") == []  # it is renewed as long as it runs
            at = stage.at
            cable.cut()
            await anyio.sleep(60)
    (started,) = stage.times("narrow 1")
    assert 20 - 1 <= started - at <= 30 + 1 + SLIP
