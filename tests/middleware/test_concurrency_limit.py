"""The concurrency limit: one worker and several, who waits and who is passed over, workers that are killed."""

from __future__ import annotations

import contextlib
import time

import anyio
import pytest

from streamq import RedisBroker, RetryLater, Worker, task
from streamq.errors import BrokerUnavailableError, ConfigurationError
from streamq.middleware import ConcurrencyLimit, Context, MiddlewareChain, RateLimitMiddleware
from streamq.middleware.permits import Permits, Place
from streamq.middleware.rate_limit import HeldBack
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import dumps
from streamq.wire.tiers import DEFAULT_TIERS
from tests.at_work import assert_nothing_left, burst, dead, until, working
from tests.crew import Crew, say
from tests.servers import fresh_server

PERMITS, CALLED, LINE, LIMITS = (f"queue:{name}" for name in ("permits:t", "called:t", "line:t", "limits"))
DELAYED = "queue:standard:delayed"


def card(server, key):
    return server.command("ZCARD", key)


@pytest.fixture
def any_server(anyio_backend, shared_server):
    """One kind of real server for each backend."""
    return shared_server("valkey" if anyio_backend == "asyncio" else "redis")


class Gauge:
    """How many run at once, at most."""

    def __init__(self):
        self.now = self.most = self.total = 0

    def __enter__(self):
        self.now += 1
        self.total += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *_):
        self.now -= 1


class TestOptions:
    @pytest.mark.parametrize(
        "wrong", [{"max_running": 0}, {"max_running": 1.5}, {"lease": 0.1}, {"scope": "process"}, {"key": "{}"}]
    )
    def test_must_make_sense(self, wrong):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            ConcurrencyLimit(**{"max_running": 1, **wrong})

    def test_repr(self):
        assert repr(ConcurrencyLimit(3, name="api")) == "<ConcurrencyLimit api 3 running=0 lost=0>"


# --- the scripts, one step at a time ---------------------------------------------------------------


class Scripted:
    """One limit of the name `t`, by hand."""

    def __init__(self, server, bound=1, grant=2000, lease=30_000):
        self.server, self.bound, self.grant, self.lease = server, bound, grant, lease

    def run(self, name, *arguments):
        keys = [PERMITS, CALLED, LINE, LIMITS, DELAYED]
        reply = self.server.command("EVAL", step(name).source, len(keys), *keys, "t", *arguments)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def place(self, number, expires=0, key=DELAYED):
        return f"{number}-0 {expires} {key} workers:{number}"

    def take(self, number, since="", run=None, **place):
        run = run or f"run{number}"
        reply = self.run(
            "permit_take", self.bound, self.lease, self.grant, "wake", run, self.place(number, **place), since
        )
        return reply[0] == 1, reply[1].decode(), reply[3:]

    def give(self, *runs):
        return self.run("permit_give", self.bound, self.grant, "wake", *runs)

    def renew(self, *runs):
        return self.run("permit_renew", self.bound, self.lease, self.grant, "wake", *runs)[0]

    def look(self, number, since):
        return self.run("permit_look", self.bound, self.grant, "wake", self.place(number), since)[1:]

    def sweep(self):
        self.run("permit_sweep", self.grant, "wake")

    def delay(self, number, seconds=300):
        due = round((time.time() + seconds) * 1000)
        self.server.command("ZADD", DELAYED, due, f"workers:{number}")

    def left(self, number):
        """Return in how many seconds one is due."""
        return float(self.server.command("ZSCORE", DELAYED, f"workers:{number}")) / 1000 - time.time()

    def called(self):
        return [place.decode().split()[0] for place in self.server.command("ZRANGE", CALLED, 0, -1)]

    def line(self):
        return [place.decode().split()[0] for place in self.server.command("ZRANGE", LINE, 0, -1)]


