"""Counters: each settlement is counted once, also those of the last moments of a worker."""

from __future__ import annotations

import anyio
import pytest

from streamq import Backoff, RedisBroker, task
from streamq.consumer import counting, set_aside
from streamq.queue.store import Store
from streamq.wire.counters import Counters, unpack
from tests.at_work import until, working

pytestmark = [pytest.mark.slow, pytest.mark.paired]

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
            for one in unpack(zip(flat[::2], flat[1::2], strict=True)).values():
                total.add(one)
    return total


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

    monkeypatch.setattr(counting, "COUNT_EVERY", 0.3)
    monkeypatch.setattr(Store, "attempt", slow)
    async with RedisBroker(server.url) as broker, working(broker, fails, nothing):
        await broker.enqueue(nothing)
        await until(lambda: counted(server).done)  # so the next counters are written a while later
        await broker.enqueue(fails)
        await until(lambda: runs)
    assert (counted(server).failed, counted(server).dead) == (1, 1)
