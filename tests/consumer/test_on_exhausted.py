"""`on_exhausted`: a function that is called, or a task that is sent, when a task is dead."""

from __future__ import annotations

import os
import signal
import threading
import time

import anyio
import pytest

from streamq import Exhausted, RedisBroker, Reject, Tier, Worker, current_delivery, task
from streamq.consumer.on_exhausted import MOST_CALLS, OnExhausted
from streamq.errors import ConfigurationError, EncodingError
from streamq.handlers.context import current_store
from tests.at_work import assert_nothing_left, burst, dead, entries, until, working
from tests.crew import Crew, say

pytestmark = pytest.mark.paired("memory")


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


@pytest.fixture
def told():
    return []


# --- a function -----------------------------------------------------------------------------------


async def test_a_function_is_called_once_with_the_dead_task(server, broker, told):
    """After the last attempt, and after the dead letter is there."""

    async def tell(exhausted: Exhausted) -> None:
        assert current_delivery().entry_id == exhausted.delivery.entry_id
        assert current_store().keys.group == "workers"
        told.append((exhausted, len(dead(server))))

    @task(retries=1, backoff=0.01, on_exhausted=tell)
    async def fails(n: int) -> None:
        raise ValueError(f"no {n}")

    handle = await broker.enqueue(fails, 5)
    await burst(broker, fails)
    ((exhausted, letters),) = told
    assert letters == 1
    assert exhausted.reason == "retries_exhausted"
    assert (exhausted.failure.error_type, exhausted.failure.error) == ("ValueError", "no 5")
    assert 'raise ValueError(f"no {n}")' in exhausted.failure.traceback
    delivery = exhausted.delivery
    assert (delivery.task_id, delivery.args, delivery.attempt) == (handle.task_id, [5], 2)
    assert_nothing_left(server)


async def test_a_sync_function_is_called_in_a_thread(broker, told):
    """It may block."""

    def tell(exhausted: Exhausted) -> None:
        told.append((threading.current_thread() is threading.main_thread(), current_delivery().args))

    @task(retries=0, on_exhausted=tell)
    async def fails(n: int) -> None:
        raise ValueError

    await broker.enqueue(fails, 5)
    await burst(broker, fails)
    assert told == [(False, [5])]


async def test_it_is_called_for_each_way_to_die_that_the_task_has(server, broker, told):
    """Rejected, wrong arguments, expired, exhausted; not for what is no message, or another task's."""

    async def tell(exhausted: Exhausted) -> None:
        told.append((str(exhausted.reason), exhausted.delivery.args))

    @task(retries=0, on_exhausted=tell)
    async def picky(n: int) -> None:
        raise Reject("no") if n else ValueError("no")

    @task(retries=0)
    async def other() -> None:
        raise ValueError

    await broker.enqueue(picky, 0)
    await broker.enqueue(picky, 1)
    await broker.enqueue("picky")
    await broker.enqueue(picky.options(expires=0.001), 2)
    await broker.enqueue(other)
    server.command("XADD", "queue:standard", "*", "task", "picky", "args", "nonsense")
    await anyio.sleep(0.01)
    await burst(broker, picky, other)
    assert sorted(told) == [("expired", [2]), ("rejected", []), ("rejected", [1]), ("retries_exhausted", [0])]
    assert len(dead(server)) == 6


async def test_what_succeeds_or_is_retried_or_postponed_calls_nobody(broker, told):
    """Only the end counts."""

    @task(retries=2, backoff=0.01, on_exhausted=told.append)
    async def flaky() -> None:
        if current_delivery().attempt < 3:
            raise ValueError

    await broker.enqueue(flaky)
    await burst(broker, flaky)
    assert told == []