class TestScripts:
    def test_who_gives_back_wakes_exactly_the_next(self, server):
        """The first of the line is due now and has a permit kept; the second stays where it is."""
        limit = Scripted(server)
        assert limit.take(1)[0]
        for number in (2, 3):
            assert not limit.take(number)[0]
            limit.delay(number)
        assert limit.give("run1") == [1]
        assert limit.called() == ["2-0"]
        assert limit.line() == ["3-0"]
        assert limit.left(2) < 0.5
        assert limit.left(3) > 250
        assert not limit.take(4)[0]  # it is kept
        assert limit.take(2, since="1")[0]
        assert limit.give("run1") == [0]  # once is enough
        assert limit.called() == []

    def test_one_that_is_called_before_it_is_delayed_is_woken_by_the_look_after_it(self, server):
        """The release came between the answer and the postponement."""
        limit = Scripted(server)
        limit.take(1)
        _, since, _ = limit.take(2)
        limit.give("run1")
        assert limit.called() == ["2-0"]
        assert limit.look(2, since) == []  # not yet
        limit.delay(2)
        assert len(limit.look(2, since)) == 1
        assert limit.left(2) < 0.5

    def test_one_that_waits_needs_no_further_look(self, server):
        limit = Scripted(server)
        limit.take(1)
        _, since, _ = limit.take(2)
        assert limit.look(2, since) == []
        limit.delay(2)
        assert len(limit.look(2, since)) == 1
        assert limit.left(2) > 250
        assert limit.line() == ["2-0"]

    def test_one_that_came_and_has_its_permit_needs_no_further_look(self, server):
        limit = Scripted(server)
        limit.take(1)
        _, since, _ = limit.take(2)
        limit.give("run1")
        assert limit.take(2, since)[0]
        limit.delay(2)  # as a retry
        assert len(limit.look(2, since)) == 1
        assert limit.left(2) > 250
        assert limit.line() == []

    def test_one_that_was_withdrawn_is_passed_over(self, server):
        """It has waited for a while and is not among the delayed: no permit is kept for it."""
        limit = Scripted(server)
        limit.take(1)
        long_ago = str(round((time.time() - 60) * 1e6))
        for number in (2, 3, 4):
            limit.take(number, since=long_ago)
        limit.take(5)
        limit.delay(5)
        limit.give("run1")
        assert limit.called() == ["5-0"]

    def test_one_that_has_expired_is_woken_to_die_and_no_permit_is_kept(self, server):
        limit = Scripted(server)
        limit.take(1)
        limit.take(2, expires=1)
        limit.delay(2)
        limit.take(3)
        limit.delay(3)
        limit.give("run1")
        assert limit.left(2) < 0.5
        assert limit.called() == ["3-0"]

    def test_one_that_was_taken_for_gone_while_it_was_on_its_way_stands_in_line_again(self, server):
        limit = Scripted(server)
        limit.take(1)
        long_ago = str(round((time.time() - 60) * 1e6))
        limit.take(2, since=long_ago)
        limit.give("run1")
        limit.take(3)
        assert limit.line() == []
        limit.delay(2)
        assert len(limit.look(2, long_ago)) == 1
        assert limit.line() == ["2-0"]

    def test_a_permit_that_nobody_comes_for_goes_to_the_next(self, server):
        """And the one that did not come is woken once more, in case it had not heard."""
        limit = Scripted(server, grant=1)
        limit.take(1)
        for number in (2, 3):
            limit.take(number)
        limit.give("run1")
        limit.delay(2)
        limit.delay(3)
        time.sleep(0.005)
        limit.grant = 2000
        limit.sweep()
        assert limit.called() == ["3-0"]
        assert limit.left(2) < 0.5

    def test_one_that_was_called_and_comes_late_goes_before_those_that_are_not_here(self, server):
        """A backlog kept it for longer than its permit was: it takes that of another on the way."""
        limit = Scripted(server)
        limit.take(1)
        _, since, _ = limit.take(2)
        limit.take(3)
        limit.grant = 1
        limit.give("run1")
        time.sleep(0.005)
        limit.grant = 2000
        limit.sweep()
        assert limit.called() == ["3-0"]
        assert limit.take(2, since)[0]
        assert not limit.take(3, since="5")[0]
        assert limit.line() == ["3-0"]

    def test_one_that_asks_by_itself_does_not_overtake(self, server):
        """Its far due time came before its turn: it keeps its place."""
        limit = Scripted(server)
        limit.take(1)
        _, first, _ = limit.take(2)
        _, second, _ = limit.take(3)
        limit.give("run1")
        assert not limit.take(3, second)[0]
        assert limit.called() == ["2-0"]
        assert limit.line() == ["3-0"]
        assert limit.take(2, first)[0]

    def test_permits_of_the_dead_go_to_those_who_wait(self, server):
        """By the step of anyone, or by a sweep; `limits` says when one is due."""
        limit = Scripted(server, bound=2, lease=1)
        limit.take(1)
        limit.take(2)
        limit.lease = 30_000
        limit.delay(3)
        limit.delay(4)
        time.sleep(0.005)
        assert float(server.command("ZSCORE", LIMITS, "t")) / 1000 < time.time()
        assert limit.take(3)[0]
        assert limit.take(4)[0]
        assert not limit.take(5)[0]
        limit.lease = 1
        limit.renew("run3", "run4")
        limit.delay(5)
        time.sleep(0.005)
        limit.sweep()
        assert limit.called() == ["5-0"]

    def test_a_lost_permit_is_taken_again_and_counted(self, server):
        """Even beyond the bound: then nobody else starts until there is room."""
        limit = Scripted(server, lease=1)
        limit.take(1)
        limit.lease = 30_000
        time.sleep(0.005)
        assert limit.take(2)[0]
        assert limit.renew("run1", "run2") == 1
        assert card(server, PERMITS) == 2
        limit.give("run1")
        assert not limit.take(3)[0]

    def test_waiters_of_other_tiers_are_told_to_the_caller(self, server):
        """A worker that does not serve their tier wakes them with a second step."""
        limit = Scripted(server)
        limit.take(1)
        limit.take(2, key="queue:bulk:delayed")
        server.command("ZADD", "queue:bulk:delayed", 1 << 50, "workers:2")
        (_, foreign) = limit.give("run1")
        assert foreign.decode() == limit.place(2, key="queue:bulk:delayed")
        wake = step("permit_wake").source
        assert server.command("EVAL", wake, 1, "queue:bulk:delayed", "wake", "workers:2:2-0", "workers:2") == 1
        assert float(server.command("ZSCORE", "queue:bulk:delayed", "workers:2")) <= time.time() * 1000 + 1

    def test_all_keys_have_a_ttl_and_are_gone_when_nothing_is_held(self, server):
        limit = Scripted(server)
        limit.take(1)
        limit.take(2)
        assert all(server.command("PTTL", key) > 0 for key in (PERMITS, LINE, LIMITS))
        limit.give("run1")
        assert server.command("PTTL", CALLED) > 0
        limit.take(2, since="1")
        limit.give("run2")
        assert server.keys() == []

    def test_a_full_server_keeps_the_limit(self):
        with fresh_server("valkey") as server:
            limit = Scripted(server)
            server.command("CONFIG", "SET", "maxmemory", "1")
            assert "OOM" in str(server.command("SET", "a", "b"))
            assert limit.take(1)[0]
            assert not limit.take(2)[0]
            limit.renew("run1")
            limit.give("run1")
            assert limit.called() == ["2-0"]


