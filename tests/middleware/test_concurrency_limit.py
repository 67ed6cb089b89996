"""The concurrency limit: one worker and several, tasks that wait or are passed over, workers that are killed."""

from __future__ import annotations

import contextlib
import time

import anyio
import pytest

from streamq import RedisBroker, RetryLater, Worker, task
from streamq.errors import BrokerUnavailableError, ConfigurationError
from streamq.middleware import ConcurrencyLimit, Context, MiddlewareChain, RateLimitMiddleware
from streamq.middleware.concurrency_commands import Waiter
from streamq.middleware.concurrency_permits import Permits
from streamq.middleware.limit_reached import LimitReached
from streamq.queue.refusals import Refusals
from streamq.queue.store import Store
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import dumps
from streamq.wire.tiers import DEFAULT_TIERS
from tests.at_work import assert_nothing_left, burst, dead, until, working
from tests.crew import Crew, say
from tests.middleware.limit_by_hand import DELAYED, PERMITS, RESERVED, WAITING, Scripted, card

pytestmark = pytest.mark.paired("memory")


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


# --- at work -----------------------------------------------------------------------------------------


@task
async def limited():
    """Do nothing."""


def context(store, headers="{}", starts=0):
    flat = [b"task", b"limited", b"headers", headers.encode(), b"starts", str(starts).encode()]
    return Context(limited, Delivery(1, "standard", b"1-0", flat), [], {}, store)


class Away:
    """A store whose server cannot be used."""

    refusals = Refusals()
    keys = Keys.of("queue", "workers", DEFAULT_TIERS)

    def member(self, task_id):
        return f"workers|{task_id}"

    async def one(self, command):
        raise BrokerUnavailableError("down")


class TestMiddleware:
    async def test_without_a_server_tasks_are_postponed_and_keep_their_place(self):
        limit = ConcurrencyLimit(1)
        mine = ["1-0 0 queue:standard:delayed workers|1-0", "1700", 2]
        for headers in ({}, {"concurrency:limited": mine}):
            with pytest.raises(LimitReached, match="cannot be asked for a permit") as info:
                await limit(context(Away(), dumps(headers).decode(), starts=1), None)
            assert 1.0 <= info.value.after <= 2.0
            kept = (info.value.headers or {}).get("concurrency:limited")
            assert kept == ([*mine[:2], 3] if headers else None)

    @pytest.mark.parametrize(
        "odd", [1, [], ["a", "1", 1], ["1-0 0 queue:secret m", "1", 1], ["1-0 0 a:delayed m", 1, 1]]
    )
    async def test_nonsense_in_the_header_is_ignored(self, odd):
        waiter = ConcurrencyLimit(1)._waiter(context(Away(), dumps({"concurrency:limited": odd}).decode()), "limited")
        assert waiter == Waiter("limited", "1-0 0 queue:standard:delayed workers|1-0")

    @pytest.mark.parametrize(
        "forged",
        [
            ["1-0 0 queue:standard:delayed workers|1-0", "0", 1],
            ["1-0 0 queue:standard:delayed workers|1-0", "999", 1],
            ["1-0 0 queue:standard:delayed workers|other", "1700", 1],
            ["1-0 0 queue:bulk:delayed workers|1-0", "1700", 1],
            ["1-0 5 queue:standard:delayed workers|1-0", "1700", 1],
            ["1-0 0 queue:standard:delayed others|1-0", "1700", 1],
            [" 0 queue:standard:delayed workers|1-0", "1700", 1],
        ],
    )
    async def test_a_forged_header_jumps_no_line(self, forged):
        """A place must be that of this task, and not older than the task."""
        waiter = ConcurrencyLimit(1)._waiter(
            context(Away(), dumps({"concurrency:limited": forged}).decode()), "limited"
        )
        assert waiter.since == ""

    async def test_a_permit_is_released_however_the_run_ends(self, server):
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

    async def test_a_release_that_fails_is_made_later(self, any_server):
        """The server was away when the run ended: the permit is released when it is back."""
        async with RedisBroker(any_server.url) as broker:
            permits = Permits(broker.store, 1, 30.0)
            await permits.acquire(Waiter("t", "1-0 0 queue:standard:delayed m"), "r")
            real, permits._store = permits._store, Away()
            permits._store.clock = real.clock
            await permits.release("t", "r")
            assert card(any_server, PERMITS) == 1
            permits._store = real
            async with anyio.create_task_group() as group:
                group.start_soon(permits.maintain_forever)
                await until(lambda: not card(any_server, PERMITS))
                group.cancel_scope.cancel()

    async def test_a_run_that_is_cancelled_while_it_asks_leaves_no_permit(self, any_server):
        """The server has granted it, and nobody reads the answer."""
        async with RedisBroker(any_server.url) as broker:
            limit, real = ConcurrencyLimit(1), broker.store.one

            async def no_answer(command):
                await real(command)
                await anyio.sleep_forever()

            broker.store.one = no_answer
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

    async def test_a_run_that_is_cancelled_while_it_asks_releases_its_permit_itself(self, any_server):
        """Its worker may end, too: no loop beside the runs is needed."""
        async with RedisBroker(any_server.url) as broker:
            limit, real, granted = ConcurrencyLimit(1), broker.store.one, anyio.Event()

            async def first_unanswered(command):
                reply = await real(command)
                if not granted.is_set():
                    assert reply[0] == 1
                    granted.set()
                    await anyio.sleep_forever()
                return reply

            broker.store.one = first_unanswered
            async with anyio.create_task_group() as group:
                group.start_soon(limit, context(broker.store), None)
                await granted.wait()
                assert card(any_server, "queue:permits:limited") == 1
                group.cancel_scope.cancel()
            assert any_server.keys() == []

    async def test_a_worker_that_ends_makes_the_deferred_releases(self, any_server):
        """What waited for the next round of its loop is not left to the end of the lease."""
        async with RedisBroker(any_server.url) as broker:
            limit = ConcurrencyLimit(1)
            permits = limit._permits_of(broker.store)
            await permits.acquire(Waiter("t", "1-0 0 queue:standard:delayed m"), "r")
            async with anyio.create_task_group() as group:
                group.start_soon(limit.live, broker.store)
                await anyio.wait_all_tasks_blocked()
                permits._forget("t", "r")
                permits._release_later("t", "r")
                group.cancel_scope.cancel()
        assert any_server.keys() == []

    async def test_a_lost_permit_is_counted_and_the_run_goes_on(self, any_server, caplog):
        async with RedisBroker(any_server.url) as broker:
            permits = Permits(broker.store, 1, 0.3)
            await permits.acquire(Waiter("t", "1-0 0 queue:standard:delayed m"), "r")
            any_server.command("DEL", PERMITS)
            async with anyio.create_task_group() as group:
                group.start_soon(permits.maintain_forever)
                await until(lambda: permits.lost)
                group.cancel_scope.cancel()
        assert permits.lost == 1
        (line,) = [text for text in caplog.messages if "had lost permits" in text]
        assert line.startswith("1 run of t had lost permits, and took them again")
        assert "not renewed for 0.3 s, or deleted (FLUSHALL" in line
        assert permits.running == 1
        assert any_server.command("ZCARD", PERMITS) == 1


