"""P10: how long what lies in Redis lives, to the second."""

from __future__ import annotations

import anyio
import pytest

from streamq import task
from streamq.errors import ResultTimeoutError, TaskFailedError
from streamq.monitoring import QueueMonitor
from streamq.queue.lease_commands import CRASHES_KEPT, reclaim, renew
from streamq.queue.sending import ACCEPTED_KEPT, DEDUP_TTL
from streamq.testing.clock import START
from streamq.wire.keys import STATS_KEPT, STATS_WINDOW
from tests.timed.stage import OnTime

HOUR = 3600.0
MOMENT = 0.002  # seconds: a key lives through the millisecond in which its time is up


@task(result_ttl=HOUR)
async def add(a: int = 1, b: int = 1) -> int:
    """Return a sum."""
    return a + b


class TestOnce:
    """What is accepted once, and until when."""

    async def test_a_task_id_is_remembered_for_an_hour(self, stage):
        """P9: a repeated enqueue with the same id is safe for as long, not a moment less."""
        assert ACCEPTED_KEPT == HOUR
        async with stage.broker() as broker:
            assert (await broker.enqueue(add.options(task_id="mine"))).fresh
            assert stage.ttl("queue:id:mine") == HOUR
            await anyio.sleep(HOUR - 0.001)
            assert not (await broker.enqueue(add.options(task_id="mine"))).fresh
            await anyio.sleep(MOMENT)
            assert (await broker.enqueue(add.options(task_id="mine"))).fresh
        assert stage.command("XLEN", "queue:standard") == 2

    @pytest.mark.parametrize(("given", "lasts"), [(None, DEDUP_TTL), (0.5, 0.5), (12 * HOUR, 12 * HOUR)])
    async def test_a_deduplication_key_holds_for_its_ttl(self, stage, given, lasts):
        """The first wins for so long, and is named to those that come meanwhile."""
        options = {"dedup_key": "k"} | ({} if given is None else {"dedup_ttl": given})
        async with stage.broker() as broker:
            first = await broker.enqueue(add.options(**options))
            await anyio.sleep(lasts - 0.001)
            second = await broker.enqueue(add.options(**options))
            await anyio.sleep(MOMENT)
            third = await broker.enqueue(add.options(**options))
        assert (first.fresh, second.fresh, third.fresh) == (True, False, True)
        assert second.task_id == first.task_id != third.task_id

    async def test_a_delayed_task_keeps_its_id_until_it_starts(self, stage):
        """The same id is refused while its task is delayed, though the hour is over."""
        async with stage.broker() as broker:
            await broker.enqueue(add.options(task_id="mine", delay=3 * HOUR))
            await anyio.sleep(2 * HOUR)
            assert not stage.exists("queue:id:mine")
            assert not (await broker.enqueue(add.options(task_id="mine"))).fresh
            assert stage.command("XLEN", "queue:standard") == 0

    @pytest.mark.parametrize("ttl", [0.05, 60.0, HOUR])
    async def test_is_duplicate(self, stage, ttl):
        """It notes the first time only: asking does not make it last."""
        async with stage.broker() as broker:
            assert not await broker.is_duplicate("a", ttl)
            await anyio.sleep(ttl - 0.001)
            assert await broker.is_duplicate("a", ttl)
            await anyio.sleep(MOMENT)
            assert not await broker.is_duplicate("a", ttl)


