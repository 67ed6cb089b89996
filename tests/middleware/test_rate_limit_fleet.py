"""The rate limit of a fleet: its scripts against the pure bucket, several workers, many waiting, faults."""

from __future__ import annotations

import contextlib
import itertools
import time

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq import RedisBroker, RetryLater, Worker, task
from streamq.embedded import MemoryServer
from streamq.errors import BrokerUnavailableError, ConfigurationError
from streamq.middleware import Context, MiddlewareChain, RateLimitMiddleware
from streamq.middleware.limit_reached import LimitReached
from streamq.middleware.token_bucket import Bucket, Rate, Reservation
from streamq.queue.refusals import Refusals
from streamq.scripts import step
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import dumps
from tests.at_work import assert_nothing_left, burst, until, working
from tests.crew import Crew, say
from tests.servers import fresh_server

pytestmark = pytest.mark.paired("memory")

_numbers = itertools.count(1)


@pytest.fixture
def any_server(anyio_backend, shared_server):
    """One kind of real server for each backend."""
    return shared_server("valkey" if anyio_backend == "asyncio" else "redis")


KEY = "queue:rate:limited"


class Scripted:
    """The bucket of the scripts, with the methods of the pure one; times in seconds."""

    def __init__(self, command):
        self.command = command

    def run(self, name, *arguments):
        reply = self.command("EVAL", step(name).source, 1, KEY, *arguments)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def acquire(self, rate, _, reservation):
        due = "" if reservation is None else repr(max(0.0, reservation.due * 1000))
        missed = int(reservation is not None and reservation.missed)
        _, reserved, missed = self.run(
            "rate_acquire", repr(rate.interval * 1000), rate.burst, rate.capacity, due, missed
        )
        return Reservation(float(reserved) / 1000, missed=missed == b"1") if reserved else None

    def return_token(self, rate):
        self.run("rate_return", repr(rate.interval * 1000))

    def drain(self, rate, _, after):
        _, reserved = self.run("rate_drain", repr(rate.interval * 1000), rate.capacity, round(after * 1000))
        return Reservation(float(reserved) / 1000, missed=True)


def context(headers="{}", starts=0, store=None):
    flat = [b"task", b"limited", b"headers", headers.encode(), b"starts", str(starts).encode()]
    return Context(limited, Delivery(0, "standard", b"1-0", flat), [], {}, store)


@task
async def limited():
    """Do nothing."""


