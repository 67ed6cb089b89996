"""P3 to the second: renewals, visibility timeout and sweep, what is stuck, the grace period."""

from __future__ import annotations

import anyio
import pytest

from streamq import RetryLater, task
from streamq.consumer.events import Superseded
from streamq.consumer.prefetch_buffer import STUCK_AFTER
from tests.timed.stage import TICK, OnTime, chosen_name

pytestmark = pytest.mark.paired("memory")


@pytest.fixture
def held(stage):
    """A task that is held for an hour, and says by whom it was begun."""

    @task(retries=0)
    async def held(seconds: float = 3600.0) -> None:
        stage.note("begun")
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class():
            stage.note("cancelled")
            raise
        stage.note("done")

    return held


@pytest.mark.slow
@pytest.mark.parametrize("visibility", [0.6, 30.0, 600.0])
@pytest.mark.parametrize("phase", [0.01, 0.4, 0.99])
async def test_a_dead_worker_loses_its_task_within_lease_and_sweep(stage, held, visibility, phase):
    """P3: not before its lease has ended, and at most visibility timeout + one sweep after its death."""
    interval = visibility / 3
    async with stage.broker() as broker, stage.mortal(held, visibility_timeout=visibility) as cable:
        await broker.enqueue(held)
        async with stage.working(broker, held, visibility_timeout=visibility):
            died = (4 + phase) * interval
            await anyio.sleep(died - stage.at)
            cable.cut()
            await anyio.sleep(visibility * 2)
        first, second = stage.times("begun")
    renewed = 4 * interval
    assert first == OnTime(0)
    assert renewed + visibility <= second + TICK
    assert second <= died + visibility + interval + TICK


@pytest.mark.slow
async def test_many_dead_workers_tasks_are_taken_by_one_sweep(stage, held):
    """P3: the bound holds for hundreds of tasks: a sweep goes on until it is through."""
    async with stage.broker() as broker:
        async with stage.mortal(held, visibility_timeout=30, concurrency=300) as cable:
            await broker.enqueue_many([held.call(1.0) for _ in range(300)])
            await anyio.sleep(0.5)
            cable.cut()
        async with stage.working(broker, held, visibility_timeout=30, concurrency=300):
            await anyio.sleep(60)
    again = stage.times("begun")[300:]
    assert len(again) == 300
    assert 30 <= min(again) <= max(again) <= 0.5 + 30 + 10 + TICK


@pytest.mark.slow
async def test_a_take_over_is_logged(stage, held, caplog):
    """One line for hundreds of tasks, with the worker that died; a release and an idle sweep leave none."""
    caplog.set_level("INFO", "streamq")
    async with stage.broker() as broker:
        async with stage.mortal(held, name="gone", visibility_timeout=30, concurrency=300) as cable:
            await broker.enqueue_many([held.call(1.0) for _ in range(300)])
            await anyio.sleep(0.5)
            cable.cut()
        async with stage.working(broker, held, visibility_timeout=30, concurrency=300):
            await anyio.sleep(300)
    lines = [message.partition(": ")[2] for message in caplog.messages if "took over" in message]
    (line,) = lines
    assert line.startswith("took over 300 tasks of gone-")
    assert line.endswith(", which did not renew its leases in time")
    assert "in the hands of" not in caplog.text


@pytest.mark.slow
async def test_a_suspect_is_logged(stage, held, caplog):
    """The second worker that dies with a task makes it a suspect: a warning names the task, its id and the workers."""
    async with stage.broker() as broker:
        handle = await broker.enqueue(held, 20.0)
        for name in ("one", "two"):
            async with stage.mortal(held, name=name, visibility_timeout=30) as cable:
                await anyio.sleep(45 if name == "two" else 0.5)
                cable.cut()
        async with stage.working(broker, held, visibility_timeout=30):
            await anyio.sleep(80)
    (line,) = [message for message in caplog.messages if "in the hands of" in message]
    assert line.startswith(f"task held {handle.task_id} was in the hands of 2 workers that died (one-")
    assert line.endswith("it becomes a dead letter, crash_loop, if the next one dies of it")


@pytest.mark.slow
async def test_an_hour_is_renewed_every_third(stage, held):
    """P3: a task of an hour under a 30 s visibility timeout runs once, though another worker waits for it."""
    idle = []
    async with stage.broker() as broker, stage.working(broker, held, name="a", visibility_timeout=30):
        await broker.enqueue(held)
        async with stage.working(broker, held, name="b", visibility_timeout=30):
            await anyio.sleep(0.5)
            while stage.at < 3600:
                ((_, _, ms, _),) = stage.command("XPENDING", "queue:standard", "workers", "-", "+", 10)
                idle.append(ms / 1000)
                await anyio.sleep(3)
            await anyio.sleep(1)
    assert stage.starts == [("begun", OnTime(0)), ("done", OnTime(3600))]
    assert len(idle) == 1200
    # Seen every 3 s, at half past a second: 0.5, 1.5, ... 9.5 s idle, over and over, and never more.
    assert set(idle) == {at + 0.5 for at in range(10)}


