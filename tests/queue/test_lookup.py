"""Status and cancellation by id, wherever a task is, and the list of what is delayed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import anyio
import anyio.to_thread
import pytest

from streamq import Backoff, RedisBroker, task
from streamq.errors import ConfigurationError, NotOpenError, TaskFailedError
from streamq.queue.delayed import promote
from streamq.queue.lookup import PAGE, Lookup
from streamq.queue.results import Status
from tests.at_work import assert_nothing_left, burst, until, working
from tests.crew import Crew, say


@task(validate=False)
async def note(n: int = 0) -> None: ...


@pytest.fixture(name="broker")  # a worker of this module would take it for its own
async def opened(server):
    async with RedisBroker(server.url) as opened:
        yield opened


async def promoted(broker, server, stream="queue:standard"):
    """Have what is due moved to its stream."""

    async def moved():
        await promote(broker.store)
        return not server.command("ZCARD", f"{stream}:delayed")

    with anyio.fail_after(8):
        while not await moved():
            await anyio.sleep(0.002)


@pytest.mark.parametrize("by", ["its handle", "its id", "its id and tier"])
async def test_a_task_that_became_due_is_found(server, broker, by):
    """Its entry is not known to whoever sent it."""
    handle = await broker.enqueue(note.options(delay=0.01, tier="bulk", result_ttl=60), 1)
    assert (await handle.status(), handle.entry_id) == (Status.DELAYED, "")
    await broker.enqueue_many([note.options(tier="bulk").call(n) for n in range(5)])
    await promoted(broker, server, "queue:bulk")
    if by != "its handle":
        handle = broker.handle(handle.task_id, **({"tier": "bulk"} if "tier" in by else {}))
    assert await handle.status() is Status.QUEUED
    assert await handle.cancel()
    assert await handle.status() is Status.FAILED
    assert not await handle.cancel()
    with pytest.raises(TaskFailedError, match="cancelled before it started"):
        await handle.result(timeout=5)
    assert server.command("XLEN", "queue:bulk") == 5
    await burst(broker, note)
    assert_nothing_left(server)


async def test_one_that_is_many_pages_behind_is_found(server, broker):
    """The search goes on until the end of the stream, one bounded step after the other."""
    (first, *_), (last,) = (
        await broker.enqueue_many([note.call(n) for n in range(2 * PAGE + 10)]),
        await broker.enqueue_many([note.call(0)]),
    )
    for handle in (first, last):
        found = broker.handle(handle.task_id)
        assert await found.status() is Status.QUEUED
        assert await broker.cancel(handle.task_id)
        assert await found.status() is Status.FAILED
    assert server.command("XLEN", "queue:standard") == 2 * PAGE + 9


async def test_an_entry_written_by_hand_is_found_by_its_own_id(server, broker):
    """It carries no id, and its entry's stands in."""
    entry = server.command("XADD", "queue:critical", "*", "task", "note").decode()
    assert await broker.handle(entry).status() is Status.QUEUED
    assert await broker.cancel(entry)
    assert server.command("XLEN", "queue:critical") == 0


async def test_a_delayed_task_written_by_hand_is_found_by_its_member(server, broker):
    """With no id in its message either; who waits for its result is told under that id."""
    server.command("HSET", "queue:standard:messages", "mail-7", '["task","note","result_ttl","60"]')
    server.command("ZADD", "queue:standard:delayed", 1 << 50, "mail-7")
    handle = broker.handle("mail-7")
    assert await handle.status() is Status.DELAYED
    assert await handle.cancel()
    with pytest.raises(TaskFailedError):
        await handle.result(timeout=5)
    assert_nothing_left(server)


@pytest.mark.parametrize("known", [True, False])
async def test_a_running_task_that_was_delayed_is_found_and_told(server, broker, known):
    """It stops, and is not repeated."""
    inside, ended = anyio.Event(), anyio.Event()

    @task(validate=False, result_ttl=60)
    async def endless() -> None:
        inside.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with working(broker, endless):
        handle = await broker.enqueue(endless.options(delay=0.01))
        handle = handle if known else broker.handle(handle.task_id)
        await inside.wait()
        assert await handle.status() is Status.RUNNING
        assert await handle.withdraw() == "running"
        with anyio.fail_after(5):
            await ended.wait()
        with pytest.raises(TaskFailedError, match="cancelled while it ran"):
            await handle.result(timeout=5)
    assert_nothing_left(server)


