"""Waiting for many tasks at once: what it costs, what it raises, what it leaves behind."""

from __future__ import annotations

from contextlib import aclosing

import anyio
import pytest

from streamq import RedisBroker, as_completed, gather, task
from streamq.errors import ConfigurationError, ResultNotKeptError, ResultTimeoutError, TaskFailedError
from tests.at_work import assert_nothing_left, burst, until, working


@task(result_ttl=60)
async def double(n: int) -> int:
    return 2 * n


@task(result_ttl=60, retries=0)
async def picky(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


@task
async def silent() -> None: ...


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def commands(server):
    """Return how often each command was called so far."""
    counts = {}
    for line in server.command("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_"):
            name, _, rest = line.removeprefix("cmdstat_").partition(":calls=")
            counts[name] = int(rest.partition(",")[0])
    return counts


def spent(before, after):
    """Return what was called in between, but for the looking itself."""
    return {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0) and name != "info"}


def subscribed(server):
    return len(server.command("PUBSUB", "CHANNELS", "queue:result:*"))


async def test_results_come_in_the_order_of_the_handles(server, broker):
    """Of those that are there already and of those that come later; one handle may be given twice."""
    early = await broker.enqueue_many([double.call(n) for n in range(3)])
    await burst(broker, double)
    late = await broker.enqueue_many([double.call(n) for n in range(3, 6)])
    async with working(broker, double):
        assert await gather(*late, *early, late[0], timeout=10) == (6, 8, 10, 0, 2, 4, 6)
    assert await gather() == ()
    await until(lambda: subscribed(server) == 0)
    assert_nothing_left(server)


async def test_a_thousand_results_that_are_there_cost_one_command(real_server):
    """No subscription, and no command for each."""
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([double.call(n) for n in range(1000)])
        await burst(broker, double)
        before = commands(real_server)
        assert sum(await gather(*handles, timeout=10)) == 999_000
        assert spent(before, commands(real_server)) == {"mget": 1}


@pytest.mark.slow
async def test_a_thousand_results_that_are_awaited_cost_three_commands(real_server):
    """One looks, one subscribes to all, one looks again; none while nothing happens, none for each result."""
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([double.call(n) for n in range(1000)])
        before = commands(real_server)
        got = []

        async def wait():
            got.extend(await gather(*handles, timeout=30))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await until(lambda: commands(real_server).get("mget", 0) - before.get("mget", 0) == 2)
            waiting = commands(real_server)
            used = {name: n for name, n in spent(before, waiting).items() if name in ("mget", "get", "subscribe")}
            assert used == {"mget": 2, "subscribe": 1}
            await anyio.sleep(0.3)
            assert spent(waiting, commands(real_server)) == {}
            await burst(broker, double)
        assert got == [2 * n for n in range(1000)]
        used = spent(before, commands(real_server))
        assert used["mget"] == 2
        assert used["subscribe"] <= 2  # the worker's own
        assert "get" not in used
        await until(lambda: subscribed(real_server) == 0)
        assert spent(before, commands(real_server))["unsubscribe"] <= 2


async def test_the_first_failure_is_raised_at_once(server, broker):
    """The others run on, and their results can be had afterwards."""
    go = anyio.Event()

    @task(result_ttl=60)
    async def slow() -> str:
        await go.wait()
        return "slow"

    async with working(broker, slow, picky):
        last = await broker.enqueue(slow)
        bad = await broker.enqueue(picky, 1)
        with pytest.raises(TaskFailedError, match="1 is odd") as caught:
            await gather(last, bad, timeout=10)
        assert caught.value.task_id == bad.task_id
        go.set()
        assert await last.result(timeout=10) == "slow"
    await until(lambda: subscribed(server) == 0)


async def test_errors_can_stand_in_the_place_of_results(server, broker):
    """With return_exceptions all are waited for."""
    handles = await broker.enqueue_many([picky.call(n) for n in range(4)])
    async with working(broker, picky):
        got = [*await gather(*handles, timeout=10, return_exceptions=True)]
    assert got[::2] == [0, 2]
    assert [type(one) for one in got[1::2]] == [TaskFailedError] * 2
    assert [one.error for one in got[1::2]] == ["1 is odd", "3 is odd"]