async def test_one_that_fails_is_named_in_the_log_and_harms_nobody(server, broker, told, caplog):
    """Errors of an async function, of a sync one, and SystemExit."""

    async def raises(exhausted: Exhausted) -> None:
        raise KeyError("of the callback")

    def leaves(exhausted: Exhausted) -> None:
        raise SystemExit("of the callback")

    @task(retries=0, on_exhausted=raises)
    async def one() -> None:
        raise ValueError

    @task(retries=0, on_exhausted=leaves)
    async def two() -> None:
        raise ValueError

    @task
    async def good() -> None:
        told.append(1)

    await broker.enqueue_many([one.call(), two.call(), good.call()])
    async with working(broker, one, two, good):
        await until(lambda: caplog.text.count("on_exhausted of <Delivery") == 2)
        await broker.enqueue(good)
        await until(lambda: told == [1, 1])
    assert len(dead(server)) == 2


@pytest.mark.slow
async def test_one_that_takes_too_long_is_given_up(broker, told, caplog, monkeypatch):
    """After a time limit; others are called meanwhile, and the settling waits for neither."""
    monkeypatch.setattr("streamq.consumer.on_exhausted.CALL_TIMEOUT", 0.2)

    async def hangs(exhausted: Exhausted) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            told.append(exhausted.delivery.args)

    @task(retries=0, on_exhausted=hangs)
    async def fails(n: int) -> None:
        raise ValueError

    await broker.enqueue_many([fails.call(n) for n in range(MOST_CALLS + 1)])
    async with working(broker, fails):
        await until(lambda: len(told) == MOST_CALLS + 1)
    assert caplog.text.count("TimeoutError") >= MOST_CALLS + 1


async def test_a_call_holds_no_slot(server, broker, told):
    """With one slot, the next task runs while the call of the last goes on."""
    go = anyio.Event()

    async def waits(exhausted: Exhausted) -> None:
        await go.wait()
        told.append("called")

    @task(retries=0, on_exhausted=waits)
    async def fails() -> None:
        raise ValueError

    @task
    async def good() -> None:
        told.append("ran")

    await broker.enqueue(fails)
    async with working(broker, fails, good, concurrency=1):
        await until(lambda: dead(server))
        await broker.enqueue(good)
        await until(lambda: told == ["ran"])
        go.set()
    assert told == ["ran", "called"]


async def test_a_worker_that_stops_makes_the_calls_that_are_due(server, broker, told):
    """What died during the drain included."""
    inside, go = anyio.Event(), anyio.Event()

    async def tell(exhausted: Exhausted) -> None:
        await anyio.sleep(0.05)
        told.append(len(dead(server)))

    @task(retries=0, on_exhausted=tell)
    async def fails() -> None:
        inside.set()
        await go.wait()
        raise ValueError

    await broker.enqueue(fails)
    async with anyio.create_task_group() as group:
        worker = Worker(broker, tasks=[fails])
        await group.start(worker.run)
        await inside.wait()
        worker.stop()
        go.set()
    assert told == [1]


async def test_of_too_many_calls_some_are_dropped_and_named(broker, caplog, monkeypatch, told):
    """The worker's memory is bounded; the dead letters are all there."""
    monkeypatch.setattr("streamq.consumer.on_exhausted.MOST_WAITING", 2)
    go = anyio.Event()

    async def waits(exhausted: Exhausted) -> None:
        await go.wait()
        told.append(1)

    @task(retries=0, on_exhausted=waits)
    async def fails() -> None:
        raise ValueError

    async with working(broker, fails):
        await broker.enqueue_many([fails.call() for _ in range(30)])
        await until(lambda: "is not called: 2 calls wait already" in caplog.text)
        go.set()
        await until(lambda: len(told) + caplog.text.count("is not called") == 30)


async def fail_after_another_settled(server, broker, on_exhausted) -> None:
    """Have a task fail for the last time after somebody else has acknowledged it."""
    inside, go = anyio.Event(), anyio.Event()

    @task(retries=0, on_exhausted=on_exhausted)
    async def fails() -> None:
        inside.set()
        await go.wait()
        raise ValueError

    await broker.enqueue(fails)
    async with working(broker, fails) as worker:
        await inside.wait()
        (entry,) = server.command("XRANGE", "queue:standard", "-", "+")
        server.command("XACK", "queue:standard", "workers", entry[0])
        server.command("XDEL", "queue:standard", entry[0])
        go.set()
        await until(lambda: worker.health.superseded == 1)