async def test_a_retry_is_found_in_every_state(server, broker):
    """Delayed, back in the stream, and running again."""
    runs, go = [], anyio.Event()

    @task(validate=False, backoff=lambda attempt, error: 60 if attempt == 1 else 0.0)
    async def flaky() -> None:
        runs.append(1)
        if len(runs) < 2:
            raise ValueError
        await go.wait()

    sent = await broker.enqueue(flaky)
    both = (sent, broker.handle(sent.task_id))
    async with working(broker, flaky):
        await until(lambda: server.command("ZCARD", "queue:standard:delayed"))
    assert [await handle.status() for handle in both] == [Status.DELAYED] * 2
    server.command("ZADD", "queue:standard:delayed", 1, f"workers|{sent.task_id}")
    await promoted(broker, server)
    assert [await handle.status() for handle in both] == [Status.QUEUED] * 2
    async with working(broker, flaky):
        await until(lambda: len(runs) == 2)
        assert [await handle.status() for handle in both] == [Status.RUNNING] * 2
        assert await both[1].withdraw() == "running"
    assert_nothing_left(server)


async def test_of_two_retries_of_one_id_the_second_is_found_when_the_first_has_left(server, broker):
    """It is delayed under its entry's id too."""
    message = '["id","twice*","task","note","group","workers"]'
    server.command("HSET", "queue:bulk:messages", "workers|twice*|5-1", message, "workers|twiceX|5-1", message)
    server.command("ZADD", "queue:bulk:delayed", 1 << 50, "workers|twice*|5-1", 1 << 50, "workers|twiceX|5-1")
    assert await broker.cancel("twice*")
    assert server.command("ZRANGE", "queue:bulk:delayed", 0, -1) == [b"workers|twiceX|5-1"]
    assert not await broker.cancel("twice*")


class Moving(Lookup):
    """A search during which the task moves, after the looks with these numbers."""

    looks = 0
    moves: dict[int, Any]

    async def _look(self):
        self.looks += 1
        if self.looks in self.moves:
            await self.moves[self.looks]()

    async def check_known_places(self, *more):
        found = await super().check_known_places(*more)
        await self._look()
        return found

    async def _in_stream(self, tier):
        found = await super()._in_stream(tier)
        await self._look()
        return found


async def test_one_that_moves_while_it_is_looked_for_is_found(server, broker):
    """From the stream to the delayed and back, between any two looks."""
    handle = await broker.enqueue(note.options(delay=60), 1)
    message = server.command("HGET", "queue:standard:messages", handle.task_id)

    async def to_stream():
        if server.command("HEXISTS", "queue:standard:messages", handle.task_id):
            server.command("ZADD", "queue:standard:delayed", 1, handle.task_id)
            await promote(broker.store)

    async def to_delayed():
        for entry, _ in server.command("XRANGE", "queue:standard", "-", "+"):
            server.command("XDEL", "queue:standard", entry)
        server.command("HSET", "queue:standard:messages", handle.task_id, message)
        server.command("ZADD", "queue:standard:delayed", 1 << 50, handle.task_id)

    for moves in ((to_stream, to_delayed), (to_delayed, to_stream)):
        for looks in combinations(range(1, 8), 2):
            await moves[1]()
            search = Moving(broker.store, handle.task_id, tier=1)
            search.moves = dict(zip(looks, moves, strict=True))
            place, _ = await search.check_known_places()
            assert place or await search.search_everywhere(), looks
    assert await handle.cancel()


async def test_a_cancelled_task_frees_what_it_held_and_runs_what_waited_behind_it(server, broker):
    """What follows from the end of a task follows from its withdrawal too."""
    ran = []

    @task(validate=False)
    async def work(n: int) -> None:
        ran.append(n)

    held = await broker.enqueue(work.options(dedup_key="k", dedup_ttl="until_done", delay=0.01), 1)
    await promoted(broker, server)
    assert await broker.cancel(held.task_id)
    assert server.command("EXISTS", "queue:dedup:k") == 0
    assert (await broker.enqueue(work.options(dedup_key="k"), 2)).fresh
    await burst(broker, work)
    assert ran == [2]
    assert_nothing_left(server)


async def test_what_is_gone_or_never_was_is_unknown(server, broker):
    """Of every id that is nowhere."""
    handle = await broker.enqueue(note)
    await burst(broker, note)
    for found in (handle, broker.handle(handle.task_id), broker.handle("nobody"), broker.handle("a*b?[c]")):
        assert await found.status() is Status.UNKNOWN
        assert not await found.cancel()
    with pytest.raises(ConfigurationError, match="none of this broker's"):
        broker.handle("x", tier="nowhere")
    with pytest.raises(NotOpenError):
        RedisBroker(server.url).handle("x")
    assert_nothing_left(server)


async def test_the_status_of_what_waits_where_it_was_put_is_one_round_trip(real_server):
    """And so is that of what is delayed: nothing is searched."""
    async with RedisBroker(real_server.url) as broker:
        queued, delayed = await broker.enqueue(note), await broker.enqueue(note.options(delay=60))
        real_server.command("CONFIG", "RESETSTAT")
        assert (await queued.status(), await delayed.status()) == (Status.QUEUED, Status.DELAYED)
        assert "evalsha" not in real_server.command("INFO", "commandstats").decode()


