"""P13, the server's clock decides: a clock of a client that is off, or that steps, changes nothing."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from streamq import RedisBroker, Worker, current_delivery, task
from streamq.clock import Clock, ServerClock
from streamq.errors import BrokerUnavailableError
from tests.at_work import burst, dead, until

pytestmark = pytest.mark.paired

HOUR = 3600.0
ran: list[str] = []


class Wrong(Clock):
    """A clock that is off, and steps when it is told to."""

    def __init__(self, off: float = 0.0):
        self.off = [off]
        super().__init__(now=lambda: time.time() + self.off[0])

    __setattr__ = object.__setattr__
    __slots__ = ("off",)


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


@task
async def note(label: str) -> str:
    ran.append(label)
    return label


def calls():
    """Return all that has a time of its own."""
    return {
        "expires": note.options(expires=60),
        "expires as timedelta": note.options(expires=timedelta(seconds=60)),
        "delay": note.options(delay=0.3),
        "delay and expires": note.options(delay=timedelta(seconds=0.3), expires=60),
        "at": note.options(at=datetime.now(UTC) + timedelta(seconds=0.3), expires=datetime.now(UTC) + timedelta(60)),
        "dedup": note.options(delay=0.3, dedup_key="d", dedup_ttl="until_done"),
        "at and dedup": note.options(
            at=datetime.now(UTC) + timedelta(seconds=0.3), dedup_key="e", dedup_ttl="until_done"
        ),
    }


@pytest.mark.parametrize("off", [-HOUR, HOUR])
@pytest.mark.parametrize("who", ["producer", "worker"])
async def test_a_clock_that_is_off_changes_nothing(server, who, off):
    """Nothing expires, nothing is late or early, a burst waits for what is due soon and for nothing else."""
    right, wrong = Wrong(), Wrong(off)
    async with (
        RedisBroker(server.url, clock=wrong if who == "producer" else right) as producer,
        RedisBroker(server.url, clock=wrong if who == "worker" else right) as broker,
    ):
        for label, one in calls().items():
            await producer.enqueue(one, label)
        await producer.enqueue_many([note.options(expires=60).call("many")])
        await producer.start(note.call("first").then(note.options(expires=60, delay=0.1).call("then")))
        began = time.monotonic()
        await burst(broker, note)
        assert time.monotonic() - began < 15
        assert sorted(ran) == sorted([*calls(), "many", "first", "then"])
        assert dead(server) == []
        # An hour is beyond what a burst waits for, whatever its clock says; what has expired is dead.
        await producer.enqueue(note.options(delay=HOUR), "in an hour")
        await producer.enqueue(note.options(expires=0.01, delay=0.1), "too late")
        await burst(broker, note)
        assert [letter["reason"] for letter in dead(server)] == ["expired"]


@pytest.mark.parametrize("step", [-HOUR, HOUR])
async def test_a_clock_that_steps_changes_nothing(server, step):
    """In the middle of the work, for producer and worker."""
    producers, workers = Wrong(), Wrong()
    async with RedisBroker(server.url, clock=producers) as producer, RedisBroker(server.url, clock=workers) as broker:
        worker = Worker(broker, tasks=[note], visibility_timeout=600.0)  # it compares the clocks rarely
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            await producer.enqueue(note.options(expires=60), "before")
            await until(lambda: ran == ["before"])
            producers.off[0] = workers.off[0] = step
            await producer.enqueue(note.options(expires=60), "after")
            await broker.enqueue(note.options(expires=60), "by the worker's broker")
            await until(lambda: len(ran) == 3)
            worker.stop()
    assert dead(server) == []


async def test_handlers_see_the_times_of_the_server(server):
    """`enqueued_at` is the server's; progress and dead letters, too."""
    seen = []

    @task(retries=0)
    async def looks() -> None:
        seen.append(current_delivery().enqueued_at)
        raise ValueError

    async with RedisBroker(server.url, clock=Wrong(HOUR)) as broker:
        await broker.enqueue(looks)
        await burst(broker, looks)
    assert seen == [pytest.approx(time.time(), abs=60)]
    died_at = datetime.fromisoformat(dead(server)[0]["died_at"])
    assert died_at.timestamp() == pytest.approx(time.time(), abs=60)


async def test_an_enqueue_asks_for_the_time_once_a_minute(server):
    """And not at all where it sends no time."""
    asked = []
    async with RedisBroker(server.url) as broker:
        one = broker.store.one

        async def counted(command):
            asked.append(command)
            return await one(command)

        broker.store.one = counted
        await broker.enqueue(note, "plain")
        await broker.enqueue(note.options(delay=60), "delayed")
        assert asked == []
        for _ in range(20):
            await broker.enqueue(note.options(expires=60), "expires")
        await broker.enqueue_many([note.options(expires=60).call("expires")] * 20)
    assert asked == [("TIME",)]


async def test_a_server_that_is_away_has_accepted_nothing():
    """The question for the time raises what the enqueue would have raised."""
    async with RedisBroker("redis://127.0.0.1:1", connect_timeout=0.2) as broker:
        with pytest.raises(BrokerUnavailableError):
            await broker.enqueue(note.options(expires=60), "expires")


def test_a_comparison_is_as_exact_as_its_answer_was_quick():
    """A slow answer does not spoil what a quick one has shown; a step of the server's clock is followed."""
    elapsed = [100.0]
    clock = ServerClock(Clock(now=lambda: 5.0, elapsed=lambda: elapsed[0]))
    assert repr(clock) == "<ServerClock: not compared yet>"
    assert clock.now() == 5.0
    clock.compare(1000.0, 99.99, 100.0)
    assert clock.now() == pytest.approx(1000.005)
    elapsed[0] = 110.0
    clock.compare(1004.0, 103.0, 110.0)  # seven seconds on the way
    assert clock.now() == pytest.approx(1010.005)
    elapsed[0] = 120.0
    clock.compare(2000.0, 119.99, 120.0)
    assert clock.now() == pytest.approx(2000.005)
    assert not clock.outdated
    clock.now_to_send()
    assert not clock.outdated
    elapsed[0] = 181.0
    clock.now_to_send()
    assert clock.outdated
    clock.give_up()
    clock.now_to_send()
    assert not clock.outdated
    assert repr(clock).startswith("<ServerClock +")
