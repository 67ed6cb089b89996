"""When tasks start, and until when they may: `delay`, `at`, `expires`, `unknown_wait`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from streamq import Priority, Worker, task
from streamq.consumer.promoter import LOOK_EVERY as LOOK
from streamq.testing.clock import START
from tests.timed.stage import TICK, OnTime

pytestmark = pytest.mark.paired("memory")


@pytest.fixture
def noted(stage):
    """A task that notes when it starts."""

    @task
    async def noted(what: str = "noted") -> None:
        stage.note(what)

    return noted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({"delay": 0.05}, 0.05),
        ({"delay": 1}, 1.0),
        ({"delay": timedelta(hours=1, minutes=30)}, 5400.0),
        ({"at": START + 600}, 600.0),
        ({"at": datetime.fromtimestamp(START + 60, UTC)}, 60.0),
        ({"at": datetime.fromtimestamp(START + 90.25, UTC)}, 90.25),
        ({"at": START - 86_400}, 0.0),
        ({"delay": 0}, 0.0),
    ],
)
async def test_starts_when_it_is_due(stage, noted, options, due):
    """P6: neither early nor late, be it in milliseconds or in hours; what was due before starts now."""
    async with stage.broker() as broker, stage.working(broker, noted, visibility_timeout=600):
        await broker.enqueue(noted.options(**options))
        await anyio.sleep(due + 60)
    assert stage.times("noted") == [OnTime(due)]


async def test_due_earlier_than_what_the_worker_sleeps_for(stage, noted):
    """A word on the wake channel: nobody sleeps through what came later and is due sooner."""
    async with stage.broker() as broker, stage.working(broker, noted):
        await broker.enqueue(noted.options(delay=4.0), "late")
        await anyio.sleep(1)
        await broker.enqueue(noted.options(delay=0.5), "soon")
        await anyio.sleep(10)
    assert stage.starts == [("soon", OnTime(1.5)), ("late", OnTime(4.0))]


async def test_written_by_hand_without_a_word(stage, noted):
    """What is put among the delayed by hand is found within a tick of the scheduler."""
    async with stage.broker() as broker, stage.working(broker, noted):
        await anyio.sleep(1)
        stage.command("HSET", "queue:standard:messages", "by-hand", '["id","by-hand","task","noted"]')
        stage.command("ZADD", "queue:standard:delayed", f"{(START + 2) * 1000:.0f}", "by-hand")
        await anyio.sleep(LOOK * 2)
    (at,) = stage.times("noted")
    assert 2 <= at <= 1 + LOOK + TICK


@pytest.mark.slow
async def test_in_the_order_of_their_times(stage, noted):
    """A hundred tasks, sent in another order, start each at its own time."""
    dues = [(37 * number) % 100 + 1 for number in range(100)]
    async with stage.broker() as broker, stage.working(broker, noted, visibility_timeout=600):
        await broker.enqueue_many([noted.options(delay=due).call(str(due)) for due in dues])
        await anyio.sleep(200)
    assert stage.starts == [(str(due), OnTime(due)) for due in range(1, 101)]


async def test_all_tiers_by_their_own_time(stage, noted):
    """A task of the lowest tier is not late for its time."""
    async with stage.broker() as broker, stage.working(broker, noted):
        for priority in (Priority.LOW, Priority.NORMAL, Priority.CRITICAL):
            await broker.enqueue(noted.options(delay=10, priority=priority), priority.name)
        await anyio.sleep(20)
    assert sorted(stage.starts) == [(name, OnTime(10)) for name in ("CRITICAL", "LOW", "NORMAL")]


async def test_no_worker_when_it_was_due(stage, noted):
    """It waits in Redis, and starts with the first worker."""
    async with stage.broker() as broker:
        await broker.enqueue(noted.options(delay=60))
        await anyio.sleep(7200)
        async with stage.working(broker, noted):
            await anyio.sleep(1)
    assert stage.times("noted") == [OnTime(7200)]


@pytest.mark.parametrize(
    ("options", "first_worker", "outcome"),
    [
        ({"expires": 60}, 59.0, "starts"),
        ({"expires": 60}, 60.0, "starts"),
        ({"expires": 60}, 60.002, "expired"),
        ({"expires": timedelta(days=1)}, 86_399.0, "starts"),
        ({"expires": datetime.fromtimestamp(START + 60, UTC)}, 61.0, "expired"),
        ({"expires": 60, "delay": 50}, 0.0, "starts"),
        ({"expires": 60, "delay": 61}, 0.0, "expired"),
    ],
)
async def test_expires(stage, noted, options, first_worker, outcome):
    """What has not started by then never does, and is a dead letter at once."""
    async with stage.broker() as broker:
        await broker.enqueue(noted.options(**options))
        await anyio.sleep(first_worker)
        async with stage.working(broker, noted):
            await anyio.sleep(100)
    reasons = [letter["reason"] for letter in stage.dead()]
    assert (len(stage.times("noted")), reasons) == ((1, []) if outcome == "starts" else (0, ["expired"]))


async def test_a_run_may_go_on_after_it_expired(stage):
    """`expires` is about starting."""

    @task
    async def long() -> None:
        await anyio.sleep(120)
        stage.note("done")

    async with stage.broker() as broker, stage.working(broker, long):
        await broker.enqueue(long.options(expires=60))
        await anyio.sleep(200)
    assert stage.times("done") == [OnTime(120)]
    assert stage.dead() == []


@pytest.mark.slow
@pytest.mark.parametrize(("wait", "looks"), [(300.0, 150), (5.0, 5), (0.0, 0)])
async def test_an_unknown_task_waits_for_a_worker_that_knows_it(stage, noted, wait, looks):
    """P1: it is looked at every 2 s, or five times, and dead after `unknown_wait`, no attempt spent."""
    async with stage.broker() as broker, stage.working(broker, noted, unknown_wait=wait, visibility_timeout=120):
        await broker.enqueue("strange")
        await anyio.sleep(wait + 60)
    (letter,) = stage.dead()
    died = datetime.fromisoformat(letter["died_at"]).timestamp() - START
    pause = wait / looks if looks else 0
    assert wait <= died <= wait + pause + (looks + 1) * 2 * TICK
    assert (letter["reason"], letter["attempts"]) == ("unknown_task", "0")


@pytest.mark.slow
async def test_a_deployment_in_time(stage, noted):
    """P1: a task that one worker does not know runs as soon as the other's worker is there."""

    @task
    async def new() -> None:
        stage.note("new")

    async with stage.broker() as broker, stage.working(broker, noted, unknown_wait=300, name="old"):
        await broker.enqueue(new)
        await anyio.sleep(100)
        old = stage.command("ZCARD", "queue:standard:delayed")
        async with stage.working(broker, new, name="new"):
            await anyio.sleep(100)
    assert old == 1
    (at,) = stage.times("new")
    # The old one may be faster to take it, a few times; each costs a pause.
    assert 100 <= at <= 120
    assert stage.dead() == []


@pytest.mark.slow
async def test_a_burst_waits_for_what_is_due_within_a_minute(stage, noted):
    """And ends at once where the next is due later than that."""
    async with stage.broker() as broker:
        await broker.enqueue(noted.options(delay=59), "in time")
        await broker.enqueue(noted.options(delay=3600), "later")
        await Worker(broker, [noted], burst=True).run()
    assert stage.times("in time") == [OnTime(59)]
    assert 59 <= stage.at <= 59.2