class TestScripts:
    @pytest.mark.slow
    @settings(max_examples=60)
    @given(
        rate=st.sampled_from([0.7, 7.3, 171.0]),
        size=st.integers(1, 4),
        acts=st.lists(
            st.tuples(st.sampled_from("nnnnbbbbbrdl"), st.integers(0, 400), st.integers(0, 99)),
            min_size=5, max_size=60,
        ),
    )  # fmt: skip
    def test_they_do_what_the_pure_bucket_does(self, rate, size, acts):
        """Any sequence of new tasks, tasks that come back, returned tokens, drains, and a lower rate."""
        now = [1_800_000_000.0]
        server = MemoryServer.named(f"rate-{next(_numbers)}", clock=lambda: now[0])
        pure, scripted, some = Bucket(), Scripted(server.execute), Rate.of(rate, size)
        waiting = []
        try:
            for act, pause, pick in acts:
                now[0] += pause / 1000
                if act == "r":
                    pure.return_token(some)
                    scripted.return_token(some)
                elif act == "d":
                    expected, got = pure.drain(some, now[0], pick / 50), scripted.drain(some, now[0], pick / 50)
                    assert got.due == pytest.approx(expected.due, abs=2e-3)
                    waiting.append(got)
                elif act == "l":
                    some = Rate.of(rate / 2, size)
                else:
                    reservation = waiting.pop(pick % len(waiting)) if act == "b" and waiting else None
                    if self.close(pure, some, now[0], reservation):
                        return  # a millisecond decides, and the server's clock has no other parts
                    expected, got = pure.acquire(some, now[0], reservation), scripted.acquire(some, now[0], reservation)
                    assert (expected is None) == (got is None)
                    if got is not None:
                        assert got.missed == expected.missed
                        assert got.due == pytest.approx(expected.due, abs=2e-3)
                        waiting.append(got)
                if pure.idle(now[0] - 1.1):
                    pure = Bucket()  # the key is gone by then, and it makes no difference
        finally:
            MemoryServer.discard(server.name)

    def close(self, bucket, rate, now, reservation):
        """Return whether a time that decides is too close to now to tell."""
        opens = max(bucket.full_at - (rate.capacity - 1) * rate.interval, bucket.drained_until)
        marks = [
            opens,
            bucket.late_reserved_until,
            bucket.reserved_until - (rate.burst - 1) * rate.interval,
            *([reservation.due] if reservation else []),
        ]
        return any(abs(mark - now - early) < 2e-3 for mark in marks for early in (0, 0.002))

    def test_a_bucket_has_a_ttl_and_is_gone_when_it_is_idle(self, server):
        scripted, rate = Scripted(server.command), Rate.of(100.0, 1)
        for _ in range(50):
            scripted.acquire(rate, 0, None)
        assert 1000 < server.command("PTTL", KEY) <= 1500
        scripted.acquire(rate, 0, Reservation(time.time() + 3600))  # early: it changes nothing
        scripted.return_token(rate)
        assert 1000 < server.command("PTTL", KEY) <= 1500

    def test_a_full_server_keeps_the_limit(self):
        """Its bucket is one small key: it is written even if memory is short."""
        with fresh_server("valkey") as server:
            scripted, rate = Scripted(server.command), Rate.of(1.0, 1)
            assert scripted.acquire(rate, 0, None) is None
            server.command("CONFIG", "SET", "maxmemory", "1")
            assert "OOM" in str(server.command("SET", "a", "b"))
            assert scripted.acquire(rate, 0, None) is not None
            scripted.return_token(rate)
            scripted.drain(rate, 0, 1.0)


class Away:
    """A store whose server cannot be used."""

    refusals = Refusals()
    keys = Keys.of("queue", "workers", [])

    async def one(self, command):
        raise BrokerUnavailableError("down")


