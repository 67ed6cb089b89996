"""Batches: up to N messages, or what came in T seconds, in one call; each settled by itself."""

from __future__ import annotations

import inspect
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import date
from typing import Annotated

import anyio
import pytest
from typing_extensions import TypeAliasType

from streamq import (
    RedisBroker,
    Reject,
    RetryLater,
    Worker,
    batch_task,
    current_batch,
    current_delivery,
    gather,
    task,
)
from streamq.errors import ArgumentsError, ConfigurationError, TaskFailedError
from streamq.handlers.context import current_store
from streamq.middleware import MiddlewareChain
from streamq.tasks.batch import Batch, TaskSettings
from tests.at_work import assert_nothing_left, burst, dead, pending, until, working
from tests.crew import Crew, say

pytestmark = pytest.mark.paired("memory")


@pytest.fixture(name="broker")  # a worker of this module would take it for its own
async def opened(server):
    async with RedisBroker(server.url) as opened:
        yield opened


@pytest.fixture
async def memory():
    """A broker for what no server has a part in."""
    async with RedisBroker("memory://") as opened:
        yield opened


# --- what a batch is ------------------------------------------------------------------------------


async def test_a_handler_gets_many_messages_at_once(server, broker):
    """With a backlog batches are full; each message is acknowledged."""
    got = []

    @batch_task(size=20, wait=5)
    async def insert(rows: list[int]) -> None:
        got.append(rows)

    await broker.enqueue_many([insert.call(n) for n in range(100)])
    await burst(broker, insert, concurrency=20)
    assert [len(rows) for rows in got] == [20] * 5
    assert sorted(n for rows in got for n in rows) == list(range(100))
    assert_nothing_left(server)


@pytest.mark.slow
def test_without_parentheses(anyio_backend):
    """It is a batch task with the defaults, as `@task` is a task; what is no function is refused by name."""

    @batch_task
    async def insert(items: list[str]) -> None: ...

    @batch_task
    def measure(items: list[str]) -> None: ...

    assert (insert.name, insert.batch, measure.batch) == ("insert", Batch(100, 0.1), Batch())
    assert (insert.run_in, measure.run_in) == ("loop", "thread")
    for wrong in (5, "insert"):
        with pytest.raises(ConfigurationError):
            batch_task(wrong)
    with pytest.raises(ConfigurationError, match="it takes one, a list of items"):

        @batch_task
        async def nothing() -> None: ...


async def test_an_incomplete_batch_runs_when_the_first_has_waited(memory):
    """`wait` counts from the first, and the items keep the order they came in."""
    got = []

    @batch_task(size=50, wait=0.3)
    async def insert(rows: list[int]) -> None:
        got.append((rows, time.monotonic() - began))

    began = time.monotonic()
    await memory.enqueue_many([insert.call(n) for n in range(7)])
    await burst(memory, insert)
    ((rows, after),) = got
    assert rows == list(range(7))
    assert after >= 0.3


async def test_a_full_batch_does_not_wait(memory):
    """`size` is enough."""

    @batch_task(size=5, wait=3600)
    async def insert(rows: list[int]) -> None: ...

    await memory.enqueue_many([insert.call(n) for n in range(15)])
    await burst(memory, insert)  # within its 20 s


async def test_tiers_may_share_a_batch_and_tasks_do_not(memory):
    """What runs together is of one task, of whatever tier."""
    got = []

    @batch_task(size=4, wait=1)
    async def one(rows: list[str]) -> None:
        got.append(("one", sorted(rows)))

    @batch_task(size=2, wait=1)
    async def two(rows: list[str]) -> None:
        got.append(("two", sorted(rows)))

    await memory.enqueue_many(
        [one.options(priority=priority).call(f"{priority}") for priority in (100, 10, 1)]
        + [two.call("a"), two.call("b"), one.call("x")]
    )
    await burst(memory, one, two)
    assert sorted(got) == [("one", ["1", "10", "100", "x"]), ("two", ["a", "b"])]