async def test_a_death_that_was_not_ours_calls_nobody(server, broker, told):
    """P4: a failure that comes after somebody else has settled the task is void."""
    await fail_after_another_settled(server, broker, told.append)
    assert told == []
    assert dead(server) == []


# --- a task ----------------------------------------------------------------------------------------


async def test_a_task_is_sent_in_its_place(server, broker, told):
    """With one argument that says what died, and why."""

    @task
    async def clean_up(what: dict) -> None:
        told.append(what)

    @task(retries=1, backoff=0.01, on_exhausted=clean_up)
    async def fails(to: str, n: int) -> None:
        raise ValueError(f"no {to}")

    handle = await broker.enqueue(fails.options(headers={"trace": "7f"}), "a@b.c", n=2)
    await burst(broker, fails, clean_up)
    (what,) = told
    assert 'raise ValueError(f"no {to}")' in what.pop("traceback")
    assert what == {
        "task_id": handle.task_id, "task": "fails", "args": ["a@b.c"], "kwargs": {"n": 2}, "headers": {"trace": "7f"},
        "reason": "retries_exhausted", "error_type": "ValueError", "error": "no a@b.c", "attempts": 2,
    }  # fmt: skip
    assert len(dead(server)) == 1
    assert_nothing_left(server)


async def test_it_is_sent_as_its_options_say(server, told):
    """Tier, priority, delay, headers and the like; to the group that it died in."""
    tiers = [Tier("fast", 2, threshold=50), Tier("slow")]

    @task(priority=50, name="p")
    async def by_priority(what: dict) -> None: ...

    def failing(then):
        @task(
            retries=0,
            on_exhausted=then,
            name=f"fails {then.send_options.tier or then.send_options.delay}".replace(" ", "-"),
        )
        async def fails() -> None:
            raise ValueError

        return fails

    tasks = [
        failing(by_priority),
        failing(by_priority.options(tier="slow", retries=7, timeout=3, result_ttl=4, headers={"a": 1})),
        failing(by_priority.options(delay=300)),
    ]
    async with RedisBroker(server.url, tiers=tiers) as broker:
        await broker.enqueue_many([one.options(priority=1).call() for one in tasks])
        async with working(broker, *tasks, tiers={"slow": 1}):  # this worker serves not where they are sent
            await until(lambda: len(dead(server)) == 3)
            await until(lambda: server.command("ZCARD", "queue:fast:delayed") == 1)
            (fast,) = entries(server, "queue:fast")
    assert (fast["task"], fast["priority"], fast["group"]) == ("p", "50", "workers")
    assert server.command("HLEN", "queue:fast:messages") == 1


async def test_sent_with_options_it_carries_them(server, broker):
    """Retries, timeout, result_ttl, headers and tier are fields of the message."""

    @task
    async def clean_up(what: dict) -> None: ...

    then = clean_up.options(tier="bulk", retries=7, timeout=3, result_ttl=4, headers={"a": 1})

    @task(retries=0, on_exhausted=then)
    async def fails() -> None:
        raise ValueError

    await broker.enqueue(fails)
    async with working(broker, fails, tiers={"standard": 1}):
        await until(lambda: dead(server))
    (sent,) = entries(server, "queue:bulk")
    assert {name: sent[name] for name in ("task", "retries", "timeout", "result_ttl", "headers")} == {
        "task": "clean_up", "retries": "7", "timeout": "3.0", "result_ttl": "4.0", "headers": '{"a":1}',
    }  # fmt: skip