@pytest.mark.slow
async def test_what_is_prefetched_is_renewed_too(stage):
    """P3: a delivery that waits its turn for long, in the hands of a living worker, stays there."""

    @task
    async def quick() -> None:
        stage.note("quick")
        await anyio.sleep(0.001)

    @task
    async def slow() -> None:
        await anyio.sleep(0.9)
        stage.note("slow")

    async with stage.broker() as broker, stage.working(broker, quick, slow, concurrency=1, visibility_timeout=0.3):
        await broker.enqueue_many([quick.call() for _ in range(100)])
        await broker.enqueue_many([slow.call(), *[quick.call() for _ in range(5)]])
        async with stage.working(broker, quick, slow, concurrency=1, visibility_timeout=0.3, name="other"):
            await anyio.sleep(10)
    assert (len(stage.times("quick")), len(stage.times("slow"))) == (105, 1)
    assert stage.command("XLEN", "queue:standard") == 0


async def test_stuck_prefetch_is_handed_back_after_a_second(stage):
    """What was read for the rate of fast tasks does not wait behind a slow one: another worker starts it."""

    @task
    async def quick(number: int) -> None:
        stage.note(f"quick {number}")
        await anyio.sleep(0.001)

    @task
    async def slow() -> None:
        stage.note("slow")
        await anyio.sleep(600)

    async with stage.broker() as broker, stage.working(broker, quick, slow, concurrency=1):
        await broker.enqueue_many([quick.call(number) for number in range(100)])
        await broker.enqueue_many([slow.call(), *[quick.call(100 + number) for number in range(5)]])
        await anyio.sleep(0.9)
        holders = stage.pending()
        async with stage.working(broker, quick, slow, concurrency=1, name="other"):
            await anyio.sleep(60)
            (began,) = stage.times("slow")
            (first,) = stage.times("quick 100")
    assert len(holders) > 1, "nothing was prefetched: this test shows nothing"
    assert first == OnTime(began + STUCK_AFTER)


async def test_a_lost_lease_is_noticed_as_soon_as_it_can_be(stage, held):
    """P4: a worker that was cut off finds on its return that another has its task, and ends its own run."""
    heard = []
    options = {"visibility_timeout": 30, "listeners": [heard.append]}
    async with stage.broker() as broker, stage.mortal(held, **options) as cable:
        await broker.enqueue(held)
        await anyio.sleep(5)
        cable.cut()
        async with stage.working(broker, held, visibility_timeout=30):
            await anyio.sleep(100 - stage.at)
            assert len(stage.times("begun")) == 2
            cable.mend()
            await anyio.sleep(20)
            (cancelled,) = stage.times("cancelled")
    # Back at the latest after the longest pause between two tries, of the client and of the worker.
    assert 100 <= cancelled <= 105
    assert [type(event) for event in heard].count(Superseded) == 1


async def test_a_short_absence_costs_nothing(stage, held):
    """P3: a worker that is cut off for less than its lease keeps what it runs."""
    async with stage.broker() as broker, stage.mortal(held, visibility_timeout=30) as cable:
        await broker.enqueue(held, 100)
        async with stage.working(broker, held, visibility_timeout=30):
            await anyio.sleep(10.5)
            cable.cut()
            await anyio.sleep(26)
            cable.mend()
            await anyio.sleep(90)
    assert stage.starts == [("begun", OnTime(0)), ("done", OnTime(100))]


@pytest.mark.slow
async def test_who_sweeps_by_a_short_lease_leaves_longer_ones_alone(stage, held):
    """P3: workers of one group may have different visibility timeouts."""
    async with stage.broker() as broker, stage.working(broker, held, visibility_timeout=600, name="patient"):
        await broker.enqueue(held)
        await anyio.sleep(1)
        async with stage.working(broker, held, visibility_timeout=3, name="hasty"):
            await anyio.sleep(250)
    assert len(stage.times("begun")) == 1


@pytest.mark.slow
async def test_after_an_outage_everybody_keeps_what_he_runs(stage, held):
    """P9: a server that was away for longer than the leases: who comes back first does not rob the others."""
    async with stage.broker() as broker:
        async with (
            stage.mortal(held, visibility_timeout=30, concurrency=2) as first,
            stage.mortal(held, visibility_timeout=30, concurrency=2) as second,
        ):
            await broker.enqueue_many([held.call(900) for _ in range(4)])
            await anyio.sleep(5)
            assert len(stage.times("begun")) == 4
            for cable in (first, second):
                cable.cut()
            await anyio.sleep(300)
            for cable in (first, second):
                cable.mend()
            await anyio.sleep(1000)
        assert stage.times("done") == [OnTime(900)] * 4
        assert len(stage.times("begun")) == 4