async def test_with_slots_for_two_batches_the_next_fills_while_one_runs(memory):
    """Batches of one task run beside each other."""
    inside = []
    both = anyio.Event()

    @batch_task(size=5, wait=3600)
    async def insert(rows: list[int]) -> None:
        inside.append(rows)
        if len(inside) == 2:
            both.set()
        await both.wait()

    await memory.enqueue_many([insert.call(n) for n in range(10)])
    await burst(memory, insert, concurrency=10)
    assert len(inside) == 2


async def test_the_batch_at_hand(memory):
    """`current_batch()` is in the order of the items; there is no one delivery, but a queue."""
    got = []

    @batch_task(size=3, wait=1)
    async def insert(rows: list[int]) -> None:
        got.extend((delivery.task_id, row) for delivery, row in zip(current_batch(), rows, strict=True))
        assert current_store().keys.group == "workers"
        with pytest.raises(LookupError):
            current_delivery()

    handles = await memory.enqueue_many([insert.call(n) for n in range(3)])
    await burst(memory, insert)
    assert got == [(handle.task_id, n) for n, handle in enumerate(handles)]
    with pytest.raises(LookupError, match="no batch"):
        current_batch()


@pytest.mark.slow
@pytest.mark.parametrize("run_in", ["thread", "process"])
async def test_functions_that_are_not_async(memory, run_in):
    """In a thread, or in a process, once for the whole batch."""

    @batch_task(size=3, wait=5, result_ttl=10, name="in_thread")
    def in_thread(rows: list[int]) -> list[str]:
        assert len(current_batch()) == 3
        return [f"{row} of {len(rows)} {threading.current_thread() is threading.main_thread()}" for row in rows]

    one = in_thread if run_in == "thread" else in_process
    handles = await memory.enqueue_many([one.call(n) for n in range(3)])
    async with working(memory, one):
        results = [await handle.result(timeout=20) for handle in handles]
    if run_in == "thread":
        assert results == ["0 of 3 False", "1 of 3 False", "2 of 3 False"]
    else:
        assert results[0] == ["0", "of 3"]
        assert results[2] == ["2", "of 3"]
        with_error = in_process.options(retries=0)
        handles = await memory.enqueue_many([with_error.call(n) for n in (-1, 5, 6)])
        await burst(memory, in_process)
        assert await handles[1].result(timeout=1) == ["5", "of 3"]
        with pytest.raises(TaskFailedError, match="negative"):
            await handles[0].result(timeout=1)


@batch_task(size=3, wait=5, result_ttl=10, run_in="process")
def in_process(rows: list[int]) -> list[list[str] | Exception]:
    return [ValueError("negative") if row < 0 else [str(row), f"of {len(rows)}"] for row in rows]


# --- each by itself ----------------------------------------------------------------------------------


async def test_each_message_ends_as_the_handler_says_of_its_item(server, broker):
    """A result is kept, a failure retried or dead-lettered, RetryLater postpones, Reject rejects."""
    seen = Counter()

    @batch_task(size=6, wait=0.2, retries=1, backoff=0.01, result_ttl=60)
    async def insert(rows: list[str]) -> list[int | Exception]:
        seen.update(rows)
        attempts = {row: delivery.attempt for row, delivery in zip(rows, current_batch(), strict=True)}
        return [
            {
                "good": 1, "flaky": ValueError("again") if attempts[row] == 1 else 2, "bad": ValueError("always"),
                "late": RetryLater("busy", after=0.02) if seen[row] == 1 else 10 + attempts[row],
                "wrong": Reject("wrong"), "fine": 3,
            }[row]
            for row in rows
        ]  # fmt: skip

    names = ["good", "flaky", "bad", "late", "wrong", "fine"]
    handles = dict(zip(names, await broker.enqueue_many([insert.call(name) for name in names]), strict=True))
    await burst(broker, insert)
    results = {name: await handles[name].result(timeout=1) for name in ("good", "flaky", "late", "fine")}
    assert results == {"good": 1, "flaky": 2, "late": 11, "fine": 3}
    assert seen == {"good": 1, "flaky": 2, "bad": 2, "late": 2, "wrong": 1, "fine": 1}
    assert sorted((one["args"], one["reason"], one["error"]) for one in dead(server)) == [
        ('["bad"]', "retries_exhausted", "always"),
        ('["wrong"]', "rejected", "wrong"),
    ]
    assert_nothing_left(server)


