"""Runs that are ended: for their timeout, for whoever cancelled them, for a lost lease, with the worker."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest

from streamq import RedisBroker, Worker, task
from streamq.errors import TaskFailedError
from streamq.worker import State
from tests.at_work import assert_nothing_left, burst, dead, pending, until, working


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


@task
async def say(what: str) -> None:
    said.append(what)


said: list[str] = []


async def both(*errors: Exception) -> None:
    """Wait to be cancelled, and raise that and more at once, as a nursery of trio's does."""
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class() as cancelled:
        raise BaseExceptionGroup("of a nursery", [cancelled, BaseExceptionGroup("inner", [cancelled]), *errors])  # noqa: B904


def as_it_ends(how):
    """A handler that never ends by itself, and raises this when it is ended."""

    @task(name="endless", timeout=0.05, retries=0)
    async def endless() -> None:
        match how:
            case "at once":
                await anyio.sleep_forever()
            case "a group":
                await both()
            case "a group with an error":
                await both(ValueError("while cleaning up"))
            case "an error":
                try:
                    await anyio.sleep_forever()
                finally:
                    raise ValueError("while cleaning up")
            case "an error and SystemExit":  # a child calls sys.exit() in a `finally`
                try:
                    await anyio.sleep_forever()
                except BaseException as cancelled:  # noqa: BLE001 - raised again, in a group
                    errors = [ValueError("while cleaning up"), SystemExit(3), cancelled]
                    raise BaseExceptionGroup("both", errors) from None
            case "an error and SystemExit alone":
                try:
                    await anyio.sleep_forever()
                finally:
                    raise BaseExceptionGroup("both", [ValueError("while cleaning up"), SystemExit(3)])
            case "of children":
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep_forever)
                    group.start_soon(anyio.sleep_forever)

    return endless


# What a handler raises is the worker's affair, and not the server's.
one_server = pytest.mark.parametrize("server", ["valkey"], indirect=True)
HOW = [
    "at once",
    "a group",
    "a group with an error",
    "an error",
    "an error and SystemExit",
    "an error and SystemExit alone",
    "of children",
]


@pytest.mark.parametrize("how", HOW)
async def test_a_timeout_whatever_the_handler_raises_then(server, broker, how):
    """It is dead for the timeout, or for its own error; the worker and the slot go on."""
    said.clear()
    endless = as_it_ends(how)
    await broker.enqueue_many([call for n in range(3) for call in (endless.call(), say.call(str(n)))])
    worker = await burst(broker, endless, say, concurrency=1)
    assert said == ["0", "1", "2"]
    letters = dead(server)
    assert [letter["reason"] for letter in letters] == ["retries_exhausted"] * 3
    for letter in letters:
        if "error" in how:
            assert "while cleaning up" in letter["traceback"]
        else:
            assert letter["error_type"] == "streamq.errors.TaskTimeoutError"
            assert "0.05 s" in letter["error"]
    assert worker.health.superseded == 0
    assert_nothing_left(server)


@one_server
@pytest.mark.parametrize("how", ["plain", "with a header", "in middleware"])
async def test_a_dead_letter_says_where_the_run_was(server, broker, how):
    """The traceback of a timeout has the line at which the handler waited."""

    async def around(context, call_next):
        return await call_next(context)

    @task(timeout=0.03, retries=0, middleware=[around] if how == "in middleware" else [])
    async def stuck() -> None:
        await anyio.sleep(30)  # here

    await broker.enqueue(stuck.options(headers={"a": 1}) if how == "with a header" else stuck)
    await burst(broker, stuck)
    (letter,) = dead(server)
    assert "await anyio.sleep(30)  # here" in letter["traceback"]
    assert letter["traceback"].rstrip().splitlines()[-1].startswith("streamq.errors.TaskTimeoutError")


@pytest.mark.slow
@one_server
@pytest.mark.parametrize("limit", [None, 0.03])
async def test_a_handler_that_will_not_be_ended(server, broker, limit):
    """What returns has succeeded, however late; and its slot goes on."""
    said.clear()

    @task(timeout=limit, result_ttl=60)
    async def stubborn() -> str:
        with anyio.move_on_after(0.1, shield=True):
            await anyio.sleep(30)
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            said.append("told")
        return "done"

    handles = await broker.enqueue_many([stubborn.call() for _ in range(3)])
    async with working(broker, stubborn, say, concurrency=1):
        assert [await handle.result(timeout=8) for handle in handles] == ["done"] * 3
        await broker.enqueue(say, "after")
        await until(lambda: said[-1:] == ["after"])
    assert said == ([] if limit is None else ["told"] * 3) + ["after"]
    assert dead(server) == []


@one_server
@pytest.mark.parametrize("how", HOW)
async def test_a_cancelled_run_whatever_the_handler_raises_then(server, broker, how):
    """Its sender cancelled it: that is what is told, and the worker goes on."""
    endless = as_it_ends(how)
    endless = task(name="endless", timeout=30, retries=0, result_ttl=60)(endless.function)
    async with working(broker, endless, say, concurrency=1) as worker:
        handle = await broker.enqueue(endless)
        await until(lambda: pending(server) == 1)
        await anyio.sleep(0.02)
        assert await broker.cancel(handle.task_id)
        with pytest.raises(TaskFailedError, match=r"cancelled|cleaning up"):
            await handle.result(timeout=5)
        done = await broker.enqueue(say.options(result_ttl=60), "x")
        await done.result(timeout=5)
        assert worker.state is State.RUNNING


