"""When a failed task runs again, to the millisecond: backoff, jitter, `RetryLater`, timeouts."""

from __future__ import annotations

import random
from itertools import pairwise

import anyio
import pytest

from streamq import RetryLater, Worker, task
from streamq.tasks.retry_policy import Backoff
from tests.timed.stage import TICK, OnTime

HALF = 0.0005  # seconds: the server's clock forgets a fraction of a millisecond before the delay begins


class Remembering(random.Random):
    """A source of randomness that remembers the jitter it gave to retries."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.jitter: list[tuple[float, float]] = []  # (ceiling, delay)

    def uniform(self, a: float, b: float) -> float:
        value = super().uniform(a, b)
        if a == 0.0:  # sweeps and outages draw from other ranges
            self.jitter.append((b, value))
        return value


def failing(stage, **options):
    """A task that notes each start, and fails."""

    @task(**options)
    async def fails() -> None:
        stage.note("fails")
        raise OSError("no luck")

    return fails


async def run(stage, fails, seconds, *, seed=1, **options):
    """Run one task for so long, and return the jitter of its worker."""
    async with stage.broker() as broker, anyio.create_task_group() as group:
        worker = Worker(broker, [fails], concurrency=4, visibility_timeout=600)
        worker._random = remembering = Remembering(seed)
        await group.start(worker.run)
        await broker.enqueue(fails.options(**options))
        await anyio.sleep(seconds)
        worker.stop()
    return remembering.jitter


def assert_starts(times, delays):
    """Check that each start is on time after the one before it."""
    assert len(times) == len(delays) + 1
    for (earlier, later), delay in zip(pairwise(times), delays, strict=True):
        assert later - earlier == OnTime(round(delay, 3) - HALF), (times, delays)


@pytest.mark.slow
async def test_full_jitter(stage):
    """P6: uniform between nothing and a ceiling that doubles up to its cap; exactly as drawn."""
    jitter = await run(stage, failing(stage, retries=12), 3600)
    ceilings = [ceiling for ceiling, _ in jitter]
    assert ceilings == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert all(0 <= delay <= ceiling for ceiling, delay in jitter)
    assert_starts(stage.times("fails"), [delay for _, delay in jitter])
    (letter,) = stage.dead()
    assert (letter["reason"], letter["attempts"], letter["starts"]) == ("retries_exhausted", "13", "13")


async def test_one_seed_one_course(stage):
    """The same seed gives the same delays, and another seed others."""
    courses = []
    for seed in (1, 1, 2):
        stage.starts.clear()
        await run(stage, failing(stage, retries=5), 120, seed=seed)
        times = stage.times("fails")
        courses.append([round(at - times[0], 2) for at in times])
    assert courses[0] == pytest.approx(courses[1], abs=0.02)
    assert courses[0] != pytest.approx(courses[2], abs=0.02)


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (Backoff(base=10, factor=3, cap=100, jitter=False), [10, 30, 90, 100, 100]),
        (Backoff(base=0.05, factor=1, jitter=False), [0.05] * 5),
        (Backoff(base=0, jitter=False), [0] * 5),
        (lambda attempt, error: attempt * 60, [60, 120, 180, 240, 300]),
        (lambda attempt, error: 7 if isinstance(error, OSError) else 1000, [7] * 5),
        (lambda attempt, error: 0, [0] * 5),
    ],
)
async def test_without_jitter(stage, backoff, delays):
    """P6: a backoff of one's own, a constant one, none at all."""
    await run(stage, failing(stage, retries=5, backoff=backoff), sum(delays) + 10)
    assert_starts(stage.times("fails"), delays)


async def test_the_sender_says_how_often(stage):
    """P6: `retries` of the message overrides that of the task, and 0 means none."""
    fails = failing(stage, retries=5, backoff=Backoff(base=5, factor=1, jitter=False))
    await run(stage, fails, 100, retries=1)
    assert_starts(stage.times("fails"), [5])
    stage.starts.clear()
    await run(stage, fails, 100, retries=0)
    assert len(stage.starts) == 1