class TestResults:
    """How long a result is kept, and how long one waits for it."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("options", "lasts"), [({}, HOUR), ({"result_ttl": 5}, 5.0), ({"result_ttl": 6 * HOUR}, 6 * HOUR)]
    )
    async def test_a_result_is_kept_for_its_ttl(self, stage, options, lasts):
        """From the end of the run on."""
        async with stage.broker() as broker:
            async with stage.working(broker, add):
                handle = await broker.enqueue(add.options(**options))
                assert await handle.result(timeout=1) == 2
            key = f"queue:result:{handle.task_id}"
            assert stage.ttl(key) == pytest.approx(lasts, abs=0.01)
            await anyio.sleep(lasts - 0.02)
            assert await handle.result(timeout=1) == 2
            await anyio.sleep(0.02 + MOMENT)
            assert not stage.exists(key)
            with pytest.raises(ResultTimeoutError):
                await handle.result(timeout=1)

    async def test_that_of_a_cancelled_task_is_kept_for_an_hour(self, stage):
        async with stage.broker() as broker:
            handle = await broker.enqueue(add.options(delay=600))
            assert await handle.cancel()
            assert stage.ttl(f"queue:result:{handle.task_id}") == HOUR
            with pytest.raises(TaskFailedError, match="cancelled"):
                await handle.result(timeout=1)

    @pytest.mark.parametrize("limit", [0.25, 900.0])
    async def test_waiting_ends_on_time(self, stage, limit):
        """Whoever waits for what does not come waits no longer than he said."""
        async with stage.broker() as broker:
            handle = await broker.enqueue(add)
            with pytest.raises(ResultTimeoutError):
                await handle.result(timeout=limit)
            assert stage.at == pytest.approx(limit, abs=1e-6)

    @pytest.mark.slow
    async def test_waiting_ends_with_the_result(self, stage):
        """It does not poll: who waits hears of it in the moment it is there."""
        async with stage.broker() as broker, stage.working(broker, add):
            handle = await broker.enqueue(add.options(delay=900), 2, 3)
            assert await handle.result(timeout=1000) == 5
            assert stage.at == OnTime(900)


class TestEvidence:
    """What a crashed worker leaves behind."""

    @pytest.mark.slow
    async def test_it_lasts_for_a_day_after_the_last_crash(self, stage):
        """P5: a task that takes a worker down every twenty hours is found out; one a day later is innocent."""
        assert CRASHES_KEPT == 24 * HOUR
        key = "queue:standard:crashes:workers"
        async with stage.broker() as broker:
            store = broker.store
            await store.ensure_groups()
            await broker.enqueue(add)
            await renew(store, "w0", 30, [[], [], []])
            (reply,) = await store.call([store.read_commands.new_entries("w0", [1], 1)])
            assert reply
            crashes = []
            for number, pause in enumerate((60, 20 * HOUR, 20 * HOUR, 24 * HOUR + MOMENT), 1):
                await anyio.sleep(pause / 2)
                await renew(store, "keeper", 30, [[], [], []])  # while somebody lives it is known who died
                await anyio.sleep(pause / 2)
                await renew(store, f"w{number}", 30, [[], [], []])
                _, (delivery,), *_ = await reclaim(
                    store,
                    f"w{number}",
                    1,
                    idle=30,
                    margin=10,
                    cursor=b"0-0",
                    count=10,
                    max_crashes=5,
                    suspect_after=9,
                    deadline=stage.virtual.now() + 1,
                )
                assert stage.ttl(key) == 24 * HOUR
                crashes.append(delivery.crashed_workers)
        assert crashes == [("w0",), ("w0", "w1"), ("w0", "w1", "w2"), ("w3",)]

    @pytest.mark.slow
    async def test_who_lived_is_known_for_a_day(self, stage):
        """Nothing of a group that is gone stays for ever."""
        async with stage.broker() as broker:
            await renew(broker.store, "gone", 30, [[], [], []])
            for name in ("alive", "leases"):
                assert stage.ttl(f"queue:bulk:{name}:workers") == 86_400
            await anyio.sleep(86_400 + MOMENT)
        assert stage.command("KEYS", "*") == []


class TestCounters:
    """The windows of the statistics."""

    async def test_one_for_ten_seconds_each_for_a_quarter_of_an_hour(self, stage):
        """A task a second for a minute: six windows of ten, gone 900 s after their last new counter."""
        assert (STATS_WINDOW, STATS_KEPT) == (10, 900)
        async with stage.broker() as broker:
            async with stage.working(broker, add):
                for _ in range(60):
                    await broker.enqueue(add.options(result_ttl=0.001))
                    await anyio.sleep(1)
            first = int(START) // STATS_WINDOW
            keys = [f"queue:stats:workers:{first + at}" for at in range(6)]
            assert [int(stage.command("HGET", key, "standard|add|done")) for key in keys] == [10] * 6
            ends = [stage.at + stage.ttl(key) for key in keys]
            assert ends == [pytest.approx(10 * at + STATS_KEPT, abs=0.2) for at in range(6)]
            await anyio.sleep(STATS_KEPT)
        assert stage.command("KEYS", "queue:stats:*") == []

    @pytest.mark.slow
    async def test_the_monitor_sees_the_last_minute(self, stage):
        """Two tasks a second: that is the throughput, and an hour later there is none."""

        @task
        async def takes_a_second() -> None:
            await anyio.sleep(1)

        async with stage.broker() as broker, stage.working(broker, takes_a_second):
            for _ in range(180):
                await broker.enqueue(takes_a_second)
                await anyio.sleep(0.5)
            busy = await QueueMonitor(broker=broker).snapshot()
            await anyio.sleep(HOUR)
            idle = await QueueMonitor(broker=broker).snapshot()
        assert busy.throughput_per_sec == pytest.approx(2, rel=0.1)
        assert busy.avg_latency_ms == pytest.approx(1000, rel=0.01)
        assert (busy.error_rate, idle.throughput_per_sec) == (0, 0)
