"""The monitor: each figure is compared with a known state of the queue."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, task
from streamq.consumer.events import Event, Settled
from streamq.errors import BrokerError, ConfigurationError
from streamq.monitoring import ConsumerMetrics, QueueMetrics, QueueMonitor
from streamq.monitoring.metrics import figures
from streamq.tasks.outcome import Ack
from streamq.wire.counters import Counters, share_of, sum_shares
from streamq.wire.keys import STATS_WINDOW
from tests.at_work import burst, until, working
from tests.servers import fresh_server


@task(retries=0)
async def work(fate="well", seconds=0.0):
    await anyio.sleep(seconds)
    match fate:
        case "fail":
            raise ValueError
        case "reject":
            raise Reject
        case "later":
            raise RetryLater(after=1000)


@task(retries=3, name="again", backoff=lambda _, __: 0.0)
async def again():
    if not again_failed:
        again_failed.append(1)
        raise ValueError


again_failed: list[int] = []


async def test_a_tier_of_somebody_else_takes_no_names(server, broker):
    """A monitor tells 2,000 names apart: those of its own tiers."""
    await broker.enqueue_many([work.call() for _ in range(3)])
    await burst(broker, work)
    names = [part for number in range(5000) for part in (f"foreign|t{number}|done", 1)]
    for window in server.keys():  # noqa: SIM118
        if ":stats:" in window:
            server.command("HSET", window, *names)
    metrics = await QueueMonitor(broker=broker).snapshot()
    assert metrics.tasks.keys() == {"work"}
    assert (metrics.done, metrics.tasks["work"].done) == (3, 3)


class TestSnapshot:
    async def test_of_nothing(self, server):
        """On a server without streams and groups all figures are zero."""
        async with RedisBroker(server.url) as broker:
            metrics = await QueueMonitor(broker=broker).snapshot()
        assert (metrics.depth, metrics.processing, metrics.delayed, metrics.dead_letter_count) == (0, 0, 0, 0)
        assert (metrics.throughput_per_sec, metrics.error_rate, metrics.p99_latency_ms) == (0.0, 0.0, 0.0)
        assert list(metrics.tiers) == ["critical", "standard", "bulk"]
        assert (metrics.tasks, metrics.consumers, metrics.oldest_wait_s) == ({}, (), 0.0)
        assert (metrics.drain_seconds, metrics.wanted_workers()) == (0.0, 0)
        assert server.keys() == []

    async def test_before_any_worker(self, server):
        """Enqueued tasks wait, although no worker has created the group yet."""
        async with RedisBroker(server.url) as broker:
            for priority in (100, 10, 10, 1):
                await broker.enqueue(work.options(priority=priority))
            await broker.enqueue(work.options(delay=100))
            await anyio.sleep(0.05)
            metrics = await QueueMonitor(broker=broker).snapshot()
        assert (metrics.depth, metrics.delayed) == (4, 1)
        assert [tier.depth for tier in metrics.tiers.values()] == [1, 2, 1]
        assert 0.04 < metrics.oldest_wait_s < 5
        assert metrics.drain_seconds is None
        assert metrics.wanted_workers() is None

    async def test_at_work(self, server):
        """Running tasks, waiting tasks and workers while a worker runs."""
        async with RedisBroker(server.url) as broker:
            monitor = QueueMonitor(broker=broker)
            async with working(broker, work, concurrency=2, max_prefetch=0) as worker:
                await broker.enqueue_many([work.call(seconds=60) for _ in range(5)])
                await until(lambda: worker.health.running == 2)
                metrics = await monitor.snapshot()
                assert (metrics.depth, metrics.processing) == (3, 2)
                (consumer,) = metrics.consumers
                assert (consumer.name, consumer.pending, consumer.alive) == (worker.name, 2, True)
                assert 0 < consumer.alive_s <= 30
                assert metrics.workers == 1
                assert metrics.oldest_wait_s > 0
                worker.stop()
                worker.stop()
            metrics = await monitor.snapshot()
            # Handed back: in nobody's hands, and older than all that were never delivered.
            assert (metrics.depth, metrics.processing, metrics.consumers) == (5, 0, ())
            assert metrics.oldest_wait_s > 0

    async def test_cancelled_runs_have_a_count_of_their_own(self, server):
        """A run that is cancelled is neither done nor failed, and changes no latency; its event says so, too."""
        events: list[Event] = []
        async with RedisBroker(server.url) as broker:
            async with working(broker, work, listeners=[events.append], concurrency=3) as worker:
                handles = [await broker.enqueue(work, seconds=60) for _ in range(3)]
                await until(lambda: worker.health.running == 3)
                for handle in handles:
                    await handle.cancel()
                await until(lambda: worker.health.running == 0)
                await broker.enqueue(work)
                await until(lambda: sum(isinstance(event, Settled) for event in events) == 4)
            metrics = await QueueMonitor(broker=broker).snapshot()
        for found in (metrics, metrics.tiers["standard"], metrics.tasks["work"]):
            assert (found.cancelled, found.done, found.failed, found.died) == (3, 1, 0, 0)
        assert metrics.p99_latency_ms < 20_000
        assert metrics.error_rate == 0
        ended = [event.outcome for event in events if isinstance(event, Settled)]
        assert [outcome.cancelled for outcome in ended if isinstance(outcome, Ack)] == [True, True, True, False]

    async def test_runs_in_the_window(self, server):
        """Runs by outcome, per task and per tier, with rates and latencies."""
        again_failed.clear()
        async with RedisBroker(server.url) as broker:
            began = time.time()
            await broker.enqueue_many([work.call() for _ in range(6)])
            await broker.enqueue_many([work.options(priority=100).call(fate) for fate in ("fail", "reject", "later")])
            await broker.enqueue(again)
            await burst(broker, work, again)
            metrics = await QueueMonitor(broker=broker).snapshot()
        assert (metrics.done, metrics.failed, metrics.retried, metrics.died, metrics.postponed) == (7, 3, 1, 2, 1)
        assert (metrics.error_rate, metrics.superseded) == (pytest.approx(0.3), 0)
        assert (metrics.dead_letter_count, metrics.delayed, metrics.depth) == (2, 1, 0)
        critical, standard, bulk = metrics.tiers.values()
        assert (critical.done, critical.failed, critical.died, critical.delayed) == (0, 2, 2, 1)
        assert (standard.done, standard.failed, bulk.done) == (7, 1, 0)
        assert (metrics.tasks["work"].done, metrics.tasks["again"].done, metrics.tasks["again"].retried) == (6, 1, 1)
        # All of it lies in the bucket of now, or in that and the one before.
        assert 1.0 <= metrics.covered_s <= max(1.0, time.time() - began + STATS_WINDOW)
        assert metrics.throughput_per_sec == pytest.approx(7 / metrics.covered_s)
        assert 0 < metrics.p50_latency_ms <= metrics.p95_latency_ms <= metrics.p99_latency_ms < 20_000
        assert 0 < metrics.avg_latency_ms < 20_000
        assert 0 < metrics.p50_wait_ms <= metrics.p95_wait_ms <= metrics.p99_wait_ms < 20_000
        assert 0 < metrics.avg_wait_ms <= metrics.avg_latency_ms
        assert abs(metrics.taken_at.timestamp() - time.time()) < 5

    async def test_of_one_stream_alone(self, server):
        """A broker of one stream ignores the other streams."""
        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([work.options(priority=p).call() for p in (100, 100, 1)])
            await burst(broker, work)
        async with RedisBroker(server.url, queue_name="queue:critical") as broker:
            metrics = await QueueMonitor(broker=broker).snapshot()
        assert list(metrics.tiers) == ["critical"]
        assert (metrics.done, metrics.tasks["work"].done) == (2, 2)

    @pytest.mark.slow
    async def test_of_several_groups(self, server):
        """An entry that this group has acknowledged does not wait, even if another group still needs it."""
        async with RedisBroker(server.url) as one, RedisBroker(server.url, group="others") as two:
            await one.store.ensure_groups()
            await two.store.ensure_groups()
            await one.enqueue_many([work.call() for _ in range(4)])
            await burst(one, work)
            metrics = await QueueMonitor(broker=one).snapshot()
            assert (metrics.depth, metrics.done, metrics.oldest_wait_s) == (0, 4, 0.0)
            metrics = await QueueMonitor(broker=two).snapshot()
            assert (metrics.depth, metrics.done) == (4, 0)

    async def test_an_entry_that_was_deleted_by_hand(self, server):
        """Depth and drain time stay right where `lag` would be nil."""
        async with RedisBroker(server.url) as broker:
            await broker.store.ensure_groups()
            handles = await broker.enqueue_many([work.call() for _ in range(4)])
            server.command("XREADGROUP", "GROUP", "workers", "me", "COUNT", 1, "STREAMS", "queue:standard", ">")
            server.command("XDEL", "queue:standard", handles[2].entry_id)
            metrics = await QueueMonitor(broker=broker).snapshot()
        assert (metrics.depth, metrics.processing) == (2, 1)

    async def test_a_worker_without_heartbeat(self, server):
        """A consumer with an expired heartbeat is listed with its pending tasks."""
        async with RedisBroker(server.url) as broker:
            await broker.store.ensure_groups()
            await broker.enqueue(work)
            server.command("XREADGROUP", "GROUP", "workers", "gone", "COUNT", 1, "STREAMS", "queue:standard", ">")
            server.command("ZADD", broker.keys.tiers[1].alive, int(time.time() * 1000) - 5000, "gone")
            metrics = await QueueMonitor(broker=broker).snapshot()
        (consumer,) = metrics.consumers
        assert (consumer.name, consumer.pending, consumer.alive) == ("gone", 1, False)
        assert -60 < consumer.alive_s < -4
        assert metrics.workers == 0

    async def test_costs_two_round_trips_of_cheap_commands(self, server):
        """One transaction, one pipeline, and nothing that scans."""
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(work)
            sent = []
            client = broker.store.client
            call = client.call

            async def spy(commands):
                sent.append([command[0] for command in commands])
                return await call(commands)

            client.call = spy
            await QueueMonitor(broker=broker).snapshot()
        assert len(sent) == 2
        cheap = {"MULTI", "TIME", "XLEN", "ZCARD", "XINFO", "ZRANGE", "EXEC", "HGETALL", "XRANGE"}
        assert {name for commands in sent for name in commands} == cheap
        assert sum(map(len, sent)) < 40

    async def test_a_server_out_of_memory_is_seen(self):
        """The server refuses transactions. The snapshot still works."""
        with fresh_server("valkey") as server:
            async with RedisBroker(server.url) as broker:
                await broker.enqueue(work)
                server.command("CONFIG", "SET", "maxmemory", "1")
                metrics = await QueueMonitor(broker=broker).snapshot()
                server.command("CONFIG", "SET", "maxmemory", "0")
        assert metrics.depth == 1

    async def test_a_window_that_has_ended_is_read_once(self, server):
        """Later changes of it are not seen, those of windows in which settlements may still arrive are."""
        async with RedisBroker(server.url) as broker:
            seconds, _ = server.command("TIME")
            old, young = (broker.keys.stats(int(seconds) - back) for back in (55, 15))
            for key in (old, young):
                server.command("HSET", key, "standard|t|done", 1)
            monitor = QueueMonitor(broker=broker, window=90)
            assert (await monitor.snapshot()).done == 2
            for key in (old, young):
                server.command("HSET", key, "standard|t|done", 10)
            assert (await monitor.snapshot()).done == 11
            assert (await QueueMonitor(broker=broker, window=90).snapshot()).done == 20

    async def test_watching(self, server):
        """A snapshot at once, then one each interval; an error ends a loop, and the next goes on."""
        found = []
        async with RedisBroker(server.url) as broker:
            watch = QueueMonitor(broker=broker).watch(timedelta(seconds=0.2))
            began = anyio.current_time()
            async for metrics in watch:
                found.append(metrics.depth)
                if len(found) == 3:
                    break
                await broker.enqueue(work)
            assert anyio.current_time() - began >= 0.4
            server.command("SET", "queue:dead", "no stream")
            with pytest.raises(BrokerError):
                await anext(watch)
            server.command("DEL", "queue:dead")
            assert (await anext(watch)).depth == 2
        assert found == [0, 1, 2]

    async def test_a_snapshot_costs_the_same_whatever_waits(self, real_server):
        """The same commands, each in microseconds: nothing grows with the number of tasks."""
        server, seen = real_server, []
        async with RedisBroker(server.url) as broker:
            for number in (10, 10_000):
                for delay in (0, 500):
                    await broker.enqueue_many([work.options(delay=delay).call()] * number)
                server.command("CONFIG", "RESETSTAT")
                await QueueMonitor(broker=broker).snapshot()
                seen.append(_calls(server))
        (before, _), (after, longest) = seen
        assert before == after
        assert longest < 2000

    async def test_errors_are_raised(self, server):
        """A key of a wrong type raises an error and does not look like an empty queue."""
        server.command("SET", "queue:standard", "no stream")
        async with RedisBroker(server.url) as broker:
            with pytest.raises(BrokerError, match="WRONGTYPE"):
                await QueueMonitor(broker=broker).snapshot()


def _calls(server):
    """Return how often each command was called, and the longest mean time of one, in microseconds."""
    rows = [
        line.partition(":") for line in server.command("INFO", "commandstats").decode().split("\r\n") if ":" in line
    ]
    stats = {name: dict(part.split("=") for part in rest.split(",")) for name, _, rest in rows}
    own = {name: one for name, one in stats.items() if not name.endswith(("|resetstat", "_info", "_client|setname"))}
    return {name: int(one["calls"]) for name, one in own.items()}, max(float(s["usec_per_call"]) for s in own.values())


class TestFigures:
    def test_nothing(self):
        assert set(figures(Counters(), 10.0).values()) == {0}

    def test_rates(self):
        tally = Counters(failed=1)
        tally.add(sum_shares([share_of(0, 0.1, 0.05)] * 3)[0])
        made = figures(tally, 2.0)
        assert (made["throughput_per_sec"], made["error_rate"]) == (1.5, 0.25)
        assert (made["avg_latency_ms"], made["avg_run_ms"]) == (pytest.approx(100), pytest.approx(50))
        assert made["p50_latency_ms"] == pytest.approx(100, rel=0.07)
        assert made["avg_wait_ms"] == pytest.approx(50)
        assert made["p99_wait_ms"] == pytest.approx(50, rel=0.07)

    def test_drain_and_wanted_workers(self):
        alive = [ConsumerMetrics(name=str(n), pending=0, idle_s=0, alive_s=9, alive=n < 2) for n in range(3)]
        now = datetime.now(UTC)
        metrics = QueueMetrics(taken_at=now, covered_s=10, depth=600, throughput_per_sec=4.0, consumers=tuple(alive))
        assert (metrics.workers, metrics.drain_seconds) == (2, 150.0)
        assert (metrics.wanted_workers(), metrics.wanted_workers(within=600)) == (5, 1)

    @pytest.mark.parametrize(
        ("processing", "depth", "pending", "wanted"),
        [
            (20, 0, (10, 10, 0), 2),  # nobody is to go who runs something
            (20, 35, (10, 10, 0), 6),  # a run makes no room within a minute
            (1, 0, (0, 0, 1), 1),
            (0, 35, (0, 0, 0), None),  # nothing is known
        ],
    )
    def test_wanted_workers_while_runs_last_for_hours(self, processing, depth, pending, wanted):
        """Nothing gets done in the window, or little; what is processed counts."""
        consumers = tuple(
            ConsumerMetrics(name=str(at), pending=held, idle_s=0, alive_s=9, alive=True)
            for at, held in enumerate((*pending, 3))
        )[: len(pending)]
        dead = ConsumerMetrics(name="dead", pending=50, idle_s=99, alive_s=-9, alive=False)
        for done, each in ((0, 0.0), (1, 3_600_000.0)):
            metrics = QueueMetrics(
                taken_at=datetime.now(UTC), covered_s=60, depth=depth, processing=processing, done=done,
                throughput_per_sec=0.0, avg_run_ms=each, consumers=(*consumers, dead),
            )  # fmt: skip
            assert metrics.wanted_workers() == wanted

    @pytest.mark.parametrize("interval", [0, 0.01, float("nan"), "x"])
    def test_an_interval_that_cannot_be_used(self, interval):
        with pytest.raises(ConfigurationError, match="watch"):
            QueueMonitor(broker=RedisBroker()).watch(interval)

    @pytest.mark.parametrize("within", [0, -1, float("nan"), "x"])
    @pytest.mark.parametrize("depth", [0, 600])
    def test_wanted_workers_within_a_time_that_cannot_be_used(self, within, depth):
        metrics = QueueMetrics(taken_at=datetime.now(UTC), covered_s=10, depth=depth, throughput_per_sec=4.0)
        with pytest.raises(ConfigurationError, match="within"):
            metrics.wanted_workers(within)

    @pytest.mark.parametrize("window", [0, 9, 901, float("nan")])
    def test_window_must_be_kept(self, window):
        with pytest.raises(ConfigurationError, match="window"):
            QueueMonitor(broker=RedisBroker(), window=window)

    def test_repr(self):
        assert "window=60" in repr(QueueMonitor(broker=RedisBroker()))