@pytest.mark.parametrize("visibility", [3.0, 30.0, 300.0])
async def test_a_dead_worker_that_holds_nothing_is_removed(stage, held, visibility):
    """P8: from every tier, once its lease and a sweep of another are over."""
    async with stage.broker() as broker, stage.mortal(held, visibility_timeout=visibility, name="dead") as cable:
        await anyio.sleep(1)
        cable.cut()
        async with stage.working(broker, held, visibility_timeout=visibility, name="alive"):
            await anyio.sleep(visibility - 1.1)
            before = stage.command("ZRANGE", "queue:bulk:alive:workers", 0, -1)
            await anyio.sleep(visibility / 3 + 0.2)
            after = stage.command("ZRANGE", "queue:bulk:alive:workers", 0, -1)
            consumers = stage.command("XINFO", "CONSUMERS", "queue:bulk", "workers")
    assert list(map(chosen_name, before)) == ["dead", "alive"]
    assert list(map(chosen_name, after)) == ["alive"]
    assert [chosen_name(flat[1]) for flat in consumers] in (["alive"], [])


class TestStopping:
    """P8: the grace period."""

    async def test_what_ends_within_it_ends(self, stage, held):
        """And then the worker ends at once."""
        async with stage.broker() as broker:
            async with stage.working(broker, held, grace_period=25):
                await broker.enqueue(held, 20)
                await anyio.sleep(1)
            assert stage.at == OnTime(20)
        assert stage.times("done") == [OnTime(20)]
        assert stage.command("XLEN", "queue:standard") == 0

    @pytest.mark.slow
    async def test_what_does_not_is_handed_back_when_it_is_over(self, stage, held):
        """To the next worker at once: it does not wait for the lease to end, and nobody is blamed."""
        async with stage.broker() as broker, stage.working(broker, held, name="next", concurrency=1) as second:
            await broker.enqueue(held, 3000)
            await anyio.sleep(0.1)
            async with stage.working(broker, held, grace_period=25, concurrency=1):
                await broker.enqueue(held, 1000)
                await anyio.sleep(0.9)
                stage.note("stop")
            assert stage.at == OnTime(26)
            assert stage.times("cancelled") == [OnTime(26)]
            # The other has no room: it is parked until it has.
            assert list(stage.pending().values()).count("released") == 1
            await anyio.sleep(3000)
            assert second.health.running == 1
            assert 3000 <= stage.times("begun")[-1] <= 3000.3
        assert stage.dead() == []

    async def test_a_second_stop_does_not_wait(self, stage, held):
        """Release, and end now."""
        async with stage.broker() as broker:
            async with stage.working(broker, held, grace_period=25) as worker:
                await broker.enqueue(held)
                await anyio.sleep(1)
                worker.stop()
                await anyio.sleep(2)
            assert stage.at == OnTime(3)
            assert list(stage.pending().values()) == ["released"]

    async def test_no_grace_at_all(self, stage, held):
        async with stage.broker() as broker:
            async with stage.working(broker, held, grace_period=0):
                await broker.enqueue(held)
                await anyio.sleep(1)
            assert stage.at == OnTime(1)


@pytest.mark.slow
async def test_a_suspect_waits_for_what_runs_for_one_lease_at_most(stage, held):
    """P5: what has seen two workers die runs apart, but a long run beside it does not keep it for ever."""

    @task(retries=0)
    async def other() -> None:
        stage.note("other")
        await anyio.sleep(3600)

    async with stage.broker() as broker:
        await broker.enqueue(held)
        for _ in range(2):
            async with stage.mortal(held, visibility_timeout=30, concurrency=1) as cable:
                runs = len(stage.times("begun"))
                await anyio.sleep(60)
                assert len(stage.times("begun")) == runs + 1
                cable.cut()
        began = stage.at
        async with stage.working(broker, held, other, visibility_timeout=30):
            await broker.enqueue(other)
            await anyio.sleep(100)
            third = stage.times("begun")[2]
    assert stage.times("other") == [OnTime(began)]
    assert began + 30 <= third <= began + 30 + 30 + 10 + TICK


@pytest.mark.slow
async def test_an_idle_worker_blocks(stage, held):
    """Twenty minutes of nothing: reads of 5 s, renewals and sweeps of 10 s, looks at the delayed each 5 s."""
    async with stage.broker() as broker, stage.working(broker, held, visibility_timeout=30):
        await anyio.sleep(60)
        stage.server.calls.clear()
        await anyio.sleep(1200)
        calls = {str(name): count for name, count in stage.server.calls.items()}
    reads = next(count for name, count in calls.items() if "readgroup" in name.lower())
    assert 235 <= reads <= 485, calls  # the blocked read and the look before it
    assert sum(calls.values()) <= 2000, calls


@pytest.mark.slow
async def test_a_retry_is_not_late_for_a_busy_worker(stage):
    """A worker whose slots are all taken still promotes: another worker starts it on time."""

    @task
    async def busy() -> None:
        await anyio.sleep(1000)

    @task(retries=0)
    async def later() -> None:
        stage.note("later")
        if len(stage.times("later")) == 1:
            raise RetryLater(after=100)

    async with stage.broker() as broker, stage.working(broker, busy, later, concurrency=1, name="a"):
        await broker.enqueue(busy)
        await anyio.sleep(0.5)
        async with stage.working(broker, busy, later, concurrency=1, name="b"):
            await broker.enqueue(later)
            await anyio.sleep(200)
    assert stage.times("later") == [OnTime(0.5), OnTime(100.5)]