# --- at work -----------------------------------------------------------------------------------------


@task
async def limited():
    """Do nothing."""


def context(store, headers="{}", starts=0):
    flat = [b"task", b"limited", b"headers", headers.encode(), b"starts", str(starts).encode()]
    return Context(limited, Delivery(1, "standard", b"1-0", flat), [], {}, store)


class Away:
    """A store whose server cannot be used."""

    keys = Keys.of("queue", "workers", DEFAULT_TIERS)

    def member(self, task_id):
        return f"workers:{task_id}"

    async def one(self, command):
        raise BrokerUnavailableError("down")


class TestMiddleware:
    async def test_without_a_server_tasks_are_put_off_and_keep_their_place(self):
        limit = ConcurrencyLimit(1)
        mine = ["1-0 0 queue:standard:delayed workers:1-0", "17", 2]
        for headers in ({}, {"concurrency:limited": mine}):
            with pytest.raises(HeldBack, match="no permit") as info:
                await limit(context(Away(), dumps(headers).decode(), starts=1), None)
            assert 1.0 <= info.value.after <= 2.0
            kept = (info.value.headers or {}).get("concurrency:limited")
            assert kept == ([*mine[:2], 3] if headers else None)

    @pytest.mark.parametrize(
        "odd", [1, [], ["a", "1", 1], ["1-0 0 queue:secret m", "1", 1], ["1-0 0 a:delayed m", 1, 1]]
    )
    async def test_nonsense_in_the_header_is_no_place(self, odd):
        place = ConcurrencyLimit(1)._place(context(Away(), dumps({"concurrency:limited": odd}).decode()), "limited")
        assert place == Place("limited", "1-0 0 queue:standard:delayed workers:1-0")

    async def test_a_permit_is_given_back_however_the_run_ends(self, server):
        """Done, failed, cancelled: none is left."""
        limit = ConcurrencyLimit(1)
        async with RedisBroker(server.url) as broker:

            async def fails(_):
                assert limit.running == 1
                raise OSError("broken")

            async def hangs(_):
                await anyio.sleep_forever()

            with pytest.raises(OSError, match="broken"):
                await limit(context(broker.store), fails)
            with anyio.move_on_after(0.05):
                await limit(context(broker.store), hangs)
            assert limit.running == 0
        assert server.keys() == []

    async def test_what_cannot_be_given_back_is_owed(self, any_server):
        """The server was away when the run ended: the resident says it later."""
        async with RedisBroker(any_server.url) as broker:
            permits = Permits(broker.store, 1, 30.0)
            await permits.take(Place("t", "1-0 0 queue:standard:delayed m"), "r")
            real, permits._store = permits._store, Away()
            permits._store.clock = real.clock
            await permits.give("t", "r")
            assert card(any_server, PERMITS) == 1
            permits._store = real
            async with anyio.create_task_group() as group:
                group.start_soon(permits.keep_forever)
                await until(lambda: not card(any_server, PERMITS))
                group.cancel_scope.cancel()

    async def test_who_is_cancelled_while_it_asks_leaves_no_permit(self, any_server):
        """The server has granted it, and the answer finds nobody."""
        async with RedisBroker(any_server.url) as broker:
            limit, real = ConcurrencyLimit(1), broker.store.one

            async def deaf(command):
                await real(command)
                await anyio.sleep_forever()

            broker.store.one = deaf
            with anyio.move_on_after(5) as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(limit, context(broker.store), None)
                    await until(any_server.keys)
                    group.cancel_scope.cancel()
            assert not scope.cancelled_caught
            broker.store.one = real
            async with anyio.create_task_group() as group:
                group.start_soon(limit.live, broker.store)
                await until(lambda: not any_server.keys())
                group.cancel_scope.cancel()

    async def test_a_lost_permit_is_counted_and_the_run_goes_on(self, any_server, caplog):
        async with RedisBroker(any_server.url) as broker:
            permits = Permits(broker.store, 1, 0.3)
            await permits.take(Place("t", "1-0 0 queue:standard:delayed m"), "r")
            any_server.command("DEL", PERMITS)
            async with anyio.create_task_group() as group:
                group.start_soon(permits.keep_forever)
                await until(lambda: permits.lost)
                group.cancel_scope.cancel()
        assert permits.lost == 1
        assert "lost their permits" in caplog.text
        assert permits.running == 1


