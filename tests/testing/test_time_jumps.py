"""`run_tasks` lives through jumps of the clock with one worker, and says what is left when its time is over."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from fakeredis._socket import _base

from streamq import current_delivery, task
from streamq.testing.suite import Suite

pytestmark = pytest.mark.anyio

MORNING = datetime(2030, 1, 1, 7, tzinfo=UTC).timestamp()
MOST = 45  # commands of one tick


@task(cron="*/10 * * * *")
async def tick() -> None: ...


@task(retries=50, backoff=3600)
async def fortieth_time() -> int:
    attempt = current_delivery().attempt
    if attempt < 40:
        raise ConnectionError("the other side is away")
    return attempt


@pytest.fixture
def commands(monkeypatch):
    """Return a list of what the server is asked."""
    asked, carry_out = [], _base.BaseFakeSocket._process_command

    def noted(self, fields):
        asked.append(fields[0])
        return carry_out(self, fields)

    monkeypatch.setattr(_base.BaseFakeSocket, "_process_command", noted)
    return asked


def counted_workers():
    """Return a list that grows with each worker, and the options that make it."""
    started = []

    @asynccontextmanager
    async def lifespan(worker):
        started.append(worker.name)
        yield

    return started, {"lifespan": lifespan}


@pytest.mark.slow
async def test_a_day_of_ticks_is_one_worker_and_few_commands_for_each(commands):
    """It was a worker for each tick, with 80 commands."""
    started, options = counted_workers()
    async with Suite(now=MORNING, tasks=(tick,), worker_options=options).open_broker() as broker:
        ended = await broker.run_tasks(during=timedelta(days=1), timeout=100)
    assert [one.name for one in ended] == ["tick"] * 144
    assert len(started) == 1
    assert len(commands) < MOST * len(ended)


async def test_retries_are_one_worker(commands):
    """The clock jumps to each retry while the worker holds nothing."""
    started, options = counted_workers()
    async with Suite(worker_options=options).open_broker() as broker:
        await broker.enqueue(fortieth_time)
        (ended,) = await broker.run_tasks(timeout=100)
    assert (ended.result, ended.runs, len(started)) == (40, 40, 1)
    assert len(commands) < MOST * ended.runs


async def test_what_comes_due_while_a_task_runs_is_not_waited_for():
    """The loops of the worker wait in real time; they are told after each jump, and once more while nothing runs."""

    @task(cron="0 8 * * *")
    async def takes_a_moment() -> None:
        await anyio.sleep(0.3)

    @task
    async def delayed() -> None: ...

    async with Suite(now=MORNING, tasks=(takes_a_moment,)).open_broker() as broker:
        await broker.enqueue(delayed.options(at=datetime(2030, 1, 1, 8, 0, 0, 200_000, tzinfo=UTC)))
        began = time.monotonic()
        ended = await broker.run_tasks(during=7200)
        assert time.monotonic() - began < 8  # the promoter looks every 10 s
    assert sorted(one.name for one in ended) == ["delayed", "takes_a_moment"]


async def test_a_task_that_the_worker_does_not_know_has_another_worker():
    """A handler sends it with a delay: the worker ends, and the next one knows it."""
    started, options = counted_workers()

    @task
    async def sent() -> None: ...

    @task
    async def sends() -> None:
        await broker.enqueue(sent.options(delay=10))

    async with Suite(worker_options=options).open_broker() as broker:
        await broker.enqueue(sends)
        ended = await broker.run_tasks()
    assert [one.name for one in ended] == ["sends", "sent"]
    assert len(started) == 2


async def test_the_error_of_a_run_that_does_not_end_says_what_is_left():
    """How far the clock came, what has ended, runs, is delayed and ticks, and what to do."""

    @task
    async def stays() -> None:
        await anyio.sleep_forever()

    @task
    async def later() -> None: ...

    async with Suite(now=MORNING, tasks=(tick, later)).open_broker() as broker:
        await broker.enqueue(stays.options(delay=1500, task_id="one"))
        await broker.enqueue(later.options(delay=7200, task_id="two"))
        with pytest.raises(TimeoutError) as raised:
            await broker.run_tasks(during=timedelta(hours=3), timeout=3)
        said = str(raised.value)
        assert said.startswith(
            "the tasks have not ended within 3 s; the clock came from 2030-01-01T07:00:00Z to 2030-01-"
        )
        assert "on its way to 2030-01-01T10:00:0" in said
        assert "; 2 tasks have ended; under way or to run again: stays one (1 runs)" in said
        assert "; delayed: later two until 2030-01-01T09:00:0" in said
        assert "; schedules that tick before that: 'tick' (*/10 * * * *). Give a longer timeout=, or fewer" in said
        with pytest.raises(TimeoutError, match=r"have not ended within 0.5 s.*Give a longer timeout=$"):
            await broker.run_tasks(timeout=0.5)