@one_server
@pytest.mark.parametrize("how", HOW)
async def test_a_run_that_lost_its_lease_whatever_the_handler_raises_then(server, broker, how, caplog):
    """It is another's: nothing is settled here, and the worker goes on."""
    caplog.set_level(logging.WARNING, "streamq")
    endless = as_it_ends(how)
    endless = task(name="endless", retries=0)(endless.function)
    async with working(broker, endless, say, concurrency=2, visibility_timeout=0.4) as worker:
        await broker.enqueue(endless)
        await until(lambda: pending(server) == 1)
        entry = server.command("XPENDING", "queue:standard", "workers", "-", "+", 1)[0][0]
        server.command("XCLAIM", "queue:standard", "workers", "thief", 0, entry)
        await until(lambda: worker.health.superseded)
        done = await broker.enqueue(say.options(result_ttl=60), "x")
        await done.result(timeout=5)
        assert worker.state is State.RUNNING
        assert pending(server) == 1
        server.command("XACK", "queue:standard", "workers", entry)
        server.command("XDEL", "queue:standard", entry)
    assert dead(server) == []
    assert ("was cancelled, and raised" in caplog.text) == (how in ("a group with an error", "an error and SystemExit"))


@one_server
@pytest.mark.parametrize("how", HOW)
async def test_the_end_of_a_worker_whatever_the_handler_raises_then(server, broker, how):
    """What runs when the grace period is over is cancelled, and handed to others; the worker ends well."""
    endless = as_it_ends(how)
    endless = task(name="endless", timeout=30, retries=0)(endless.function)
    await broker.enqueue(endless)
    with anyio.fail_after(8):
        async with working(broker, endless, concurrency=1, grace_period=0.05):
            await until(lambda: pending(server) == 1)
            await anyio.sleep(0.02)
    assert server.command("XLEN", "queue:standard") == 1
    assert dead(server) == []
    await burst(broker, task(name="endless")(say_nothing))
    assert_nothing_left(server)


@task
async def endless() -> None:
    await anyio.sleep(60)


@pytest.mark.parametrize("number", [1, 13])
async def test_what_the_end_of_a_worker_cuts_off_is_named_once(server, broker, number, caplog):
    """Who looks for the reason of a redelivery finds it in the log of the worker that stopped."""
    await broker.enqueue_many([endless.options(task_id=f"t{at:02}").call() for at in range(number)])
    with anyio.fail_after(8):
        async with working(broker, endless, grace_period=0.02) as worker:
            await until(lambda: worker._consumer.buffer.running == number)
    (line,) = [record.getMessage() for record in caplog.records if "cut off" in record.getMessage()]
    assert all(f"endless t{at:02}" in line for at in range(min(number, 10)))
    assert ("and 3 more" in line) == (number == 13)
    assert server.command("XLEN", "queue:standard") == number


async def test_a_worker_that_ends_in_time_cuts_nothing_off(server, broker, caplog):
    await broker.enqueue(say, "hello")
    await burst(broker, say)
    assert "cut off" not in caplog.text


async def say_nothing() -> None: ...


async def test_a_timeout_and_the_end_of_the_worker_at_once(server, broker):
    """Whichever comes first: the task is dead, or it is another's; it is never both, and never lost."""
    for _ in range(10):

        @task(name="brief", timeout=0.05, retries=0)
        async def brief() -> None:
            await anyio.sleep_forever()

        await broker.enqueue(brief)
        async with working(broker, brief, concurrency=1, grace_period=0.05) as worker:
            await until(lambda: pending(server) == 1)
            worker.stop()
    left = server.command("XLEN", "queue:standard")
    assert left + len(dead(server)) == 10


@one_server
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_loops_own_cancellations_still_work_after_a_timeout(server, broker, anyio_backend):
    """A runner that was cancelled and goes on is, to asyncio's own timeouts and groups, a task as any other."""
    outcomes = []

    @task(timeout=0.03, retries=0)
    async def ended() -> None:
        await anyio.sleep_forever()

    @task(retries=0)
    async def with_asyncio() -> None:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(30)
        except TimeoutError:
            outcomes.append("timeout")
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        outcomes.append(asyncio.current_task().cancelling())

    await broker.enqueue_many([call for _ in range(3) for call in (ended.call(), with_asyncio.call())])
    await burst(broker, ended, with_asyncio, concurrency=1)
    assert outcomes == ["timeout", 0] * 3
    assert len(dead(server)) == 3


@one_server
async def test_ended_with_the_worker_is_no_failure_that_a_worker_must_be_kept_from(server, broker):
    """A group of cancellations does not look like a handler that takes its worker down."""
    endless = as_it_ends("a group")
    endless = task(name="endless", retries=0)(endless.function)
    await broker.enqueue(endless)
    worker = Worker(broker, [endless], concurrency=1, grace_period=0.0)
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        await until(lambda: pending(server) == 1)
        await anyio.sleep(0.02)
        worker.stop()
    rows = server.command("XPENDING", "queue:standard", "workers", "-", "+", 10)
    assert [row[1] for row in rows] == [b"released"]
