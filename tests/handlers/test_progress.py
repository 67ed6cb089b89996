"""Progress: what a task reports, who gets the reports, what they cost, and when they end."""

from __future__ import annotations

import functools
import logging
import time
from contextlib import aclosing

import anyio
import orjson
import pytest

from streamq import (
    Progress,
    RedisBroker,
    Worker,
    cancel_requested,
    current_cancellation,
    current_delivery,
    gather,
    report_progress,
    report_progress_sync,
    task,
)
from streamq.consumer.progress_reporter import KEPT, KEPT_AFTER
from streamq.errors import BrokerError, ConfigurationError
from streamq.middleware import MiddlewareChain
from tests.at_work import assert_nothing_left, burst, until, working
from tests.crew import Crew, say
from tests.queue.test_gather import commands, spent
from tests.servers import fresh_server


@pytest.fixture(name="broker")  # a worker of this module would take it for its own
async def opened(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def key(handle):
    return f"queue:progress:{handle.task_id}"


async def test_what_a_task_reports_can_be_read_while_it_runs(server, broker):
    """And for a while after its end; before the first report there is none."""
    steps = [anyio.Event() for _ in range(3)]

    @task(result_ttl=60)
    async def copy() -> None:
        await steps[0].wait()
        await report_progress(3, 12, "copying", {"file": "ä.txt"})
        await steps[1].wait()

    async with working(broker, copy):
        handle = await broker.enqueue(copy)
        assert await handle.progress() is None
        steps[0].set()
        await until(lambda: server.command("EXISTS", key(handle)))
        progress = await handle.progress()
        assert (progress.done, progress.total, progress.note, progress.data) == (3, 12, "copying", {"file": "ä.txt"})
        assert progress.fraction == 0.25
        assert abs(progress.at - time.time()) < 60
        assert KEPT_AFTER * 1000 < server.command("PTTL", key(handle)) <= KEPT * 1000
        steps[1].set()
        await handle.result(timeout=10)
    assert (await handle.progress()).done == 3
    assert 0 < server.command("PTTL", key(handle)) <= KEPT_AFTER * 1000


async def test_watch_yields_each_change_until_the_end(server, broker):
    """The last report is there before the result is, however soon it came after the one before."""
    seen = []
    steps = [anyio.Event() for _ in range(4)]

    @task(result_ttl=60)
    async def count() -> str:
        for n, step in enumerate(steps):
            await step.wait()
            await report_progress(n, 4)
        await report_progress(4, 4, "done")
        return "ok"

    async with working(broker, count):
        handle = await broker.enqueue(count)
        steps[0].set()
        async for progress in handle.watch(timeout=20):
            seen.append((progress.done, progress.note))
            if progress.done < 3:
                steps[int(progress.done) + 1].set()
        assert await handle.result(timeout=10) == "ok"
    assert seen[:3] == [(0, ""), (1, ""), (2, "")]
    assert seen[-1] == (4, "done")
    # Whoever comes late sees the last report once.
    assert [progress.done async for progress in handle.watch()] == [4]
    await until(lambda: server.command("PUBSUB", "CHANNELS", "queue:*:*") == [])


@pytest.mark.slow
async def test_watching_ends_with_a_failure_and_with_its_timeout(server, broker):
    """Without an error: result() says how the task ended. Without a kept result only the timeout ends it."""

    @task(retries=0, result_ttl=60)
    async def fails() -> None:
        await report_progress(1)
        raise ValueError("no")

    @task
    async def keeps_none() -> None:
        await report_progress(1)

    async with working(broker, fails, keeps_none):
        handle = await broker.enqueue(fails)
        assert [progress.done async for progress in handle.watch(timeout=20)] == [1]
        handle = await broker.enqueue(keeps_none)
        assert [progress.done async for progress in handle.watch(timeout=0.4)] in ([1], [])
        assert (await handle.progress()).done == 1
        handle = await broker.enqueue(keeps_none)
        with anyio.fail_after(10):
            async with aclosing(handle.watch()) as watching:
                async for progress in watching:
                    assert progress.done == 1
                    break
    assert repr(broker._waiters) == "<Waiters for 0 results>"


@pytest.mark.slow
async def test_a_hundred_thousand_reports_cost_next_to_nothing(real_server):
    """At most one write in 0.1 s, and the last report is the one that stays; others are not held up."""
    turns = []

    @task(result_ttl=60)
    async def chatty() -> int:
        started = time.monotonic()
        for n in range(100_000):
            await report_progress(n + 1, 100_000)
        return round((time.monotonic() - started) * 1000)

    async def look():
        while True:
            turns.append(None)
            await anyio.sleep(0.01)

    async with RedisBroker(real_server.url) as broker, working(broker, chatty), anyio.create_task_group() as group:
        group.start_soon(look)
        real_server.command("SCRIPT", "FLUSH")  # the first report is sent twice, and still does not come after the last
        before = commands(real_server)
        handle = await broker.enqueue(chatty)
        took = await handle.result(timeout=60)
        sets = spent(before, commands(real_server))["set"]
        assert sets <= took / 100 + 4  # the first, the last, the result, and one in 0.1 s
        assert len(turns) >= took / 100 / 3
        assert (await handle.progress()).done == 100_000
        group.cancel_scope.cancel()


async def test_reports_of_many_tasks_travel_together(real_server):
    """One step carries those of all tasks of a worker."""
    ready, go, end = [], anyio.Event(), anyio.Event()

    @task(result_ttl=60)
    async def one(n: int) -> None:
        ready.append(n)
        await go.wait()
        await report_progress(n, 50)
        await end.wait()

    async with RedisBroker(real_server.url) as broker, working(broker, one):
        handles = await broker.enqueue_many([one.call(n) for n in range(50)])
        await until(lambda: len(ready) == 50)
        before = commands(real_server)
        go.set()
        await until(lambda: len([k for k in real_server.keys() if ":progress:" in k]) == 50)  # noqa: SIM118
        assert spent(before, commands(real_server)).get("evalsha", 0) < 25
        assert [(await handle.progress()).done for handle in handles] == list(range(50))
        end.set()


@pytest.mark.slow
async def test_threads_and_middleware_report_too(server, broker):
    """A thread uses the sync function; reports after the run was asked to stop are ignored."""
    late = []

    @task(result_ttl=60)
    def in_thread() -> str:
        for n in range(20_000):
            report_progress_sync(n + 1, 20_000, "in a thread")
        return "ok"

    @task(result_ttl=60, timeout=0.3, retries=0)
    def told() -> None:
        report_progress_sync(1, 2)
        current_cancellation().wait(20)
        report_progress_sync(2, 2)
        late.append(cancel_requested())

    @task(result_ttl=60)
    async def plain() -> None: ...

    class Says:
        async def __call__(self, context, call_next):
            try:
                return await call_next(context)
            finally:
                if context.task.name == "plain":
                    await report_progress(7, note="from middleware")

    chain = MiddlewareChain()
    chain.add(Says())
    async with working(broker, in_thread, told, plain, middleware=chain):
        handle = await broker.enqueue(in_thread)
        assert await handle.result(timeout=30) == "ok"
        assert (await handle.progress()).done == 20_000
        handle = await broker.enqueue(plain)
        await handle.result(timeout=10)
        assert (await handle.progress()).note == "from middleware"
        handle = await broker.enqueue(told)
        await until(lambda: late)
        assert late == [True]
        assert (await handle.progress()).done == 1


async def test_what_cannot_be_reported_is_an_error_of_the_handler(server, broker):
    """The error names the value and the remedy; outside a handler there is no run to report of."""
    bad = []

    @task(result_ttl=60)
    async def reports() -> None:
        for args in [(-1,), (float("nan"),), ("5",), (1, -1), (1, 2, 3), (1, 2, "", {1, 2}), (1, 2, "", "x" * 70_000)]:
            try:
                await report_progress(*args)
            except ConfigurationError as error:
                bad.append(str(error)[:60])
        await report_progress(1, 0, "x" * 5000 + "caf\udce9")

    handle = await broker.enqueue(reports)
    await burst(broker, reports)
    assert len(bad) == 7, bad
    progress = await handle.progress()
    assert (progress.fraction, len(progress.note)) == (1.0, 1000)
    for call in (functools.partial(report_progress_sync, 1), report_progress):
        with pytest.raises(LookupError, match="inside a task's handler"):
            await call(1) if call is report_progress else call()


@pytest.mark.slow
async def test_a_server_that_refuses_costs_reports_and_not_the_task(caplog, anyio_backend):
    """It is logged once, and reporting goes on when it takes them again."""
    with fresh_server("valkey") as server:
        refusing, again = anyio.Event(), anyio.Event()

        @task(result_ttl=60)
        async def goes_on() -> str:
            await refusing.wait()
            for n in range(10):
                await report_progress(n)
                await anyio.sleep(0.02)
            await again.wait()
            with anyio.move_on_after(20):
                while not server.command("EXISTS", key(handle)):
                    await report_progress(99)
                    await anyio.sleep(0.02)
            return "ok"

        async with RedisBroker(server.url) as broker, working(broker, goes_on):
            handle = await broker.enqueue(goes_on)
            server.command("CONFIG", "SET", "maxmemory", "1")
            with caplog.at_level(logging.WARNING):
                refusing.set()
                await until(lambda: "writing progress is refused: OOM" in caplog.text)
            server.command("CONFIG", "SET", "maxmemory", "0")
            again.set()
            assert await handle.result(timeout=30) == "ok"
            assert (await handle.progress()).done == 99
        assert caplog.text.count("writing progress is refused: OOM") == 1


async def test_what_was_written_by_hand_is_read_and_what_is_none_is_refused(server, broker):
    """Only `done` must be there."""

    @task
    async def some() -> None: ...

    handle = await broker.enqueue(some)
    server.command("SET", key(handle), '{"done": 1}')
    assert await handle.progress() == Progress(1.0)
    for text in ("5", "{}", '{"done": "x"}', "nonsense"):
        server.command("SET", key(handle), text)
        with pytest.raises(BrokerError, match="no progress"):
            await handle.progress()


def test_the_fraction():
    """None without a total, and never beyond 1."""
    assert Progress(5).fraction is None
    assert Progress(5, 10).fraction == 0.5
    assert Progress(15, 10).fraction == 1.0
    assert Progress(0, 0).fraction == 1.0


async def test_a_worker_whose_tasks_report_nothing_sends_nothing_for_it(real_server):
    """No command and no key."""

    @task(result_ttl=60)
    async def plain() -> None: ...

    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(plain)
        worker = Worker(broker, tasks=[plain], burst=True)
        await worker.run()
        assert await handle.progress() is None
    assert not [name for name in real_server.keys() if ":progress:" in name]  # noqa: SIM118


async def test_the_report_in_redis(server, broker):
    """Flat JSON without what was not given."""

    @task
    async def reports() -> None:
        await report_progress(2.5)

    handle = await broker.enqueue(reports)
    await burst(broker, reports)
    assert orjson.loads(server.command("GET", key(handle))).keys() == {"done", "at"}


# --- under faults ---------------------------------------------------------------------------------


@task(result_ttl=60)
async def climb(n: int) -> int:
    """Report three steps; hang after the second unless a worker died of it."""
    for step in (1, 2, 3):
        await report_progress(step, 3, f"run {1 + len(current_delivery().crashed_workers)}")
        say(f"step {n} {step}")
        if step == 2 and not current_delivery().crashed_workers:
            await anyio.sleep_forever()
    return n


TASKS = [climb]


@pytest.mark.slow
async def test_who_watches_and_who_gathers_outlive_the_worker(anyio_backend, shared_server, tmp_path):
    """The worker is killed while it reports: the next one's reports and results are seen; no key stays for ever."""
    server = shared_server("valkey" if anyio_backend == "trio" else "redis")
    seen, got = [], []
    async with RedisBroker(server.url) as broker:
        handles = await broker.enqueue_many([climb.call(n) for n in range(3)])

        async def watch():
            seen.extend([(progress.note, progress.done) async for progress in handles[0].watch(timeout=60)])

        async def wait():
            got.extend(await gather(*handles, timeout=60))

        with Crew("tests.handlers.test_progress", server, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim")
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                group.start_soon(wait)
                for n in range(3):
                    await anyio.to_thread.run_sync(crew.until, f"step {n} 2")
                await until(lambda: server.command("EXISTS", *map(key, handles)) == 3)
                victim.kill()
                victim.wait()
                heir = crew.start("heir")
            heir.terminate()
            await anyio.to_thread.run_sync(heir.wait, 20)
    assert got == [0, 1, 2]
    assert seen[-1] == ("run 2", 3)
    assert seen[0][0] == "run 1"
    assert_nothing_left(server, *map(key, handles))
    assert all(0 < server.command("PTTL", key(handle)) <= KEPT_AFTER * 1000 for handle in handles)