async def test_what_is_missing_is_named(server, broker):
    """How many of how many, and which."""
    done = await broker.enqueue(double, 1)
    await burst(broker, double)
    late = await broker.enqueue_many([double.call(n).options(task_id=f"late-{n}") for n in range(7)])
    with pytest.raises(ResultTimeoutError) as caught:
        await gather(late[0], done, *late[1:], timeout=0.05)
    assert str(caught.value) == (
        "7 of 8 tasks gave no result within 0.05 s: 'late-0', 'late-1', 'late-2', 'late-3', 'late-4' and 2 more"
    )
    assert caught.value.missing == tuple(f"late-{n}" for n in range(7))
    await until(lambda: subscribed(server) == 0)
    assert repr(broker._waiters) == "<Waiters for 0 results>"


async def test_handles_without_a_result_are_refused_before_anything_is_awaited(server, broker):
    """And so are those of two brokers."""
    kept = await broker.enqueue(double, 1)
    none = await broker.enqueue(silent)
    with pytest.raises(ResultNotKeptError):
        await gather(kept, none)
    async with RedisBroker(server.url) as other:
        with pytest.raises(ConfigurationError, match="several brokers"):
            await gather(kept, await other.enqueue(double, 1))


@pytest.mark.parametrize("what", [5, None, "id", []])
async def test_what_is_no_handle_is_refused_with_the_remedy(broker, what):
    """A list of handles, too."""
    wanted = rf"a handle is of type {type(what).__name__}: give what enqueue returned.*gather\(\*handles\)"
    with pytest.raises(ConfigurationError, match=wanted):
        await gather(what)
    with pytest.raises(ConfigurationError, match=wanted):
        await anext(as_completed(what))


async def test_handles_come_as_their_tasks_end(real_server):
    """In the order of their ends, each with its result at hand: no command is spent on it."""
    gates = [anyio.Event() for _ in range(3)]

    @task(result_ttl=60, retries=0)
    async def gated(n: int) -> int:
        await gates[n].wait()
        if n == 1:
            raise ValueError("one")
        return n

    async with RedisBroker(real_server.url) as broker, working(broker, gated):
        handles = await broker.enqueue_many([gated.call(n) for n in range(3)])
        order = []
        gates[2].set()
        async for handle in as_completed(*handles, timeout=10):
            place = handles.index(handle)
            order.append(place)
            before = commands(real_server).get("mget")
            if place == 1:
                with pytest.raises(TaskFailedError, match="one"):
                    await handle.result()
            else:
                assert await handle.result() == place
            assert commands(real_server).get("mget") == before
            if place:
                gates[place - 1].set()
        assert order == [2, 1, 0]


async def test_as_completed_ends_with_its_timeout(server, broker):
    """What is missing is named; what was left early leaves nothing behind."""
    handles = await broker.enqueue_many([double.call(n) for n in range(2)])
    with pytest.raises(ResultTimeoutError, match="2 of 2"):
        await anext(as_completed(*handles, timeout=0.05))
    await burst(broker, double)
    async with aclosing(as_completed(*handles)) as completed:
        async for handle in completed:
            assert await handle.result() in (0, 2)
            break
    await until(lambda: subscribed(server) == 0)
    assert repr(broker._waiters) == "<Waiters for 0 results>"


async def test_results_of_the_time_without_a_connection_are_not_missed(real_server):
    """A cut connection is no end: everybody looks again once it is back."""
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([double.call(n) for n in range(20)])
        got = []

        async def wait():
            got.extend(await gather(*handles, timeout=20))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await until(lambda: subscribed(real_server) == 20)
            await burst(broker, double)
            await until(lambda: got)
            got.clear()
            handles = await broker.enqueue_many([double.call(n) for n in range(20)])
            group.start_soon(wait)
            await until(lambda: subscribed(real_server) == 20)
            # What the worker will say is said while nobody can hear it.
            real_server.command("CLIENT", "KILL", "TYPE", "pubsub")
            for handle in handles:
                real_server.command("SET", f"queue:result:{handle.task_id}", '{"ok":5}', "PX", 60000)
        assert got == [5] * 20