class MuteError(Exception):
    """An exception, every attribute of which raises."""

    def __getattribute__(self, name):
        raise LookupError(name)


class MuteExit(BaseException):
    __getattribute__ = MuteError.__getattribute__


class Mute:
    __getattribute__ = MuteError.__getattribute__


@pytest.mark.parametrize("kind", [MuteError, MuteExit, Mute])
async def test_an_item_whose_attributes_raise_fails_none_but_itself(memory, kind):
    """Its traceback was read, and all neighbours failed; the exceptions that are raised harm no worker either."""

    @batch_task(size=3, wait=0.2, retries=0, result_ttl=60)
    async def insert(rows: list[str]) -> list[object]:
        if "raises" in rows:
            raise kind
        return [kind() if row == "bad" else row for row in rows]

    handles = await memory.enqueue_many([insert.call(name) for name in ("one", "bad", "two")])
    async with working(memory, insert):
        assert await gather(handles[0], handles[2], timeout=5) == ("one", "two")
        with pytest.raises(TaskFailedError):
            await handles[1].result(timeout=5)
        with pytest.raises(TaskFailedError):
            await (await memory.enqueue(insert, "raises")).result(timeout=5)
        assert await (await memory.enqueue(insert, "three")).result(timeout=5) == "three"


@pytest.mark.slow
async def test_if_the_handler_raises_all_fail_with_that(server, broker):
    """Each by its own policy and attempt, and each dead letter has the whole traceback, once."""
    sizes = []

    @batch_task(size=4, wait=0.2, retries=1, backoff=0.01)
    async def insert(rows: list[int]) -> None:
        sizes.append(len(rows))
        raise ConnectionError("the database is away")

    await broker.enqueue_many([insert.call(n) for n in range(3)] + [insert.options(retries=0).call(3)])
    await burst(broker, insert)
    letters = dead(server)
    assert sorted((letter["args"], letter["attempts"]) for letter in letters) == [
        ("[0]", "2"), ("[1]", "2"), ("[2]", "2"), ("[3]", "1"),
    ]  # fmt: skip
    assert sizes == [4, 3]
    for letter in letters:
        assert letter["traceback"].count('raise ConnectionError("the database is away")') == 1
        assert letter["traceback"].count(", in outcome") == 1  # it has not gathered those of the others


@pytest.mark.parametrize("returned", [[1, 2], [], "abc", 5, {"a": 1}, (1, 2, 3, 4)])
async def test_what_cannot_be_told_apart_is_a_failure_of_all(memory, returned):
    """None, or one thing for each item: anything else is a mistake that is named."""

    @batch_task(size=3, wait=5, retries=0, result_ttl=10)
    async def insert(rows: list[int]) -> object:
        return returned

    handles = await memory.enqueue_many([insert.call(n) for n in range(3)])
    await burst(memory, insert)
    for handle in handles:
        with pytest.raises(TaskFailedError, match="for a batch of 3: return None, or a list with one for each item"):
            await handle.result(timeout=1)


@pytest.mark.parametrize(
    ("rows", "returns"),
    [
        (Annotated[list[date], "rows"], Annotated[list[date], "days"]), (list[date] | None, list[date] | None),
        (tuple[date, ...], Sequence[date | Exception]), (TypeAliasType("Days", list[date]), Iterable[date]),
    ],
    ids=["Annotated", "optional", "tuple", "alias"],
)  # fmt: skip
async def test_the_type_of_an_item_is_found_through_what_is_around_the_list(memory, rows, returns):
    async def insert(rows):
        return rows

    insert.__annotations__ = {"rows": rows, "return": returns}
    inserting = batch_task(size=2, wait=0.01, result_ttl=60, name="insert")(insert)
    async with RedisBroker(memory.url) as broker:
        handle = await broker.enqueue(inserting, date(2026, 1, 1))
        with pytest.raises(ArgumentsError, match="argument item = 'soon'"):
            await broker.enqueue(inserting, "soon")
        await Worker(broker, tasks=[inserting], burst=True).run()
        assert await handle.result(timeout=1) == date(2026, 1, 1)