# --- what is delayed -----------------------------------------------------------------------------


async def test_what_is_delayed_is_listed_soonest_first(server, broker):
    """Of all tiers or one, in pages; with what is known of each."""
    start = datetime.now(UTC)
    tiers = ("critical", "standard", "bulk")
    await broker.enqueue_many([
        note.options(delay=60 + (n * 37 % 250), tier=tiers[n % 3], task_id=f"t{n}").call(n) for n in range(250)
    ])  # fmt: skip
    found = [one async for one in broker.scheduled()]
    assert [one.due for one in found] == sorted(one.due for one in found)
    assert {one.task_id: one.args for one in found} == {f"t{n}": [n] for n in range(250)}
    assert all(one.task_id == f"t{one.args[0]}" and one.tier == tiers[one.args[0] % 3] for one in found)
    assert start + timedelta(seconds=58) < found[0].due < start + timedelta(seconds=70)
    assert [one.task_id for one in found[:7]] == [one.task_id async for one in broker.scheduled(limit=7)]
    bulk = [one async for one in broker.scheduled(tier="bulk")]
    assert bulk == [one for one in found if one.tier == "bulk"]
    with pytest.raises(ConfigurationError, match="none of this broker's"):
        broker.scheduled(tier="nowhere")


async def test_what_is_due_at_one_moment_is_listed_whole(server, broker):
    """More than a page of it."""
    at = datetime.now(UTC) + timedelta(hours=1)
    await broker.enqueue_many([note.options(at=at, task_id=f"t{n:03}").call(n) for n in range(230)])
    await broker.enqueue(note.options(at=at + timedelta(seconds=1), task_id="last"))
    found = [one.task_id async for one in broker.scheduled()]
    assert found == [*(f"t{n:03}" for n in range(230)), "last"]


async def test_a_listing_goes_on_while_what_it_lists_leaves(server, broker):
    """Nobody is listed twice or passed over because others left."""
    await broker.enqueue_many([note.options(delay=60 + n, task_id=f"t{n:03}").call(n) for n in range(230)])
    found = []
    async for one in broker.scheduled():
        found.append(one.task_id)
        if len(found) == 50:
            for n in range(60):
                assert await broker.cancel(f"t{n:03}")
    assert len(found) == len(set(found))
    assert set(found) >= {f"t{n:03}" for n in range(60, 230)}


async def test_retries_and_what_cannot_be_read_are_listed_too(server, broker):
    """A retry under its task's id with its attempt; a broken message by its member."""

    @task(validate=False, backoff=Backoff(base=60, cap=60), retries=3)
    async def fails(n: int) -> None:
        raise ValueError

    handle = await broker.enqueue(fails, 5)
    async with working(broker, fails):
        await until(lambda: server.command("ZCARD", "queue:standard:delayed"))
    server.command("ZADD", "queue:bulk:delayed", 1 << 70, "broken", 1, "gone")
    server.command("HSET", "queue:bulk:messages", "broken", "{")
    retry, broken = [one async for one in broker.scheduled()]
    assert (retry.task_id, retry.task, retry.args, retry.attempt, retry.retry) == (
        handle.task_id,
        "fails",
        [5],
        2,
        True,
    )
    assert (broken.task_id, broken.task, broken.args, broken.retry) == ("broken", "", [], False)


# --- under faults ---------------------------------------------------------------------------------


@task(validate=False, name="crew_stuck", result_ttl=60)
async def crew_stuck(n: int) -> None:
    say(f"run {n}")
    await anyio.sleep(30)


TASKS = [crew_stuck]


@pytest.mark.slow
async def test_a_task_whose_worker_was_killed_can_still_be_cancelled(anyio_backend, shared_server, tmp_path):
    """It is pending for the dead; whoever takes it over is told, and its key is free."""
    server = shared_server("valkey" if anyio_backend == "trio" else "redis")
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(crew_stuck.options(delay=0.01, dedup_key="k", dedup_ttl=600), 1)
        with Crew("tests.queue.test_lookup", server, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim")
            await anyio.to_thread.run_sync(crew.until, "run 1")
            victim.kill()
            victim.wait()
            assert await handle.status() is Status.RUNNING
            crew.start("heir")
            await anyio.to_thread.run_sync(crew.until, "run 1", 2)
            assert await broker.handle(handle.task_id).withdraw() == "running"
            with pytest.raises(TaskFailedError, match="cancelled while it ran"):
                await handle.result(timeout=20)
        assert server.command("EXISTS", "queue:dedup:k") == 0
