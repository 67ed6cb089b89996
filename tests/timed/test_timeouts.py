"""When runs are ended for their timeouts, to the millisecond: beside each other, and one after the other in a slot."""

from __future__ import annotations

import anyio
import pytest

from streamq import task
from streamq.consumer.timeouts import Slot, Timeouts

pytestmark = pytest.mark.paired("memory")

SOON = 1e-6  # seconds: sums of floating point numbers


def on_time(at):
    return pytest.approx(at, abs=SOON)


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [2, 40])
async def test_each_run_ends_at_its_own_time(stage, concurrency):
    """Long and short timeouts at once, the short ones begun while the end of a long one is far."""
    limits = [0.001, 0.04, 0.05, 0.06, 0.1, 0.15, 1.0, 7.3, 3600.0]
    ended = []

    def hanging(limit):
        @task(name=f"hangs-{limit}", timeout=limit, retries=0)
        async def hangs() -> None:
            began = stage.at
            try:
                await anyio.sleep_forever()
            finally:
                ended.append((limit, stage.at - began))

        return hangs

    tasks = [hanging(limit) for limit in limits]
    async with stage.broker() as broker, stage.working(broker, *tasks, concurrency=concurrency, visibility_timeout=600):
        await broker.enqueue(tasks[-1])
        await anyio.sleep(10.01)
        for pause in (0.0, 0.049, 0.05, 0.051, 0.0999, 0.3):
            for one in tasks[:-1]:
                await broker.enqueue(one)
            await anyio.sleep(pause)
        await anyio.sleep(3700)
    assert len(ended) == 6 * (len(limits) - 1) + 1
    assert ended == [(limit, on_time(limit)) for limit, _ in ended]
    assert {letter["error_type"] for letter in stage.dead()} == {"streamq.errors.TaskTimeoutError"}


async def test_a_run_that_ended_in_time_leaves_no_timeout_behind(stage):
    """Neither for a run without a timeout, nor for one with a longer one, in the same slot."""

    @task(timeout=0.06)
    async def limited() -> None:
        await anyio.sleep(0.0599)

    @task(timeout=5.0)
    async def longer() -> None:
        await anyio.sleep(4.9)
        stage.note("longer")

    @task
    async def unlimited() -> None:
        await anyio.sleep(60)
        stage.note("unlimited")

    tasks = [limited, unlimited, limited, longer] * 3
    async with stage.broker() as broker, stage.working(broker, limited, longer, unlimited, concurrency=1):
        await broker.enqueue_many([one.call() for one in tasks])
        await anyio.sleep(300)
    assert (len(stage.times("longer")), len(stage.times("unlimited"))) == (3, 3)
    assert stage.dead() == []


async def test_a_handler_that_holds_up_the_loop_is_not_ended_once_it_is_done(stage):
    """It had no chance to be: what returns has succeeded, and what comes next has all its time."""

    @task(timeout=0.5)
    async def blocks() -> None:
        await anyio.sleep(0.45)
        stage.virtual.advance(1.0)
        stage.note("done")

    async with stage.broker() as broker, stage.working(broker, blocks, concurrency=1):
        await broker.enqueue_many([blocks.call() for _ in range(3)])
        await anyio.sleep(20)
    assert len(stage.times("done")) == 3
    assert stage.dead() == []


async def test_nobody_looks_while_nothing_has_to_end(stage):
    """Whoever runs no task with a timeout wakes for none; a far end costs three looks, and a near one no more."""
    looks = []
    slot = Slot(anyio.CancelScope())

    def at_work():
        looks.append(stage.at)
        return [slot]

    timeouts = Timeouts(stage.virtual.clock, at_work, shortest=60.0)
    async with anyio.create_task_group() as group:
        group.start_soon(timeouts.watch_forever)
        await anyio.sleep(100)
        assert len(looks) == 1
        for limit, at_most in ((60.0, 4), (0.01, 3)):
            looks.clear()
            with slot.scope:
                timeouts.begin(slot, stage.virtual.elapsed() + limit)
                await anyio.sleep_forever()
            slot.over()
            assert slot.spent
            slot = Slot(anyio.CancelScope())
            await anyio.sleep(100)
            assert len(looks) <= 2 * at_most  # each look asks twice
        group.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_short_run_needs_no_deadline_while_one_with_a_far_end_goes_on(stage, monkeypatch):
    """What a timeout costs does not depend on those of other tasks: only what lasts is given a deadline."""
    armed = []
    arm = Slot.arm
    monkeypatch.setattr(Slot, "arm", lambda slot, deadline: armed.append(stage.at) or arm(slot, deadline))

    @task(timeout=600)
    async def far() -> None:
        await anyio.sleep(300)

    @task(timeout=5)
    async def brief() -> None:
        await anyio.sleep(0.5)
        stage.note("brief")

    async with stage.broker() as broker, stage.working(broker, far, brief):
        await broker.enqueue(far)
        await anyio.sleep(1)
        for _ in range(100):
            await broker.enqueue(brief)
            await anyio.sleep(1)
    assert len(stage.times("brief")) == 100
    assert armed == []