async def test_an_annotation_that_is_no_list_of_items_is_refused_with_the_remedy(memory):
    async def insert(rows): ...

    insert.__annotations__ = {"rows": date}
    inserting = batch_task(name="insert")(insert)
    async with RedisBroker(memory.url) as broker:
        for refused in (broker.enqueue(inserting, date(2026, 1, 1)), Worker(broker, tasks=[inserting]).run()):
            with pytest.raises(ArgumentsError, match=r"annotation of rows: date is no list .* annotate list\[\.\.\.\]"):
                await refused


async def test_an_item_that_does_not_fit_its_annotation_joins_no_batch(server, broker):
    """With pydantic items are converted one by one, and a bad one is rejected alone."""
    got = []

    @batch_task(size=3, wait=0.2)
    async def insert(rows: list[int]) -> None:
        got.append(rows)

    with pytest.raises(ArgumentsError, match="argument item = 'x'"):
        await broker.enqueue(insert, "x")
    for item in ('["x"]', '["5"]', "[1,2]", "[7]"):
        server.command("XADD", "queue:standard", "*", "task", "insert", "args", item)
    server.command("XADD", "queue:standard", "*", "task", "insert", "kwargs", '{"rows":1}')
    await burst(broker, insert)
    assert got == [[5, 7]]
    assert [letter["reason"] for letter in dead(server)] == ["rejected"] * 3


async def test_middleware_wraps_each_message(memory):
    """Inside each message's own chain is its place in the batch, and its own outcome."""
    seen = []

    class Watch:
        async def __call__(self, context, call_next):
            if context.args[0] == 2:
                raise Reject("not this one")
            result = await call_next(context)
            seen.append((context.args[0], result))
            return result + 1

    @batch_task(size=2, wait=5, result_ttl=10, middleware=[Watch()])
    async def insert(rows: list[int]) -> list[int]:
        return [row * 10 for row in rows]

    handles = await memory.enqueue_many([insert.call(n) for n in (1, 2, 3)])
    await burst(memory, insert, middleware=MiddlewareChain())
    assert sorted(seen) == [(1, 10), (3, 30)]
    assert [await handles[n].result(timeout=1) for n in (0, 2)] == [11, 31]


# --- time ----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_timeout_is_the_handlers_and_not_the_waiting(memory):
    """Waiting for company for longer than the timeout is no failure."""
    got = []

    @batch_task(size=10, wait=0.5, timeout=0.2, retries=0)
    async def insert(rows: list[int]) -> None:
        got.append(rows)

    await memory.enqueue(insert, 1)
    await burst(memory, insert)
    assert got == [[1]]