class TestMiddleware:
    def test_wrong_options_are_refused(self):
        with pytest.raises(ConfigurationError, match="scope="):
            RateLimitMiddleware(scope="world")
        with pytest.raises(ConfigurationError, match="key="):
            RateLimitMiddleware(scope="fleet", key="{}")

    def test_repr(self):
        limit = RateLimitMiddleware(2.5, scope="fleet", name="mail")
        assert repr(limit) == "<RateLimitMiddleware mail 2.5/s burst=1 fleet>"

    async def test_without_a_server_tasks_are_postponed_and_keep_their_reservation(self):
        """None starts uncounted, none is lost."""
        limit = RateLimitMiddleware(10.0, scope="fleet")
        for headers in (None, {"rate_limit:limited": ["fleet", 5.5, 1, 2]}):
            mine = dumps(headers or {}).decode()
            with pytest.raises(LimitReached, match="cannot be asked") as info:
                await limit(context(mine, starts=1, store=Away()), None)
            assert 1.0 <= info.value.after <= 2.0
            kept = (info.value.headers or {}).get("rate_limit:limited")
            assert kept == (None if headers is None else ["fleet", 5.5, 1, 3])

    async def test_a_drain_that_cannot_be_sent_still_postpones_the_task(self):
        """The time that the handler asked for stays."""
        limit = RateLimitMiddleware(10.0, scope="fleet")
        request = RetryLater(after=7.0, drain=True)
        await limit._drain(context(store=Away()), "limited", request)
        assert (request.after, request.headers) == (7.0, None)

    @pytest.mark.parametrize("scope", ["process", "fleet"])
    async def test_a_drain_of_an_impossible_time_is_the_handlers_mistake(self, server, scope):
        async with RedisBroker(server.url) as broker:
            limit = RateLimitMiddleware(10.0, scope=scope)

            async def wrong(_):
                raise RetryLater(after=float("inf"), drain=True)

            with pytest.raises(RetryLater):
                await limit(context(store=broker.store), wrong)

    @pytest.mark.slow
    @pytest.mark.parametrize("scope", ["process", "fleet"])
    async def test_retry_after_drains_the_bucket(self, any_server, scope):
        """Nothing of that key starts for so long; the task that asked is among the first; other keys go on."""
        order = []

        @task(retries=0)
        async def call(customer, number):
            order.append((customer, number, time.monotonic()))
            if number == 0 and len(order) == 1:
                raise RetryLater(after=1.0, drain=True)

        limit = RateLimitMiddleware(50.0, key="customer:{customer}", scope=scope)
        async with RedisBroker(any_server.url) as broker:
            await broker.enqueue(call, "a", 0)
            async with working(broker, call, middleware=MiddlewareChain(limit)):
                await until(lambda: order)
                await until(lambda: any_server.command("ZCARD", "queue:standard:delayed"))  # the drain was sent
                await broker.enqueue_many([call.call("a", number) for number in range(1, 6)])
                await broker.enqueue(call, "b", 0)
                await until(lambda: len(order) == 8, 20)
        began = order[0][2]
        assert [(c, n) for c, n, _ in order[1:2]] == [("b", 0)]
        assert sorted(n for c, n, _ in order[2:]) == [0, 1, 2, 3, 4, 5]
        assert order[2][1] == 0 or order[3][1] == 0  # put off a little later on a busy machine
        assert all(at - began >= 0.99 for c, _, at in order[1:] if c == "a")
        for name in any_server.keys():  # noqa: SIM118
            if name.startswith("queue:rate:"):
                assert any_server.command("PTTL", name) != -1
                any_server.command("DEL", name)
        assert_nothing_left(any_server)


class TestAtWork:
    @pytest.mark.slow
    async def test_four_workers_have_one_rate(self, any_server):
        """Over several seconds the whole fleet starts so many a second, in turns or not."""
        rate, size = 50.0, 3
        starts = []

        @task(retries=0)
        async def shared(number):
            starts.append((time.monotonic(), number))

        count = int(rate * 2) + size
        async with contextlib.AsyncExitStack() as stack:
            brokers = [await stack.enter_async_context(RedisBroker(any_server.url)) for _ in range(4)]
            await brokers[0].enqueue_many([shared.call(number) for number in range(count)])
            limits = [RateLimitMiddleware(rate, burst=size, scope="fleet") for _ in brokers]
            async with anyio.create_task_group() as group:
                for broker, limit in zip(brokers, limits, strict=True):
                    worker = Worker(broker, [shared], burst=True, middleware=MiddlewareChain(limit))
                    group.start_soon(worker.run)
        assert sorted(number for _, number in starts) == list(range(count))
        spread = starts[-1][0] - starts[size][0]
        assert spread >= (count - size - 1) / rate - 0.2  # the bound: slack is a tenth of a second
        any_server.command("DEL", "queue:rate:shared")
        assert_nothing_left(any_server)

    async def test_a_lower_rate_of_another_worker_counts_from_its_next_step(self, server):
        """Each call passes its own rate: reservations that were made before keep their time."""
        async with RedisBroker(server.url) as broker:
            fast = RateLimitMiddleware(10.0, scope="fleet")
            slow = RateLimitMiddleware(0.1, scope="fleet")
            waits = []
            for limit in (fast, fast, slow, fast):
                try:
                    await limit(context(store=broker.store), ran)
                except LimitReached as postponed:
                    waits.append(postponed.after)
        assert waits == [pytest.approx(0.1, abs=0.09), pytest.approx(0.2, abs=0.15), pytest.approx(10.2, abs=0.2)]

    @pytest.mark.slow
    async def test_many_waiting_tasks_do_not_poll(self, any_server):
        """20,000 tasks wait for 10 tokens a second: each is postponed once (once more if it comes late while the others
        are read), and then only ten a second move."""
        count, begun = 20_000, []
        postponed = []

        class Counting(RateLimitMiddleware):
            async def __call__(self, context, call_next):
                try:
                    return await super().__call__(context, call_next)
                except LimitReached:
                    postponed.append(context.delivery.task_id)
                    raise

        @task(retries=0)
        async def storm(number):
            begun.append(number)

        def scripts():
            text = any_server.command("INFO", "commandstats").decode()
            return sum(
                int(line.partition("calls=")[2].partition(",")[0])
                for line in text.splitlines()
                if line.startswith("cmdstat_eval")
            )

        async with RedisBroker(any_server.url) as broker:
            await broker.enqueue_many([storm.call(number) for number in range(count)])
            limit = Counting(10.0, scope="fleet")
            async with working(broker, storm, middleware=MiddlewareChain(limit), concurrency=200):
                await until(lambda: len(postponed) + len(begun) >= count, 90)
                await until(lambda: any_server.command("XLEN", "queue:standard") < 20, 60)  # all are settled
                await anyio.sleep(0.5)
                before, started, at = scripts(), len(begun), time.monotonic()
                await anyio.sleep(1.5)
                after, more, took = scripts(), len(begun) - started, time.monotonic() - at
        assert len(postponed) <= 1.05 * count
        assert more <= 10 * took + 3
        # Twice promote, acquire and settle for each start, and the steps of an idle worker.
        assert after - before <= 6 * 10 * took + 20, f"{after - before} scripts in {took:.1f} s"
        print(f"{len(postponed) - count} postponed once more; {(after - before) / took:.0f} scripts/s")