class TestAtWork:
    @pytest.mark.slow
    async def test_four_workers_of_ten_run_no_more_than_the_bound_and_waste_little(self, any_server):
        """The bound holds for all together, and a freed permit is handed on at once."""
        bound, count, length = 5, 50, 0.2
        gauge, began, order = Gauge(), [], []

        @task(retries=0)
        async def narrow(number):
            with gauge:
                began.append(time.monotonic())
                order.append(number)
                await anyio.sleep(length)

        async with contextlib.AsyncExitStack() as stack:
            brokers = [await stack.enter_async_context(RedisBroker(any_server.url)) for _ in range(4)]
            await brokers[0].enqueue_many([narrow.call(number) for number in range(count)])
            async with anyio.create_task_group() as group:
                workers = [
                    Worker(broker, [narrow], concurrency=10, middleware=MiddlewareChain(ConcurrencyLimit(bound)))
                    for broker in brokers
                ]
                for worker in workers:
                    await group.start(worker.run)
                await until(lambda: gauge.total == count and not gauge.now, 40)
                took = time.monotonic() - began[0]
                for worker in workers:
                    worker.stop()
        assert gauge.most == bound
        assert dead(any_server) == []
        used = count * length / (took * bound)
        print(f"permits in use {used:.0%} of the time, out of order by at most {max_shift(order)}")
        assert used >= 0.8
        assert max_shift(order) <= 45  # what four workers have in hand when they first ask
        assert_nothing_left(any_server)

    async def test_no_slot_is_held_and_no_attempt_spent(self, server):
        """With one slot and no retries, others run while a limited task waits for a permit held elsewhere."""
        done = []

        @task(retries=0)
        async def t(number):
            done.append(number)

        @task(retries=0)
        async def free(number):
            done.append(f"free {number}")

        other = Scripted(server)
        other.take(99)
        async with RedisBroker(server.url) as broker:
            for number in range(3):
                await broker.enqueue(t, number)
            await broker.enqueue(free, 0)
            limit = ConcurrencyLimit(1, key=lambda context: context.task.name)
            async with working(broker, t, free, concurrency=1, middleware=MiddlewareChain(limit)):
                await until(lambda: done == ["free 0"] and card(server, DELAYED) == 3)
                server.command("PING")
                other.run("permit_give", 1, 2000, "queue:wake", "run99")
                await until(lambda: len(done) == 4)
        assert done == ["free 0", 0, 1, 2]
        assert_nothing_left(server)

    @pytest.mark.slow
    async def test_many_that_wait_are_left_alone(self, any_server):
        """2,000 tasks wait for a permit that is not given back: nobody polls for them."""
        count = 2000

        @task(retries=0)
        async def t(number):
            pass

        def scripts():
            lines = any_server.command("INFO", "commandstats").decode().splitlines()
            evals = [line for line in lines if line.startswith("cmdstat_eval")]
            return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in evals)

        Scripted(any_server).take(-1)
        async with RedisBroker(any_server.url) as broker:
            await broker.enqueue_many([t.call(number) for number in range(count)])
            async with working(broker, t, middleware=MiddlewareChain(ConcurrencyLimit(1))):
                await until(lambda: card(any_server, DELAYED) == count, 30)
                await anyio.sleep(0.6)  # the looks after those who came last
                before = scripts()
                await anyio.sleep(1.0)
                assert scripts() - before <= 15  # renewals, sweeps, and the scheduler's tick
        assert card(any_server, LINE) == count
        dues = [float(due) for due in any_server.command("ZRANGE", DELAYED, 0, -1, "WITHSCORES")[1::2]]
        assert min(dues) / 1000 > time.time() + 200  # by themselves they ask after minutes, and not together:
        assert max(dues) - min(dues) > 200_000

    async def test_by_key_and_with_a_burst(self, server):
        """Each value of the key has its own permits; a burst worker ends when all have run."""
        gauges = {"a": Gauge(), "b": Gauge()}

        @task(retries=0)
        async def of(customer):
            with gauges[customer]:
                await anyio.sleep(0.02)

        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([of.call(name) for name in "ab" * 8])
            await burst(broker, of, middleware=MiddlewareChain(ConcurrencyLimit(1, key="customer:{customer}")))
        assert [(gauge.most, gauge.total) for gauge in gauges.values()] == [(1, 8), (1, 8)]
        assert_nothing_left(server)

    @pytest.mark.slow
    async def test_a_withdrawn_and_an_expired_waiter_do_not_block_the_line(self, any_server):
        done = []

        @task(retries=0)
        async def t(number):
            done.append(number)

        other = Scripted(any_server)
        other.take(99)
        async with RedisBroker(any_server.url) as broker:
            first = await broker.enqueue(t, 1)
            await broker.enqueue(t.options(expires=0.5), 2)
            await broker.enqueue(t, 3)
            async with working(broker, t, middleware=MiddlewareChain(ConcurrencyLimit(1))):
                await until(lambda: card(any_server, DELAYED) == 3)
                assert await first.cancel()
                await until(lambda: [letter["reason"] for letter in dead(any_server)] == ["expired"])
                other.run("permit_give", 1, 2000, "queue:wake", "run99")
                await until(lambda: done == [3], 15)

    async def test_a_limit_of_starts_around_it_pays_nothing_for_those_who_wait(self, any_server):
        """The rate limit's token comes back, and who is called does not wait for another time."""
        gauge = Gauge()

        @task(retries=0)
        async def both(number):
            with gauge:
                await anyio.sleep(0.03)
                if number == 3 and gauge.total < 10:
                    raise RetryLater(after=0.01)

        chain = MiddlewareChain(RateLimitMiddleware(200.0, scope="fleet"), ConcurrencyLimit(2))
        async with RedisBroker(any_server.url) as broker:
            await broker.enqueue_many([both.call(number) for number in range(12)])
            await burst(broker, both, middleware=chain)
        assert gauge.total >= 12
        assert gauge.most <= 2

    @pytest.mark.slow
    async def test_a_worker_of_other_tiers_wakes_who_waits(self, any_server):
        """The one that ends serves the critical tier only, the one that waits is in bulk."""
        done = []

        @task(retries=0)
        async def t(number):
            done.append(number)
            await anyio.sleep(0.3 if number == 1 else 0)

        limit = ConcurrencyLimit(1)
        options = {"middleware": MiddlewareChain(limit)}
        async with RedisBroker(any_server.url) as broker, working(broker, t, tiers={"critical": 1}, **options):
            await broker.enqueue(t.options(tier="critical"), 1)
            await until(lambda: done)
            async with working(broker, t, tiers={"bulk": 1}, **options):
                await broker.enqueue(t.options(tier="bulk"), 2)
                await until(lambda: done == [1, 2], 10)


