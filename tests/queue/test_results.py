"""Results: waiting without polling, and what waiters are told."""

from __future__ import annotations

import datetime as dt
import random
import traceback
from contextlib import aclosing, suppress
from decimal import Decimal

import anyio
import pytest

from streamq import RedisBroker, Reject, gather, group, task
from streamq.errors import OutcomeUnknownError, ResultNotKeptError, ResultTimeoutError, TaskFailedError
from tests.at_work import assert_nothing_left, burst, until, working

pytestmark = pytest.mark.paired("memory")


@task(result_ttl=60)
async def double(n: int) -> int:
    return 2 * n


@task(result_ttl=60, retries=0)
async def fails(text: str) -> None:
    raise ValueError(text)


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def calls(server, name):
    text = server.command("INFO", "commandstats").decode()
    for line in text.splitlines():
        if line.startswith(f"cmdstat_{name}:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


async def test_a_waiter_that_came_before_the_end_gets_the_result(server, broker):
    """And one that comes after it, as long as it is kept."""
    go = anyio.Event()

    @task(result_ttl=60)
    async def slow(n: int) -> int:
        await go.wait()
        return n

    handle = await broker.enqueue(slow, 7)
    got = []

    async def wait():
        got.append(await handle.result(timeout=5))

    async with working(broker, slow):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
            await until(lambda: heard(server, handle) == 1)
            go.set()
        assert got == [7] * 5
        assert await handle.result() == 7
        assert await handle.result(timeout=0.5) == 7
    assert 50_000 < server.command("PTTL", f"queue:result:{handle.task_id}") <= 60_000
    await until(lambda: heard(server, handle) == 0)
    assert_nothing_left(server)


def heard(server, handle):
    """Return how many connections listen for a result."""
    return server.command("PUBSUB", "NUMSUB", f"queue:result:{handle.task_id}")[1]


@pytest.mark.slow
async def test_waiting_does_not_poll(real_server):
    """While nothing happens nothing is asked: two looks for each waiter, however long it takes, and none at the end."""
    go = anyio.Event()

    @task(result_ttl=60)
    async def slow() -> None:
        await go.wait()

    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(slow)
        before, gets = calls(real_server, "mget"), calls(real_server, "get")
        async with working(broker, slow), anyio.create_task_group() as group:
            group.start_soon(handle.result)
            await until(lambda: heard(real_server, handle))
            await anyio.sleep(0.3)
            assert calls(real_server, "mget") - before == 2
            go.set()
    assert calls(real_server, "mget") - before == 2
    assert calls(real_server, "get") == gets


async def test_a_result_that_does_not_come_in_time_is_a_timeout(server, broker):
    """ResultTimeoutError, which is a TimeoutError; waiting can go on afterwards."""
    handle = await broker.enqueue(double, 2)
    with pytest.raises(ResultTimeoutError, match=r"within 0\.05 s") as caught:
        await handle.result(timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.task_id == handle.task_id
    await burst(broker, double)
    assert await handle.result(timeout=5) == 4


async def test_a_failure_is_raised_with_its_words(server, broker):
    """Type, message, traceback and reason of the dead letter."""
    handle = await broker.enqueue(fails, "no way: caf\udce9".encode("utf-8", "surrogateescape").decode("latin-1"))
    await burst(broker, fails)
    with pytest.raises(TaskFailedError) as caught:
        await handle.result(timeout=5)
    error = caught.value
    assert (error.task_id, error.reason, error.error_type) == (handle.task_id, "retries_exhausted", "ValueError")
    assert error.error.startswith("no way")
    assert "raise ValueError(text)" in error.traceback
    assert_nothing_left(server)


async def test_who_prints_a_failure_sees_where_the_task_failed(server, broker):
    """The traceback of the worker is a note of the error; its causes and groups are in it."""

    @task(result_ttl=60, retries=0)
    async def chained() -> None:
        try:
            {}["schlüssel ✓"]
        except KeyError as error:
            raise ExceptionGroup("both", [ValueError("first ☃"), OSError("second")]) from error

    handle = await broker.enqueue(chained)
    await burst(broker, chained)
    with pytest.raises(TaskFailedError) as caught:
        await handle.result(timeout=5)
    assert str(caught.value) == (f"task {handle.task_id!r} failed (retries_exhausted): ValueError: first ☃")
    printed = "".join(traceback.format_exception(caught.value))
    for words in ("In the worker:", "KeyError: 'schlüssel ✓'", "direct cause", "ValueError: first ☃", "OSError: sec"):
        assert words in printed, words
    assert caught.value.traceback in caught.value.__notes__[0] + "\n"


async def test_a_long_traceback_loses_its_beginning(server, broker):
    """Its end says what happened; a result is not as large as the stack was deep."""

    @task(result_ttl=60, retries=0)
    async def deep() -> None:
        def down(n: int) -> None:
            if n:
                odd(n) if n % 2 else even(n)
            raise ValueError("the bottom")

        def odd(n: int) -> None:
            down(n - 1)

        def even(n: int) -> None:
            down(n - 1)

        down(60)

    handle = await broker.enqueue(deep)
    await burst(broker, deep)
    with pytest.raises(TaskFailedError, match="the bottom") as caught:
        await handle.result(timeout=5)
    assert len(caught.value.traceback) == 4000
    assert caught.value.traceback.endswith("ValueError: the bottom\n")
    assert not caught.value.traceback.startswith("Traceback")


async def test_a_withdrawn_task_fails_as_cancelled_and_has_no_traceback(server, broker):
    """The reason says so; nothing is noted."""
    handle = await broker.enqueue(double, 1)
    assert await handle.cancel()
    with pytest.raises(TaskFailedError, match="Cancelled") as caught:
        await handle.result(timeout=5)
    assert caught.value.reason == "cancelled"
    assert not hasattr(caught.value, "__notes__")


async def test_an_error_whose_text_has_no_utf8_reaches_who_waits(server, broker):
    """Names of files come with lone surrogates; neither the worker nor the waiter may stumble."""

    @task(result_ttl=60, retries=0)
    async def opens() -> None:
        raise FileNotFoundError("caf\udce9")

    handle = await broker.enqueue(opens)
    await burst(broker, opens)
    with pytest.raises(TaskFailedError, match="caf"):
        await handle.result(timeout=5)


async def test_a_rejection_reaches_who_waits_at_once(server, broker):
    """No retry is waited for."""

    @task(result_ttl=60)
    async def refuses() -> None:
        raise Reject("not today")

    async with working(broker, refuses):
        handle = await broker.enqueue(refuses)
        with pytest.raises(TaskFailedError, match="not today") as caught:
            await handle.result(timeout=5)
        assert caught.value.reason == "rejected"


async def test_a_waiter_is_not_told_of_a_failure_that_is_retried(server, broker):
    """Only the end counts."""
    runs = []

    @task(result_ttl=60, backoff=lambda a, e: 0.01)
    async def flaky() -> int:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError
        return len(runs)

    async with working(broker, flaky):
        assert await (await broker.enqueue(flaky)).result(timeout=5) == 3


async def test_a_result_that_is_no_json_is_an_error_for_who_waits_and_a_success_for_the_task(server, broker):
    """The work is done; it is not repeated because of its result."""
    runs = []

    @task(result_ttl=60, validate=False)
    async def odd(n: int) -> object:
        runs.append(n)
        endless: list = []
        endless.append(endless)
        return [object(), {1, 2}, float("nan"), endless][n]

    handles = await broker.enqueue_many([odd.call(n) for n in range(4)])
    await burst(broker, odd)
    for handle in handles:
        with pytest.raises(TaskFailedError, match="the task succeeded") as caught:
            await handle.result(timeout=5)
        assert caught.value.error_type == "EncodingError"
    assert sorted(runs) == [0, 1, 2, 3]
    assert server.command("EXISTS", "queue:dead") == 0
    assert_nothing_left(server)


async def test_what_json_can_carry_comes_back(server, broker):
    """With pydantic also what it makes of Decimal and models."""

    @task(result_ttl=60)
    async def values(n: int) -> object:
        return [None, True, 1.5, "ü", {"a": [1]}, dt.date(2024, 1, 2), Decimal("1.5")][n]

    handles = await broker.enqueue_many([values.call(n) for n in range(7)])
    await burst(broker, values)
    got = [await handle.result(timeout=5) for handle in handles]
    assert got == [None, True, 1.5, "ü", {"a": [1]}, "2024-01-02", "1.5"]


async def test_a_task_that_keeps_none_says_so_at_once(server, broker):
    """Rather than waiting for what never comes."""

    @task
    async def silent() -> None: ...

    handle = await broker.enqueue(silent)
    with pytest.raises(ResultNotKeptError, match="result_ttl"):
        await handle.result(timeout=5)
    handle = await broker.enqueue(silent.options(result_ttl=5))
    await burst(broker, silent)
    assert await handle.result(timeout=5) is None
    assert not [name for name in server.keys() if name.startswith("queue:result:") and name[13:] != handle.task_id]  # noqa: SIM118


@pytest.mark.parametrize("none", [0, dt.timedelta(0)])
async def test_an_enqueue_that_keeps_none_says_so_at_once(server, broker, none):
    """`result_ttl=0` says that no result is kept, whatever the task says; so of a name, and of the end of a flow."""
    handles = [
        await broker.enqueue(double.options(result_ttl=none), 1),
        await broker.enqueue("double", 1, result_ttl=none),
        await broker.start(double.call(1).then(double.options(result_ttl=none))),
        await broker.start(group(double.options(result_ttl=none).call(1), double.call(2))),
    ]
    for handle in handles:
        with pytest.raises(ResultNotKeptError, match="result_ttl"):
            await handle.result()
    await burst(broker, double)
    assert len(server.command("KEYS", "queue:result:*")) == 2  # the first step of the chain, and one of the group


async def test_a_producer_that_has_only_the_name_can_wait(server, broker):
    """The worker's declaration says that the result is kept."""
    handle = await broker.enqueue("double", 4)
    await burst(broker, double)
    assert await handle.result(timeout=5) == 8


async def test_a_thousand_waiters_share_one_connection(real_server):
    """However many wait, the server sees one subscriber more."""
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([double.call(n) for n in range(200)])
        got: list[int] = []

        async def wait(handle):
            got.append(await handle.result(timeout=20))

        async with working(broker, double), anyio.create_task_group() as group:
            for handle in handles:
                group.start_soon(wait, handle)
            await until(lambda: len(got) == 200, 20)
            assert real_server.command("INFO", "clients").decode().count("connected_clients:") == 1
            # Those of tests before this one may be about to go.
            await until(lambda: len(real_server.command("CLIENT", "LIST", "TYPE", "pubsub").splitlines()) <= 2, 5)
    assert sorted(got) == [2 * n for n in range(200)]


@pytest.mark.slow
async def test_a_waiter_that_is_cancelled_leaves_nothing_behind(server, broker):
    """No subscription, no waiter; the next waiter is served."""
    handle = await broker.enqueue(double, 1)
    for _ in range(3):
        with anyio.move_on_after(0.03):
            await handle.result()
    await until(lambda: heard(server, handle) == 0)
    assert repr(broker._waiters) == "<Waiters for 0 results>"
    await burst(broker, double)
    assert await handle.result(timeout=5) == 2


@pytest.mark.slow
async def test_waiters_that_come_together_are_all_told(server, broker):
    """Also those that come while the first is still subscribing."""
    for _ in range(5):
        handle = await broker.enqueue(double, 3)
        got = []

        async def wait(handle, got):
            got.append(await handle.result(timeout=5))

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(wait, handle, got)
            await burst(broker, double)
        assert got == [6] * 4


async def test_a_result_that_is_too_large_is_an_error_for_its_waiters(server):
    """A server would close the connection on it, with the settlements of others on their way."""

    @task(result_ttl=60)
    async def huge() -> str:
        return "x" * (33 << 20)

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(huge)
        async with working(broker, huge):
            with pytest.raises(
                TaskFailedError, match="has 34,603,017 bytes, and at most 33,554,432 are kept"
            ) as caught:
                await handle.result(timeout=10)
    assert caught.value.reason == "result"


async def test_waits_that_are_cut_short_at_any_moment_leave_no_channel(real_server):
    """Each ends within the time that a subscription takes: by its own timeout, or by a cancellation."""
    async with RedisBroker(real_server.url) as broker:
        drawn = random.Random(1)
        for handle in await broker.enqueue_many([double.call(n) for n in range(60)]):
            with suppress(ResultTimeoutError):
                await handle.result(timeout=drawn.random() * 0.004)
            with anyio.move_on_after(drawn.random() * 0.004):
                await handle.result()
            with suppress(ResultTimeoutError):
                await gather(handle, timeout=drawn.random() * 0.004)
            with anyio.move_on_after(drawn.random() * 0.004):
                async with aclosing(handle.watch()) as reports:
                    async for _ in reports:
                        pass
        await until(lambda: not real_server.command("PUBSUB", "CHANNELS", "queue:*"))
        assert repr(broker._waiters) == "<Waiters for 0 results>"
        assert not broker._waiters._stale


async def test_a_wait_that_follows_one_that_was_cut_short_misses_nothing(real_server):
    """It begins while the channel of the first is being left, and the result comes at any moment."""
    drawn = random.Random(2)

    @task(result_ttl=60)
    async def soon(seconds: float) -> None:
        await anyio.sleep(seconds)

    async def wait_twice(handle):
        with anyio.move_on_after(drawn.random() * 0.02):
            await handle.result()
        await handle.result(timeout=5)  # a look at what was missed would come after 10 s

    async with RedisBroker(real_server.url) as broker, working(broker, soon), anyio.create_task_group() as group:
        for handle in await broker.enqueue_many([soon.call(drawn.random() * 0.02) for _ in range(200)]):
            group.start_soon(wait_twice, handle)


async def test_watches_without_a_subscription_leave_nothing(server, broker):
    """A task that has ended is told at once: nobody subscribes, and no name of its channels is kept."""
    handle = await broker.enqueue(double, 1)
    await burst(broker, double)
    assert [report async for report in handle.watch()] == []
    assert not broker._waiters._stale


async def test_a_wait_reads_again_if_its_reply_is_lost(server, broker, monkeypatch):
    """The connection breaks while the wait reads: it raised OutcomeUnknownError, though to read changes nothing."""
    losses = iter(range(3))
    call = broker.store.call

    async def lossy(commands):
        if commands and commands[0][0] == "MGET" and next(losses, None) is not None:
            raise OutcomeUnknownError("the connection was lost before the reply came")
        return await call(commands)

    handle = await broker.enqueue(double, 4)
    monkeypatch.setattr(broker.store, "call", lossy)
    async with working(broker, double):
        assert await handle.result(timeout=10) == 8
    assert next(losses, None) is None
