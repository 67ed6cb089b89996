"""Every snippet of section 2 of the contract, on every server and both backends."""

from __future__ import annotations

import subprocess

import anyio
import pytest

from streamq import Priority, RedisBroker, RetryLater, Worker, task
from tests.at_work import assert_nothing_left, burst, dead, until, working

sent: list[tuple[str, int]] = []


@task(retries=3, timeout=60)
async def send(to: str, n: int = 1) -> dict:
    sent.append((to, n))
    return {"to": to, "n": n}


@pytest.fixture(autouse=True)
def nothing_sent():
    sent.clear()


async def test_a_task_is_still_callable():
    """`await send("a", n=1)`."""
    assert await send("a", n=1) == {"to": "a", "n": 1}
    assert send.name == "send"


def test_the_three_ways_to_make_a_broker():
    """A URL; one stream alone; the embedded server. The default tiers are critical, standard and bulk."""
    broker = RedisBroker("redis://localhost:6379")
    assert [keys.stream for keys in broker.keys.tiers] == ["queue:critical", "queue:standard", "queue:bulk"]
    assert [keys.stream for keys in RedisBroker(queue_name="queue:critical").keys.tiers] == ["queue:critical"]
    assert "memory://" in repr(RedisBroker("memory://"))


@pytest.mark.slow
async def test_enqueue_in_every_form(server):
    """By the task, by its name, with options, and many at once."""
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(send.options(result_ttl=60), "a@b.c", n=2)
        await broker.enqueue("send", "b@b.c", priority=Priority.HIGH)
        await broker.enqueue(send.options(priority=Priority.LOW, delay=0.05, retries=5), "c@b.c")
        await broker.enqueue_many([send.call("d"), send.call("e", n=3)])
        assert server.command("XLEN", "queue:critical") == 1
        assert server.command("ZCARD", "queue:bulk:delayed") == 1
        async with working(broker, send):
            assert await handle.result(timeout=10) == {"to": "a@b.c", "n": 2}
            await until(lambda: len(sent) == 5)
    assert sorted(sent) == [("a@b.c", 2), ("b@b.c", 1), ("c@b.c", 1), ("d", 1), ("e", 3)]
    assert_nothing_left(server)


@pytest.mark.slow
async def test_a_worker_runs_until_it_is_cancelled_or_drained(server):
    """`Worker(broker, tasks=[send], middleware=chain, concurrency=100)`; `worker.stop()`."""
    from streamq.middleware import MiddlewareChain

    seen = []

    async def note(context, call_next):
        seen.append(context.task.name)
        return await call_next(context)

    chain = MiddlewareChain()
    chain.add(note)
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(send, "x")
        worker = Worker(broker, tasks=[send], middleware=chain, concurrency=100)
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            await until(lambda: sent)
            worker.stop()
        other = Worker(broker, tasks=[send])
        with anyio.move_on_after(0.2) as scope:
            await other.run()
        assert scope.cancelled_caught
    assert seen == ["send"]
    assert_nothing_left(server)


async def test_the_loop_by_hand(server):
    """`async for message in broker.consume()`: handle, then acknowledge."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([send.call("a"), send.call("b", n=3)])
        messages = broker.consume()
        async for message in messages:
            await send(*message.args, **message.kwargs)
            await broker.ack(message.task_id)
            if len(sent) == 2:
                await messages.aclose()
                break
    assert sent == [("a", 1), ("b", 3)]
    assert_nothing_left(server)


async def test_an_entry_by_redis_cli_runs(server):
    """SPEC 3: `redis-cli XADD queue:standard '*' task send kwargs '{"to":"a@b.c"}'`."""
    server.cli("XADD", "queue:standard", "*", "task", "send", "kwargs", '{"to":"a@b.c"}')
    async with RedisBroker(server.url) as broker:
        await burst(broker, send)
    assert sent == [("a@b.c", 1)]
    assert_nothing_left(server)


async def test_a_dead_letter_is_readable_by_redis_cli(server):
    """Flat, named fields, and nothing of ours needed to read them."""
    server.cli("XADD", "queue:standard", "*", "task", "send", "args", "[1,2,3]")
    async with RedisBroker(server.url) as broker:
        await burst(broker, send)
    lines = server.cli("XRANGE", "queue:dead", "-", "+").splitlines()
    assert lines[lines.index("reason") + 1] == "rejected"
    assert lines[lines.index("task") + 1] == "send"
    assert lines[lines.index("args") + 1] == "[1,2,3]"
    assert len(dead(server)) == 1


def test_redis_cli_itself_can_send_and_read(real_server, anyio_backend):
    """Where there is a redis-cli."""
    import shutil

    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli on PATH")
    command = ["redis-cli", "-s", real_server.socket]
    subprocess.run(
        [*command, "XADD", "queue:standard", "*", "task", "send", "kwargs", '{"to":"cli"}'],
        check=True,
        capture_output=True,
    )

    async def main():
        async with RedisBroker(real_server.url) as broker:
            await burst(broker, send)

    anyio.run(main, backend=anyio_backend)
    assert sent == [("cli", 1)]


async def test_retry_later_runs_again_without_spending_an_attempt(server):
    """`RetryLater(after=seconds)`."""
    runs = []

    @task(retries=0)
    async def polite() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise RetryLater(after=0.01)

    async with RedisBroker(server.url) as broker:
        await broker.enqueue(polite)
        await burst(broker, polite)
    assert len(runs) == 3
    assert_nothing_left(server)


async def test_middleware_of_the_contract(server):
    """`chain.add(RateLimitMiddleware(max_per_second=10.0))` and `CircuitBreaker`."""
    from streamq.middleware import CircuitBreaker, MiddlewareChain, RateLimitMiddleware

    chain = MiddlewareChain()
    chain.add(RateLimitMiddleware(max_per_second=10.0))
    chain.add(CircuitBreaker(failure_threshold=5, reset_timeout=30))
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(send, "x")
        await burst(broker, send, middleware=chain)
    assert sent == [("x", 1)]


async def test_dead_letters_of_the_contract(server):
    """`peek`, `replay`, `purge`."""
    from streamq.dead_letter import DeadLetterQueue

    attempts = []

    @task(retries=0)
    async def fails() -> None:
        attempts.append(1)
        if len(attempts) < 2:
            raise ValueError("no")

    async with RedisBroker(server.url) as broker:
        dlq = DeadLetterQueue(broker=broker, max_size=10_000)
        await broker.enqueue(fails.options(task_id="abc-123"))
        await burst(broker, fails)
        (entry,) = await dlq.peek(count=20)
        assert (entry.task_name, entry.error) == ("fails", "no")
        new_id = await dlq.replay(task_id="abc-123", retries=3)
        assert new_id
        await burst(broker, fails)
        assert len(attempts) == 2
        await broker.enqueue("fails", "wrong", "arguments")
        await burst(broker, fails)
        assert await dlq.purge() == 1
        assert await dlq.peek(count=20) == []
    assert_nothing_left(server)


async def test_the_monitor_of_the_contract(server):
    """`await QueueMonitor(broker=broker).snapshot()` and its figures."""
    from streamq.monitoring import QueueMonitor

    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([send.call("x")] * 5)
        assert (await QueueMonitor(broker=broker).snapshot()).depth == 5
        await broker.enqueue("send", 1, 2, 3)
        await burst(broker, send)
        metrics = await QueueMonitor(broker=broker).snapshot()
    assert (metrics.depth, metrics.processing, metrics.dead_letter_count) == (0, 0, 1)
    assert metrics.throughput_per_sec > 0
    assert metrics.avg_latency_ms >= 0
    assert 0 < metrics.error_rate < 1