async def ran(_):
    return "ran"


# --- under faults -----------------------------------------------------------------------------------


@task(validate=False, name="crew_rated", middleware=[RateLimitMiddleware(20.0, scope="fleet")])
async def crew_rated(n: int) -> None:
    say(f"run {time.time():.4f} {n}")
    await anyio.sleep(0.5)  # so that a killed worker holds some


TASKS = [crew_rated]


@pytest.mark.slow
async def test_a_worker_that_is_killed_with_tokens_costs_no_task_and_breaks_no_limit(
    anyio_backend, any_server, tmp_path
):
    """Its tokens are spent, its tasks run again elsewhere with other tokens, and the rate is kept throughout."""
    async with RedisBroker(any_server.url) as broker:
        await broker.enqueue_many([crew_rated.call(n) for n in range(40)])
        with Crew("tests.middleware.test_rate_limit_fleet", any_server, tmp_path, backend=anyio_backend) as crew:
            victim, _ = crew.start("victim"), crew.start("other")
            await anyio.to_thread.run_sync(crew.until, "run", 8)
            victim.kill()
            victim.wait()

            def all_ran():
                return {line.split()[2] for line in crew.lines("run")} == {str(n) for n in range(40)}

            await until(all_ran, 40)
        starts = sorted(float(line.split()[1]) for line in crew.lines("run"))
    for first, begin in enumerate(starts):
        for last in range(first, len(starts)):
            # burst, slack, and 0.3 s that a start may be late in saying so on a busy machine
            assert last - first + 1 <= 1 + 2 + (starts[last] - begin + 0.3) * 20 + 1


@pytest.mark.slow
async def test_nested_limits_return_tokens(server):
    """A task that an inner limit postpones takes no token of an outer one."""
    done = []

    @task(retries=0)
    async def inner(number):
        done.append(number)

    outer = RateLimitMiddleware(1000.0, scope="fleet", name="all")
    narrow = RateLimitMiddleware(20.0, scope="fleet")
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([inner.call(number) for number in range(10)])
        await burst(broker, inner, middleware=MiddlewareChain(outer, narrow))
    assert sorted(done) == list(range(10))