async def test_the_task_is_sent_if_and_only_if_the_death_counts(server, broker):
    """One step: a worker that does not hold the delivery any more writes neither."""

    @task
    async def clean_up(what: dict) -> None: ...

    await fail_after_another_settled(server, broker, clean_up)
    assert dead(server) == entries(server, "queue:standard") == []


# --- a fault ---------------------------------------------------------------------------------------


@task(name="crew.clean_up")
async def crew_clean_up(what: dict) -> None:
    say(f"sent {what['reason']} {what['args'][0]}")


async def crew_tell(exhausted: Exhausted) -> None:
    say(f"called {exhausted.reason} {exhausted.delivery.args[0]}")


@task(name="crew.crashes", on_exhausted=crew_clean_up)
async def crew_crashes(n: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task(name="crew.crashes_too", on_exhausted=crew_tell)
async def crew_crashes_too(n: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


crew_tasks = [crew_clean_up, crew_crashes, crew_crashes_too]


@pytest.mark.slow
async def test_a_crash_loop_calls_and_sends_as_well(real_server, anyio_backend, tmp_path):
    """P5: the culprit's workers are dead; the one that convicts it, by its sweep, calls or sends."""
    if (anyio_backend, real_server.kind) not in {("asyncio", "redis"), ("trio", "valkey")}:
        pytest.skip("one kind of server per backend is enough here")
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(crew_crashes, 1)
        with Crew(f"{__name__}:crew_tasks", real_server, tmp_path, backend=anyio_backend, lease=0.5) as crew:
            for n, (wanted, one) in enumerate((("sent crash_loop 1", None), ("called crash_loop 2", crew_crashes_too))):
                if one is not None:
                    await broker.enqueue(one, 2)
                end = time.monotonic() + 40
                while not crew.lines(wanted):
                    assert time.monotonic() < end, crew.lines()
                    if not crew.members or crew.members[-1].poll() is not None:
                        crew.start(f"w{n}-{len(crew.members)}")
                    await anyio.sleep(0.02)
    assert [letter["reason"] for letter in dead(real_server)] == ["crash_loop", "crash_loop"]


# --- what cannot be used ----------------------------------------------------------------------------


def test_what_can_be_neither_called_nor_sent_is_refused():
    """Where it is written."""

    @task
    async def none() -> None: ...

    @task
    async def two(a: dict, b: int) -> None: ...

    @task
    async def one(what: dict) -> None: ...

    for wrong in (5, "clean_up", Exhausted):
        with pytest.raises(ConfigurationError, match="on_exhausted="):
            task(on_exhausted=wrong)(lambda_free)
    for wrong in (none, two):
        with pytest.raises(ConfigurationError, match="on_exhausted is given one argument, a dict"):
            task(on_exhausted=wrong)(lambda_free)
    for options in ({"dedup_key": "k"}, {"task_id": "t"}, {"expires": 5}, {"durable": "aof"}, {"at": 5e9}):
        with pytest.raises(ConfigurationError, match=f"on_exhausted has {next(iter(options))}"):
            task(on_exhausted=one.options(**options))(lambda_free)


async def lambda_free() -> None: ...


async def test_a_task_that_cannot_be_sent_stops_the_worker_at_its_start(broker):
    """An unknown tier, or a header that is no JSON."""

    @task
    async def clean_up(what: dict) -> None: ...

    for then, error in (
        (clean_up.options(tier="nowhere"), ConfigurationError),
        (clean_up.options(headers={"a": {1}}), EncodingError),
    ):
        with pytest.raises(error):
            await Worker(broker, tasks=[task(on_exhausted=then)(lambda_free)]).run()


async def test_a_worker_whose_tasks_have_none_pays_nothing(broker, monkeypatch):
    """No cost to those who do not use it: no loop, and nothing asked at a dead letter."""
    monkeypatch.setattr(OnExhausted, "serve", None)
    monkeypatch.setattr(OnExhausted, "side_effects", None)

    @task(retries=0)
    async def fails() -> None:
        raise ValueError

    await broker.enqueue(fails)
    await burst(broker, fails)