class TestAtWork:
    @pytest.mark.slow
    async def test_four_workers_keep_the_limit_and_waste_little(self, any_server):
        """The limit holds for all together, and a released permit is passed on at once."""
        maximum, count, length = 5, 50, 0.2
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
                    Worker(broker, [narrow], concurrency=10, middleware=MiddlewareChain(ConcurrencyLimit(maximum)))
                    for broker in brokers
                ]
                for worker in workers:
                    await group.start(worker.run)
                await until(lambda: gauge.total == count and not gauge.now, 40)
                took = time.monotonic() - began[0]
                for worker in workers:
                    worker.stop()
        assert gauge.most == maximum
        assert dead(any_server) == []
        used = count * length / (took * maximum)
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
        other.acquire(99)
        async with RedisBroker(server.url) as broker:
            for number in range(3):
                await broker.enqueue(t, number)
            await broker.enqueue(free, 0)
            limit = ConcurrencyLimit(1, key=lambda context: context.task.name)
            async with working(broker, t, free, concurrency=1, middleware=MiddlewareChain(limit)):
                await until(lambda: done == ["free 0"] and card(server, DELAYED) == 3)
                server.command("PING")
                other.run("permit_release", 1, 2000, "queue:wake", "run99")
                await until(lambda: len(done) == 4)
        assert done == ["free 0", 0, 1, 2]
        assert_nothing_left(server)

    @pytest.mark.slow
    async def test_nothing_polls_for_waiters(self, any_server):
        """2,000 tasks wait for a permit that is not released."""
        count = 2000

        @task(retries=0)
        async def t(number):
            pass

        def scripts():
            lines = any_server.command("INFO", "commandstats").decode().splitlines()
            evals = [line for line in lines if line.startswith("cmdstat_eval")]
            return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in evals)

        Scripted(any_server).acquire(-1)
        async with RedisBroker(any_server.url) as broker:
            await broker.enqueue_many([t.call(number) for number in range(count)])
            async with working(broker, t, middleware=MiddlewareChain(ConcurrencyLimit(1))):
                await until(lambda: card(any_server, DELAYED) == count, 30)
                await anyio.sleep(0.6)  # the checks of the last waiters
                before = scripts()
                await anyio.sleep(1.0)
                assert scripts() - before <= 15  # renewals, sweeps, and the scheduler's tick
        assert card(any_server, WAITING) == count
        dues = [float(due) for due in any_server.command("ZRANGE", DELAYED, 0, -1, "WITHSCORES")[1::2]]
        assert min(dues) / 1000 > time.time() + 200  # they ask by themselves after minutes, and not together:
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
    async def test_a_cancelled_and_an_expired_waiter_do_not_block_the_others(self, any_server):
        done = []

        @task(retries=0)
        async def t(number):
            done.append(number)

        other = Scripted(any_server)
        other.acquire(99)
        async with RedisBroker(any_server.url) as broker:
            first = await broker.enqueue(t, 1)
            await broker.enqueue(t.options(expires=1.5), 2)
            await broker.enqueue(t, 3)
            async with working(broker, t, middleware=MiddlewareChain(ConcurrencyLimit(1))):
                await until(lambda: card(any_server, DELAYED) == 3)
                assert await first.cancel()
                await until(lambda: [letter["reason"] for letter in dead(any_server)] == ["expired"])
                other.run("permit_release", 1, 2000, "queue:wake", "run99")
                await until(lambda: done == [3], 15)

    async def test_a_waiter_takes_no_token_of_a_rate_limit_around_it(self, any_server):
        """The token is returned, and a waiter that gets a permit does not wait for another token."""
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

    @pytest.mark.parametrize("how", ["stop", "stop at once", "cancel"])
    async def test_a_waiter_whose_worker_ends_as_it_is_delayed_keeps_its_place(self, real_server, monkeypatch, how):
        """It was passed over between the answer and its postponement: on its way, it looked like one that is gone."""
        done, ended, other = [], [], Scripted(real_server)

        @task(retries=0)
        async def t(number):
            done.append(number)

        async def told_to_wait(permits, waiter, run):
            waiting = await acquire(permits, waiter, run)
            if waiting is not None and not ended:
                ended.append(waiting)
                # It asks again after a minute, say: its tier had a backlog.
                real_server.command("ZADD", WAITING, "XX", (time.time() - 60) * 1e6, waiter.identity)
                other.run("permit_release", 1, 2000, "queue:wake", "run99")
                assert card(real_server, WAITING) == card(real_server, RESERVED) == 0
                if how == "cancel":
                    scope.cancel()
                else:
                    worker.stop()
                    if how == "stop at once":
                        worker.stop()
            return waiting

        acquire = Permits.acquire
        monkeypatch.setattr(Permits, "acquire", told_to_wait)
        chain = MiddlewareChain(ConcurrencyLimit(1))
        other.acquire(99)
        async with RedisBroker(real_server.url) as broker:
            await broker.enqueue(t, 1)
            worker = Worker(broker, [t], middleware=chain)
            with anyio.CancelScope() as scope:
                await worker.run()
            assert ended
            assert card(real_server, DELAYED) == card(real_server, WAITING) == 1
            async with working(broker, t, middleware=chain):
                await until(lambda: done == [1], 10)
        assert_nothing_left(real_server)

    async def test_a_waiter_whose_postponement_was_refused_at_first_keeps_its_place(self, any_server, monkeypatch):
        """It is delayed later, apart from the others, and was passed over by then."""
        done, told, other = [], [], Scripted(any_server)
        messages = f"{DELAYED.removesuffix(':delayed')}:messages"

        @task(retries=0)
        async def t(number):
            done.append(number)

        async def told_to_wait(permits, waiter, run):
            waiting = await acquire(permits, waiter, run)
            if waiting is not None and not told:
                told.append(waiting)
                any_server.command("SET", messages, "of somebody else")
                any_server.command("ZADD", WAITING, "XX", (time.time() - 60) * 1e6, waiter.identity)
                other.run("permit_release", 1, 2000, "queue:wake", "run99")
            return waiting

        acquire = Permits.acquire
        monkeypatch.setattr(Permits, "acquire", told_to_wait)
        other.acquire(99)
        async with RedisBroker(any_server.url) as broker:
            await broker.enqueue(t, 1)
            async with working(broker, t, middleware=MiddlewareChain(ConcurrencyLimit(1))) as worker:
                await until(lambda: worker.health.refused)
                any_server.command("DEL", messages)
                await until(lambda: done == [1], 10)
        assert_nothing_left(any_server)

    @pytest.mark.slow
    async def test_a_worker_of_other_tiers_wakes_a_waiter(self, any_server):
        """The worker of the run serves the critical tier only; the waiter is in the bulk tier."""
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
    """It held all permits: within a lease and a sweep the other worker has them, and all tasks are done."""
    server = any_server
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([crew_narrow.call(n, 3.0) for n in range(2)])
        with Crew("tests.middleware.test_concurrency_limit", server, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim")
            await anyio.to_thread.run_sync(crew.until, "run", 2)
            await broker.enqueue_many([crew_narrow.call(n, 0.0) for n in range(2, 6)])
            crew.start("other")
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


def test_each_store_has_permits_of_its_own():
    """One object serves several workers."""
    limit = ConcurrencyLimit(1)
    stores = [Store(None, Keys.of("q", "g", []), []) for _ in range(2)]
    assert limit._permits_of(stores[0]) is limit._permits_of(stores[0])
    assert limit._permits_of(stores[0]) is not limit._permits_of(stores[1])