@pytest.mark.slow
async def test_the_delay_counts_from_the_failure(stage):
    """Not from the start, however long the run was."""

    @task(retries=1, backoff=Backoff(base=30, jitter=False))
    async def slow() -> None:
        stage.note("slow")
        await anyio.sleep(500)
        raise OSError

    await run(stage, slow, 2000)
    assert stage.times("slow") == [OnTime(0), OnTime(530)]


@pytest.mark.slow
async def test_retry_later(stage):
    """P6: exactly when asked for, any number of times, without an attempt."""
    waits = [3600, 0.25, 0, 90, 1800]

    @task(retries=0)
    async def later() -> None:
        stage.note("later")
        if len(stage.times("later")) <= len(waits):
            raise RetryLater("the other side is busy", after=waits[len(stage.times("later")) - 1])

    await run(stage, later, 10_000)
    assert_starts(stage.times("later"), waits)
    assert stage.dead() == []


async def test_retry_later_leaves_the_backoff_alone(stage):
    """What was postponed in between does not make the next failure wait longer."""

    @task(retries=3, backoff=Backoff(base=10, factor=2, jitter=False))
    async def mixed() -> None:
        stage.note("mixed")
        if len(stage.times("mixed")) % 2:
            raise RetryLater(after=100)
        raise OSError

    await run(stage, mixed, 1000)
    assert_starts(stage.times("mixed"), [100, 10, 100, 20, 100, 40, 100])
    (letter,) = stage.dead()
    assert (letter["attempts"], letter["starts"]) == ("4", "8")


async def test_a_retry_waits_out_the_absence_of_workers(stage):
    """P6: the delay lies in Redis, not in a worker: it goes on while none is there."""
    fails = failing(stage, retries=1, backoff=Backoff(base=60, jitter=False))
    await run(stage, fails, 1)
    await anyio.sleep(20)
    async with stage.broker() as broker, stage.working(broker, fails):
        await anyio.sleep(100)
    assert stage.times("fails") == [OnTime(0), OnTime(60)]


@pytest.mark.slow
async def test_a_delay_holds_no_slot(stage):
    """P6: with one slot, a thousand tasks that wait an hour hold up nobody."""

    @task(retries=0)
    async def waits() -> None:
        if stage.at < 3000:
            raise RetryLater(after=3600)
        stage.note("waits")

    @task
    async def other() -> None:
        stage.note("other")

    async with stage.broker() as broker:
        await broker.enqueue_many([waits.call() for _ in range(200)])
        async with stage.working(broker, waits, other, concurrency=1, visibility_timeout=600):
            await anyio.sleep(10)
            await broker.enqueue(other)
            await anyio.sleep(4000)
    assert stage.times("other") == [OnTime(10)]
    assert len(stage.times("waits")) == 200
    assert 3600 <= min(stage.times("waits")) <= max(stage.times("waits")) <= 3600.1


@pytest.mark.parametrize("limit", [0.5, 90.0])
async def test_a_timeout_ends_the_run_on_time(stage, limit):
    """A run is cancelled exactly after its timeout, and retried like any failure."""

    @task(retries=1, timeout=limit, backoff=Backoff(base=10, jitter=False))
    async def hangs() -> None:
        stage.note("hangs")
        try:
            await anyio.sleep_forever()
        finally:
            stage.note("ended")

    await run(stage, hangs, 3 * limit + 60)
    assert stage.times("ended") == [at + limit for at in stage.times("hangs")]
    assert_starts(stage.times("hangs"), [limit + 10])
    (letter,) = stage.dead()
    assert letter["error_type"].endswith("TaskTimeoutError")


async def test_the_senders_timeout(stage):
    """`timeout` of the message overrides that of the task; 0 is none."""

    @task(retries=0, timeout=10)
    async def long() -> None:
        await anyio.sleep(60)
        stage.note("done")

    await run(stage, long, 100, timeout=0)
    assert stage.times("done") == [OnTime(60)]
    await run(stage, long, 100, timeout=59)
    assert len(stage.dead()) == 1


async def test_the_tick_is_what_the_server_can_count():
    """These assertions are worth something: a delay that is off by 2 ms would be seen."""
    assert OnTime(10) == 10.001
    assert OnTime(10) != 9.999
    assert OnTime(10) != 10 + TICK + 0.0005
