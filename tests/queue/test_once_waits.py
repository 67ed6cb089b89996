"""`once` and `Idempotency` wait: for a rival's effect as long as that takes, for the server as long as it is away."""

from __future__ import annotations

import logging
import time

import anyio
import pytest

from streamq import RedisBroker, current_delivery, once, task
from streamq.errors import (
    BrokerError,
    BrokerUnavailableError,
    EffectInProgressError,
    EffectNotBegunError,
    RetryLater,
)
from streamq.middleware import Idempotency
from streamq.queue.store import Store
from streamq.scripts import step
from tests.at_work import assert_nothing_left, burst, dead, until, working

pytestmark = pytest.mark.paired("memory")

KEY = "queue:once:k"
ran: list[int] = []
length = 0.005


async def effect(number: int) -> int:
    ran.append(number)
    await anyio.sleep(length)
    return number


@task(name="by_once", retries=0, result_ttl=60)
async def by_once(number: int) -> int:
    async with once("k") as begun:
        if not begun.done:
            begun.record(await effect(number))
        return int(begun.result)


@task(name="by_middleware", retries=0, result_ttl=60, middleware=[Idempotency("k")])
async def by_middleware(number: int) -> int:
    return await effect(number)


BOTH = pytest.mark.parametrize("task_", [by_once, by_middleware], ids=["once", "Idempotency"])


@pytest.fixture
async def broker(server):
    ran.clear()
    async with RedisBroker(server.url) as opened:
        yield opened


# --- a rival ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("takes", [0.005, 0.8])
async def test_the_second_of_two_tasks_ends_soon_after_the_first(server, broker, task_, takes, monkeypatch):
    """Not after the rest of a lease of 30 s: within twice the length of the effect, and a second."""
    monkeypatch.setattr(f"{__name__}.length", takes)
    began = time.monotonic()
    async with working(broker, task_):
        handles = await broker.enqueue_many([task_.call(1), task_.call(2)])
        results = [await handle.result(timeout=10) for handle in handles]
    assert time.monotonic() - began < 2 * takes + 1.5  # and half a second for a busy machine
    assert results == [ran[0]] * 2
    assert len(ran) == 1
    server.command("DEL", KEY)
    assert_nothing_left(server)


@pytest.mark.parametrize(
    ("age", "lease", "expected"),
    [(0, 30.0, 0.5), (3.0, 30.0, 3.0), (20.0, 30.0, 20.0), (3.0, 2.0, 2.0), (-50.0, 30.0, 0.5)],
    ids=["begun", "for 3 s", "for 20 s", "its lease ends first", "the clock was set back"],
)
@pytest.mark.parametrize("wait", [0.0, 0.05])
async def test_a_rival_comes_back_after_as_long_as_the_effect_has_taken(server, broker, age, lease, expected, wait):
    """At least 0.5 s, and at most the rest of its lease."""
    now = int(server.command("TIME")[0]) * 1000 + int(server.command("TIME")[1]) // 1000
    server.command("HSET", KEY, "token", round(now - 1000 * age), "until", round(now + 1000 * lease))
    with pytest.raises(EffectInProgressError) as raised:
        async with once("k", broker=broker, wait=wait):
            pytest.fail("it is in progress")
    assert raised.value.after == pytest.approx(expected, abs=0.3)


# --- the server ------------------------------------------------------------------------------------------


class Away:
    """A server that cannot be asked whether an effect may begin, for so many times."""

    def __init__(self, monkeypatch, error, times):
        self.left, self._one, self._error = times, Store.one, error
        beginning = step("once_begin")(["k"], 1, 1)[1]

        async def one(store, command):
            if self.left and len(command) > 1 and command[1] == beginning:
                self.left -= 1
                raise self._error
            return await self._one(store, command)

        monkeypatch.setattr(Store, "one", one)


ERRORS = [BrokerUnavailableError("away"), BrokerError("full", code="OOM"), BrokerError("loading", code="LOADING")]


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
async def test_a_task_waits_for_a_server_that_cannot_be_asked(server, broker, task_, error, monkeypatch):
    """Without an attempt, and without the effect: with no retries it was a dead letter."""
    away = Away(monkeypatch, error, 2)
    handle = await broker.enqueue(task_, 1)
    async with working(broker, task_) as worker:
        await until(lambda: away.left == 0)
        named = [line for line in worker.health.refused if line.startswith("beginning an effect")]
        assert bool(named) == (error.code == "OOM")  # of the others the worker itself says that it waits
        assert ran == []
        assert await handle.result(timeout=10) == 1
        assert worker.health.refused == ()
    assert ran == [1]
    assert dead(server) == []


@BOTH
async def test_a_missing_right_is_named_and_the_task_waits(real_server, anyio_backend, task_, caplog):
    """As behind a limit: in the health and in the log, until the right is there."""
    ran.clear()
    caplog.set_level(logging.WARNING, "streamq")
    rules = ("reset", "on", ">pw", "~*", "&*", "+@all")
    real_server.command("ACL", "SETUSER", "bob", *rules, "resetkeys", "~queue:[^o]*")
    try:
        async with RedisBroker(real_server.url.replace("unix://", "unix://bob:pw@")) as broker:
            handle = await broker.enqueue(task_, 1)
            async with working(broker, task_) as worker:
                await until(lambda: worker.health.refused)
                assert "beginning an effect: NOPERM" in worker.health.refused[0]
                assert [r.message for r in caplog.records if "its tasks wait" in r.message]
                real_server.command("ACL", "SETUSER", "bob", *rules)
                assert await handle.result(timeout=10) == 1
                assert worker.health.refused == ()
    finally:
        real_server.command("ACL", "DELUSER", "bob")
    assert ran == [1]
    assert dead(real_server) == []


async def test_a_key_of_another_type_fails_the_attempt(server, broker):
    """It stays there: waiting does not help."""
    server.command("LPUSH", KEY, "theirs")
    await broker.enqueue(by_once, 1)
    await burst(broker, by_once)
    (letter,) = dead(server)
    assert letter["reason"] == "retries_exhausted"
    assert "WRONGTYPE" in letter["error"]


async def test_a_handler_may_catch_it_as_what_it_is(server, broker, monkeypatch):
    """It is a request to run again, and an error of the server. Outside of a run it is the error alone."""
    Away(monkeypatch, BrokerError("full", code="OOM"), 2)
    seen = []

    @task
    async def catching() -> None:
        try:
            async with once("k"):
                pytest.fail("it cannot begin")
        except BrokerError as error:
            seen.append((type(error), isinstance(error, RetryLater), error.code, current_delivery().attempt))

    await broker.enqueue(catching)
    await burst(broker, catching)
    assert seen == [(EffectNotBegunError, True, "OOM", 1)]
    with pytest.raises(BrokerError, match="full") as raised:
        async with once("k", broker=broker):
            pytest.fail("it cannot begin")
    assert type(raised.value) is BrokerError