@pytest.mark.parametrize("by", ["task", "one message"])
async def test_a_handler_that_takes_too_long_fails_for_all(memory, by):
    """The shortest timeout in the batch is that of its handler."""
    ended = []

    @batch_task(size=2, wait=5, timeout=0.1 if by == "task" else 60, retries=0, result_ttl=10)
    async def insert(rows: list[int]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(rows)

    first = insert.options(timeout=0.1) if by == "one message" else insert
    handles = await memory.enqueue_many([first.call(1), insert.call(2)])
    await burst(memory, insert)
    for handle in handles:
        with pytest.raises(TaskFailedError, match=r"TaskTimeoutError.* timeout of 0\.1 s"):
            await handle.result(timeout=1)
    assert ended == [[1, 2]]


# --- dropping out ------------------------------------------------------------------------------------------


def held(size, **options):
    """A batch task whose handler says when it is inside, and waits until it may go on."""
    inside, go, got = anyio.Event(), anyio.Event(), []

    @batch_task(size=size, retries=0, result_ttl=60, **options)
    async def insert(rows: list[int]) -> list[int]:
        inside.set()
        try:
            await go.wait()
            got.append(rows)
        except BaseException:
            got.append("cancelled")
            raise
        return rows

    return insert, inside, go, got


async def test_one_that_is_cancelled_while_it_runs_drops_out(server, broker):
    """The handler goes on with its item in the list, for the others; its sender is told "cancelled"."""
    insert, inside, go, got = held(3, wait=5)
    handles = await broker.enqueue_many([insert.call(n) for n in range(3)])
    async with working(broker, insert):
        await inside.wait()
        assert await handles[1].cancel()
        with pytest.raises(TaskFailedError, match="cancelled"):
            await handles[1].result(timeout=5)
        go.set()
        assert [await handles[n].result(timeout=5) for n in (0, 2)] == [0, 2]
    assert got == [[0, 1, 2]]
    assert_nothing_left(server)


async def test_one_that_is_cancelled_before_the_batch_runs_leaves_it(broker):
    """The handler never hears of it."""
    insert, _, go, got = held(3, wait=5)
    go.set()
    first = await broker.enqueue(insert, 0)
    async with working(broker, insert) as worker:
        await until(lambda: worker.health.running == 1)
        assert await first.cancel()
        with pytest.raises(TaskFailedError, match="cancelled"):
            await first.result(timeout=5)
        handles = await broker.enqueue_many([insert.call(n) for n in (1, 2, 3)])
        assert [await handle.result(timeout=5) for handle in handles] == [1, 2, 3]
    assert got == [[1, 2, 3]]


async def test_if_all_are_cancelled_the_handler_is(broker):
    """It has nobody to run for; the next batch runs as ever."""
    insert, inside, go, got = held(2, wait=5)
    handles = await broker.enqueue_many([insert.call(n) for n in range(2)])
    async with working(broker, insert):
        await inside.wait()
        for handle in handles:
            assert await handle.cancel()
        await until(lambda: got == ["cancelled"])
        go.set()
        handles = await broker.enqueue_many([insert.call(n) for n in (5, 6)])
        assert [await handle.result(timeout=5) for handle in handles] == [5, 6]


async def test_one_that_loses_its_lease_drops_out(server, broker):
    """P4: what another consumer took over is not settled here; the others are."""
    insert, inside, go, got = held(3, wait=5)
    handles = await broker.enqueue_many([insert.call(n) for n in range(3)])
    async with working(broker, insert, visibility_timeout=0.6) as worker:
        await inside.wait()
        entry = server.command("XRANGE", "queue:standard", "-", "+")[1][0]
        server.command("XCLAIM", "queue:standard", "workers", "thief", "0", entry)
        await until(lambda: worker.health.superseded == 1)
        go.set()
        assert [await handles[n].result(timeout=5) for n in (0, 2)] == [0, 2]
        assert pending(server) == 1
    assert got == [[0, 1, 2]]


async def test_a_cancellation_that_the_handler_made_up_is_a_failure(memory, anyio_backend):
    """As in any handler: nobody asked for it."""
    if anyio_backend == "trio":
        pytest.skip("trio's Cancelled cannot be made up")
    import asyncio

    @batch_task(size=2, wait=5, retries=0, result_ttl=10)
    async def insert(rows: list[int]) -> None:
        raise asyncio.CancelledError

    handles = await memory.enqueue_many([insert.call(n) for n in range(2)])
    await burst(memory, insert)
    for handle in handles:
        with pytest.raises(TaskFailedError, match="CancelledError"):
            await handle.result(timeout=1)


async def test_sys_exit_in_a_handler_is_a_failure_of_all(memory):
    """And not the end of the worker."""

    @batch_task(size=2, wait=5, retries=0, result_ttl=10)
    async def insert(rows: list[int]) -> None:
        raise SystemExit(3)

    handles = await memory.enqueue_many([insert.call(n) for n in range(2)])
    await burst(memory, insert)
    for handle in handles:
        with pytest.raises(TaskFailedError, match="SystemExit: 3"):
            await handle.result(timeout=1)


# --- the worker's end, and its suspects ---------------------------------------------------------------------


async def test_a_worker_that_stops_runs_an_incomplete_batch_at_once(server, broker):
    """P8: waiting for more would be in vain."""
    insert, _, go, got = held(50, wait=3600)
    go.set()
    await broker.enqueue_many([insert.call(n) for n in range(3)])
    with anyio.fail_after(20):
        async with working(broker, insert) as worker:
            await until(lambda: worker.health.running == 3)
    assert got == [[0, 1, 2]]
    assert_nothing_left(server)


@pytest.mark.slow
async def test_after_the_grace_period_the_handler_is_cancelled_and_all_are_handed_back(server, broker):
    """P8: each message runs again elsewhere, no attempt poorer."""
    insert, inside, go, got = held(3, wait=5)
    await broker.enqueue_many([insert.call(n) for n in range(3)])
    async with working(broker, insert, grace_period=0.1):
        await inside.wait()
    assert got == ["cancelled"]
    go.set()
    await burst(broker, insert)
    assert got == ["cancelled", [0, 1, 2]]
    assert_nothing_left(server)


@asynccontextmanager
async def suspected(server, broker, *tasks, **options):
    """Two workers died with every entry in their hands: each is a suspect."""
    server.command("XGROUP", "CREATE", "queue:standard", "workers", "0", "MKSTREAM")
    server.command("XREADGROUP", "GROUP", "workers", "ghost", "STREAMS", "queue:standard", ">")
    for entry, _ in server.command("XRANGE", "queue:standard", "-", "+"):
        server.command("HSET", "queue:standard:crashes:workers", entry, "ghost0")
    server.command("ZADD", "queue:standard:alive:workers", "1", "ghost")
    async with working(broker, *tasks, **options) as worker:
        yield worker


@pytest.mark.slow
async def test_a_suspect_is_a_batch_of_one(server, broker):
    """P5: what may have taken two workers down runs alone, so that only it pays."""
    got = []

    @batch_task(size=10, wait=0.2, result_ttl=60)
    async def insert(rows: list[int]) -> list[int]:
        got.append(rows)
        assert len(rows) == 1 or not any(delivery.crashed_workers for delivery in current_batch())
        return rows

    handles = await broker.enqueue_many([insert.call(n) for n in range(3)])
    async with suspected(server, broker, insert, visibility_timeout=0.6):
        handles += await broker.enqueue_many([insert.call(n) for n in (10, 11)])
        assert [await handle.result(timeout=15) for handle in handles] == [0, 1, 2, 10, 11]
    assert [rows for rows in got if rows[0] < 10] == [[0], [1], [2]]


@pytest.mark.slow
async def test_a_batch_that_waits_does_not_hold_a_suspect_up(server, broker):
    """A suspect starts when nothing runs beside it: what waits for company runs with what there is."""
    got = []

    @batch_task(size=10, wait=3600)
    async def insert(rows: list[int]) -> None:
        got.append(rows)

    @task(result_ttl=60)
    async def send() -> bool:
        return current_delivery().isolated

    handle = await broker.enqueue(send)
    server.command("XGROUP", "CREATE", "queue:standard", "workers", "0", "MKSTREAM")
    ((entry, _),) = server.command("XRANGE", "queue:standard", "-", "+")
    server.command("XREADGROUP", "GROUP", "workers", "ghost", "STREAMS", "queue:standard", ">")
    async with working(broker, insert, send, visibility_timeout=1.2) as worker:
        await broker.enqueue(insert, 1)
        await until(lambda: worker.health.running == 1)
        server.command("HSET", "queue:standard:crashes:workers", entry, "ghost0")
        server.command("ZADD", "queue:standard:alive:workers", "1", "ghost")
        assert await handle.result(timeout=15) is True
    assert got == [[1]]


# --- a fault -----------------------------------------------------------------------------------------------


@batch_task(size=20, wait=0.1, name="crew.insert")
async def crew_insert(rows: list[int]) -> None:
    say(f"begun {os.getpid()} " + " ".join(map(str, rows)))
    if not os.path.exists(os.environ["CREW_LOG"] + ".go"):  # noqa: ASYNC240, PTH110 - one look
        await anyio.sleep_forever()
    say("done " + " ".join(map(str, rows)))


crew_tasks = [crew_insert]


@pytest.mark.slow
async def test_a_worker_killed_in_the_middle_of_a_batch_loses_none(real_server, anyio_backend, tmp_path):
    """P1: each message of the batch is handled again, by whoever takes over, and acknowledged."""
    if (anyio_backend, real_server.kind) not in {("asyncio", "redis"), ("trio", "valkey")}:
        pytest.skip("one kind of server per backend is enough here")
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue_many([crew_insert.call(n) for n in range(50)])
        with Crew(f"{__name__}:crew_tasks", real_server, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim", "--concurrency", "20")
            await anyio.to_thread.run_sync(crew.until, "begun")
            victim.kill()
            await anyio.to_thread.run_sync(victim.wait)
            broken = items(crew.lines("begun"), skip=2)
            assert broken
            assert pending(real_server) >= len(broken)
            crew.log.with_suffix(".log.go").touch()
            crew.start("heir", "--concurrency", "40")
            done = Counter()
            with anyio.fail_after(40):
                while sum((done := items(crew.lines("done"))).values()) < 50:
                    await anyio.sleep(0.02)
            assert done == Counter(range(50))
            begun = items(crew.lines("begun"), skip=2)
            assert begun == Counter(range(50)) + broken
            await until(lambda: pending(real_server) == 0 and real_server.command("XLEN", "queue:standard") == 0)
    assert dead(real_server) == []


def items(lines, skip=1):
    return Counter(int(item) for line in lines for item in line.split()[skip:])


# --- what cannot be used ---------------------------------------------------------------------------------------


async def test_a_batch_task_is_still_its_function():
    """A call takes the list itself."""

    @batch_task()
    async def insert(rows: list[int]) -> list[int]:
        return rows

    assert await insert([1, 2]) == [1, 2]
    assert insert.batch == Batch(size=100, wait=0.1)
    assert insert.options(priority=1).batch == insert.batch


async def test_a_message_carries_one_item(memory):
    """Two, none, or one by name are refused where they are sent; options are options."""

    @batch_task(size=3, validate=False)
    async def insert(delay: list[int]) -> None: ...

    for args, kwargs in (((), {}), ((1, 2), {}), ((), {"rows": 1}), ((1,), {"rows": 1})):
        with pytest.raises(ArgumentsError, match="one positional argument, an item"):
            await memory.enqueue(insert, *args, **kwargs)
    await memory.enqueue(insert, 1, delay=60)
    assert await memory.client.zcard("queue:standard:delayed") == 1


def test_what_cannot_be_a_batch_is_refused():
    """Size, wait, and functions that take no list."""
    for size in (0, -1, 1.5, True, "3"):
        with pytest.raises(ConfigurationError, match="size="):
            batch_task(size=size)
    for wait in (-1, float("nan"), float("inf"), "1"):
        with pytest.raises(ConfigurationError, match="wait="):
            batch_task(wait=wait)

    async def none() -> None: ...
    async def two(rows: list[int], more: int) -> None: ...
    async def named(*, rows: list[int]) -> None: ...
    async def many(*rows: list[int]) -> None: ...

    for function in (none, two, named, many):
        with pytest.raises(ConfigurationError, match="it takes one, a list of items"):
            batch_task()(function)

    async def optional(rows: list[int], more: int = 5) -> None: ...

    assert batch_task()(optional).name == "optional"


def test_the_options_are_those_of_task():
    """All of them but `cron`, whose messages carry no item."""
    made = inspect.signature(sys.modules[task.__module__]._make).parameters
    assert set(TaskSettings.__annotations__) == set(made) - {"function", "cron"}

    async def insert(rows: list[int]) -> None: ...

    with pytest.raises(ConfigurationError, match="a schedule sends no item"):
        batch_task(cron="0 * * * *")(insert)
    one = batch_task(retries=7, timeout=5, on_exhausted=print, name="other")(insert)
    assert (one.name, one.policy.retries, one.timeout, one.on_exhausted) == ("other", 7, 5, print)


def test_a_batch_larger_than_the_worker_is_refused():
    """It could never be full: both numbers are named, and the remedy."""

    @batch_task(size=101)
    async def insert(rows: list[int]) -> None: ...

    broker = RedisBroker("memory://")
    with pytest.raises(ConfigurationError, match="size=101, and the worker concurrency=100: each message takes a slot"):
        Worker(broker, tasks=[insert])
    Worker(broker, tasks=[insert], concurrency=101)
