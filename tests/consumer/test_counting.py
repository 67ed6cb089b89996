"""Counters: each settlement is counted once, also those of the last moments of a worker."""

from __future__ import annotations

import anyio
import pytest

from streamq import Backoff, DeadLetterBound, RedisBroker, task
from streamq.consumer import set_aside
from streamq.queue.store import Store
from streamq.wire.counters import Counters, unpack
from tests.at_work import until, working

pytestmark = [pytest.mark.slow, pytest.mark.paired]

TIERS = frozenset({"critical", "standard", "bulk"})
runs: list[str] = []
gate: list[anyio.Event] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    runs.clear()


@task(retries=1, backoff=60)
async def flaky() -> None:
    raise ValueError("the first time")


@task
async def nothing() -> None: ...


async def mourn(_dead) -> None:
    runs.append("mourn")
    with anyio.move_on_after(3):
        await gate[0].wait()


@task(retries=0, on_exhausted=mourn)
async def fails() -> None:
    raise ValueError("for good")


def counted(server) -> Counters:
    """Return the sum of all counters on the server."""
    total = Counters()
    for name in server.keys():  # noqa: SIM118
        if ":stats:" in name:
            flat = server.command("HGETALL", name)
            for one in unpack(zip(flat[::2], flat[1::2], strict=True), TIERS).values():
                total.add(one)
    return total


@task
async def held(number: int) -> None:
    runs.append(str(number))
    await gate[0].wait()


@pytest.mark.parametrize("listened", [False, True], ids=["", "listened to"])
@pytest.mark.parametrize("keep", [None, 60.0], ids=["", "with results"])
async def test_what_another_has_settled_first_counts_as_superseded_alone(server, listened, keep):
    """Of five acknowledgements in one round trip two come late: three are done, with their times."""
    gate[:] = [anyio.Event()]
    listeners = [lambda _event: None] if listened else []
    async with RedisBroker(server.url) as broker:
        for number in range(5):
            await broker.enqueue(held.options(result_ttl=keep) if keep else held, number)
        async with working(broker, held, listeners=listeners):
            await until(lambda: len(runs) == 5)
            entries = [row[0] for row in server.command("XRANGE", "queue:standard", "-", "+")]
            for entry in entries[1:4:2]:
                server.command("XACK", "queue:standard", "workers", entry)
                server.command("XDEL", "queue:standard", entry)
            gate[0].set()
            await until(lambda: server.command("XLEN", "queue:standard") == 0)
            total = await until(lambda: (found := counted(server)).done and found)
    assert (total.done, total.superseded, total.failed) == (3, 2, 0)
    assert sum(total.latencies.values()) == sum(total.waits.values()) == 3
    assert total.latency_us >= total.run_us


async def test_without_the_right_to_count_everything_is_settled_and_counted_later(real_server):
    """The key of the counters is taken away, and given back: it refuses nothing, is named, and nothing is missing."""
    server = real_server
    rights = ("on", "nopass", "+@all", "~queue:[a-rt-z]*", "~queue:standard*", "~queue:stats:*:totals", "&*")
    server.command("ACL", "SETUSER", "limited", "reset", *rights)
    url = server.url.replace("://", "://limited:x@")
    async with RedisBroker(url) as broker, working(broker, nothing, flaky, fails) as worker:
        for number in range(3):
            await broker.enqueue_many([nothing.call() for _ in range(5)])
            await broker.enqueue(flaky)
            await broker.enqueue(fails.options(task_id=f"f{number}"))
            await until(lambda: server.command("XLEN", "queue:standard") == 0)
        assert server.command("XLEN", "queue:dead") == 3
        await until(lambda: any("writing the counters" in line for line in worker.health.refused))
        assert all("writing the counters" in line for line in worker.health.refused)
        assert counted(server) == Counters()
        server.command("ACL", "SETUSER", "limited", "~queue:stats:*")
        await until(lambda: counted(server).done)
        await until(lambda: not worker.health.refused)
        await broker.enqueue(nothing)
        await until(lambda: counted(server).done == 16)
    total = counted(server)
    assert (total.done, total.failed, total.retried, total.dead) == (16, 6, 3, 3)


async def test_what_the_last_try_settles_is_counted(server, monkeypatch):
    """A retry was refused, and is kept when its worker leaves."""
    monkeypatch.setattr(set_aside, "_PAUSE", Backoff(base=60, cap=60))
    async with RedisBroker(server.url) as broker:
        async with working(broker, flaky) as worker:
            server.command("SET", "queue:standard:messages", "of somebody else")
            await broker.enqueue(flaky)
            await until(lambda: worker.health.refused)
            server.command("DEL", "queue:standard:messages")
        assert server.command("ZCARD", "queue:standard:delayed") == 1
    assert (counted(server).failed, counted(server).retried) == (1, 1)


async def test_a_round_trip_on_its_way_is_not_counted_twice(server, monkeypatch):
    """The worker ends after a function of `on_exhausted`, while counters travel."""
    attempt = Store.attempt
    gate[:] = [anyio.Event()]

    async def slow(store, commands):
        replies = await attempt(store, commands)
        if runs and any(":stats:" in str(command) for command in commands):
            gate[0].set()
            await anyio.sleep(0.1)
        return replies

    monkeypatch.setattr(Store, "attempt", slow)
    async with RedisBroker(server.url) as broker, working(broker, fails, nothing):
        await broker.enqueue(nothing)
        await until(lambda: counted(server).done)  # so the next counters are written a while later
        await broker.enqueue(fails)
        await until(lambda: runs)
    assert (counted(server).failed, counted(server).dead) == (1, 1)


async def test_dead_letters_settle_without_a_right_to_the_totals(real_server):
    """What falls off the bound is then not counted: the one use of that key beside a settlement."""
    keys = (
        "~queue:critical*",
        "~queue:standard*",
        "~queue:bulk*",
        "~queue:dead",
        "~queue:id:*",
        "~queue:stats:workers:1*",
    )
    real_server.command("ACL", "SETUSER", "some", "reset", "on", ">pw", "+@all", "&*", *keys)
    try:
        url = real_server.url.replace("://", "://some:pw@")
        bound = DeadLetterBound(max_size=2)
        async with RedisBroker(url, dead_letters=bound) as broker, working(broker, dies) as worker:
            await broker.enqueue_many([dies.call() for _ in range(20)])
            await until(lambda: worker.runs == 20 and not real_server.command("XLEN", "queue:standard"))
            assert worker.health.refused == ()
        assert dead_letters(real_server) == 2
        assert real_server.command("EXISTS", "queue:stats:workers:totals") == 0
        assert counted(real_server).dead == 20
    finally:
        real_server.command("ACL", "DELUSER", "some")


def dead_letters(server) -> int:
    return int(server.command("XLEN", "queue:dead"))


@task(retries=0)
async def dies() -> None:
    raise ValueError("for good")