def max_shift(order):
    """Return by how many places anything was out of order."""
    return max(abs(number - at) for at, number in enumerate(order))


# --- under faults --------------------------------------------------------------------------------------


@task(validate=False, name="crew_narrow", middleware=[ConcurrencyLimit(2, lease=1.0)])
async def crew_narrow(n: int, seconds: float) -> None:
    say(f"run {n}")
    await anyio.sleep(seconds)
    say(f"done {n}")


TASKS = [crew_narrow]


@pytest.mark.slow
async def test_the_permits_of_a_worker_that_is_killed_come_back(anyio_backend, any_server, tmp_path):
    """It held all of them: within a lease and a sweep the others have them, and all tasks are done."""
    server = any_server
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([crew_narrow.call(n, 3.0) for n in range(2)])
        with Crew("tests.middleware.test_concurrency_limit", server, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim")
            await anyio.to_thread.run_sync(crew.until, "run", 2)
            await broker.enqueue_many([crew_narrow.call(n, 0.0) for n in range(2, 6)])
            crew.start("heir")
            await until(lambda: card(server, "queue:line:crew_narrow") == 4, 20)
            assert card(server, "queue:permits:crew_narrow") == 2
            victim.kill()
            victim.wait()
            killed = time.monotonic()
            await anyio.to_thread.run_sync(crew.until, "done", 1)
            print(f"a permit came back after {time.monotonic() - killed:.2f} s")
            await until(lambda: {line.split()[1] for line in crew.lines("done")} == set("012345"), 40)
            await until(lambda: not server.command("EXISTS", "queue:limits"))
        for name in server.keys():  # noqa: SIM118
            assert not name.startswith(("queue:permits", "queue:called", "queue:line")), name


def test_stores_are_told_apart():
    """One object serves several workers: what each holds is its own."""
    limit = ConcurrencyLimit(1)
    stores = [Store(None, Keys.of("q", "g", []), []) for _ in range(2)]
    assert limit._of(stores[0]) is limit._of(stores[0])
    assert limit._of(stores[0]) is not limit._of(stores[1])
