"""The collector: a scrape shows the state of the queue."""

from __future__ import annotations

import logging
import re
import time
import urllib.request

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from streamq import Priority, RedisBroker, task
from streamq.errors import BrokerUnavailableError, ConfigurationError, NotOpenError
from streamq.exporters.prometheus import QueueCollector
from streamq.middleware import CircuitBreaker, MiddlewareChain
from streamq.monitoring import QueueMonitor
from tests.at_work import burst, until, working
from tests.docs.pages import ROOT, table_under


@task(retries=0)
async def work(seconds=0.0, fail=False):
    await anyio.sleep(seconds)
    if fail:
        raise ValueError


class Flaky:
    """A monitor whose server can be down."""

    def __init__(self, monitor):
        self.monitor = monitor
        self.down = False
        self.asked = 0

    async def snapshot(self):
        self.asked += 1
        if self.down:
            raise BrokerUnavailableError("nobody there")
        return await self.monitor.snapshot()


@pytest.fixture
async def broker():
    async with RedisBroker("memory://") as broker:
        yield broker


def scraped(collector: Collector) -> dict[tuple[str, ...], float]:
    """Return a parsed scrape: (name, label values ordered by label name) -> value."""
    registry = CollectorRegistry()
    registry.register(collector)
    return parsed(generate_latest(registry).decode())


def parsed(text):
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_before_the_first_refresh(broker):
    """There are no figures, and `up` is 0."""
    collector = QueueCollector(QueueMonitor(broker=broker))
    assert scraped(collector) == {
        ("streamq_up",): 0,
        ("streamq_last_refresh_timestamp_seconds",): 0,
        ("streamq_refreshes_total", "succeeded"): 0,
        ("streamq_refreshes_total", "failed"): 0,
    }


async def test_current_state(broker):
    """Depth, processing, delayed and the oldest wait by tier, and the workers that are alive."""
    collector = QueueCollector(QueueMonitor(broker=broker))
    await broker.enqueue(work.options(priority=Priority.LOW, delay=1000))
    async with working(broker, work, concurrency=2, max_prefetch=0) as worker:
        await broker.enqueue_many([work.call(60) for _ in range(5)])
        await until(lambda: worker.health.running == 2)
        before = time.time()
        await collector.refresh()
        worker.stop()
        worker.stop()
    shown = scraped(collector)
    for name, critical, standard, bulk in (("depth", 0, 3, 0), ("processing", 0, 2, 0), ("delayed", 0, 0, 1)):
        assert [shown[f"streamq_{name}", tier] for tier in ("critical", "standard", "bulk")] == [
            critical,
            standard,
            bulk,
        ]
    assert 0 < shown["streamq_oldest_wait_seconds", "standard"] < 60
    assert shown["streamq_oldest_wait_seconds", "bulk"] == 0
    assert (shown["streamq_consumers_alive",], shown["streamq_dead_letters",], shown["streamq_up",]) == (1, 0, 1)
    assert before <= shown["streamq_last_refresh_timestamp_seconds",] <= time.time()

    await collector.refresh()  # the worker has left
    shown = scraped(collector)
    assert shown["streamq_consumers_alive",] == 0
    assert (shown["streamq_depth", "standard"], shown["streamq_processing", "standard"]) == (5, 0)


async def test_runs_in_the_window(broker):
    """Runs, rates and latencies of the queue, tiers and tasks are those of the snapshot."""
    collector = QueueCollector(QueueMonitor(broker=broker))
    await broker.enqueue_many([work.call(0.01) for _ in range(9)])
    await broker.enqueue(work, fail=True)
    await burst(broker, work)
    metrics = await collector.refresh()
    shown = scraped(collector)
    for scope, labels in (("", ()), ("tier_", ("standard",)), ("task_", ("work",))):
        of = f"streamq_{scope}"
        assert shown[f"{of}window_runs", "done", *labels] == 9
        assert shown[f"{of}window_runs", "failed", *labels] == 1
        assert shown[f"{of}window_runs", "died", *labels] == 1
        assert shown[f"{of}error_ratio", *labels] == 0.1
        assert shown[f"{of}throughput_per_second", *labels] == pytest.approx(9 / metrics.covered_s)
        assert shown[f"{of}latency_mean_seconds", *labels] == pytest.approx(metrics.avg_latency_ms / 1000)
        assert 0.01 <= shown[f"{of}run_mean_seconds", *labels] <= shown[f"{of}latency_mean_seconds", *labels]
        assert shown[f"{of}wait_mean_seconds", *labels] == pytest.approx(metrics.avg_wait_ms / 1000)
        for quantile, percentile in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
            for what in ("latency", "wait"):
                value = getattr(metrics, f"{percentile}_{what}_ms") / 1000
                assert shown[f"{of}{what}_seconds", str(quantile), *labels] == value > 0
    assert shown["streamq_dead_letters",] == 1
    assert shown["streamq_window_seconds",] == pytest.approx(metrics.covered_s)
    assert shown["streamq_tier_window_runs", "done", "bulk"] == 0
    assert ("streamq_tier_latency_mean_seconds", "bulk") not in shown  # nobody measured it


async def test_circuits_that_are_not_closed(broker):
    """One sample for each circuit, of the fleet and of a process. No sample when all are closed."""

    @task(retries=0)
    async def call():
        raise OSError

    collector = QueueCollector(QueueMonitor(broker=broker))
    await collector.refresh()
    assert not [key for key in scraped(collector) if key[0] == "streamq_circuit_not_closed"]
    own = CircuitBreaker(1, name="own")
    chain = MiddlewareChain(CircuitBreaker(1, name="api", scope="fleet"), own)
    async with working(broker, call, middleware=chain):
        await broker.enqueue(call)
        with anyio.fail_after(10):
            while len((metrics := await collector.refresh()).circuits) < 2:
                await anyio.sleep(0.01)
    worker = next(circuit.worker for circuit in metrics.circuits if circuit.worker)
    shown = {key[1:]: value for key, value in scraped(collector).items() if key[0] == "streamq_circuit_not_closed"}
    assert shown == {("api:call", "fleet", "open", ""): 1, ("own:call", "process", "open", worker): 1}


async def test_a_scrape_over_http(broker):
    """The HTTP server of prometheus_client, in its thread, reads the last refresh."""
    registry = CollectorRegistry()
    collector = QueueCollector(QueueMonitor(broker=broker), prefix="mail")
    registry.register(collector)
    await broker.enqueue(work)
    await collector.refresh()
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:

        def get():
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as response:
                return response.read().decode()

        shown = parsed(await anyio.to_thread.run_sync(get))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert shown["mail_depth", "standard"] == 1


async def test_two_of_one_name_are_refused(broker):
    """A registry knows the names before the first refresh. Another prefix gives other names."""
    registry = CollectorRegistry()
    monitor = QueueMonitor(broker=broker)
    registry.register(QueueCollector(monitor))
    with pytest.raises(ValueError, match="streamq_"):  # in the registry's words; the name is ours
        registry.register(QueueCollector(monitor))
    registry.register(QueueCollector(monitor, prefix="other"))


async def test_a_server_that_is_gone(broker, caplog):
    """Old figures are not shown. The loop logs once, tries again, and recovers."""
    monitor = Flaky(QueueMonitor(broker=broker))
    collector = QueueCollector(monitor)
    with caplog.at_level(logging.WARNING, "streamq.exporters"):
        async with anyio.create_task_group() as group:
            await group.start(collector.refresh_forever, 0.1)
            assert scraped(collector)["streamq_up",] == 1
            monitor.down = True
            asked = monitor.asked
            await until(lambda: monitor.asked >= asked + 3)
            shown = scraped(collector)
            assert shown["streamq_up",] == 0
            assert shown["streamq_refreshes_total", "failed"] >= 2
            assert shown["streamq_last_refresh_timestamp_seconds",] > 0
            assert ("streamq_depth", "standard") not in shown
            monitor.down = False
            await until(lambda: scraped(collector)["streamq_up",] == 1)
            group.cancel_scope.cancel()
    assert len(caplog.records) == 1
    monitor.down = True
    with pytest.raises(BrokerUnavailableError):
        await collector.refresh()
    assert re.match(r"<QueueCollector streamq \d+ refreshed, \d+ failed, of <", repr(collector))


async def test_starts_without_a_server(broker):
    """A program starts even if its server is down."""
    monitor = Flaky(QueueMonitor(broker=broker))
    monitor.down = True
    collector = QueueCollector(monitor)
    async with anyio.create_task_group() as group:
        await group.start(collector.refresh_forever)
        assert scraped(collector)["streamq_up",] == 0
        group.cancel_scope.cancel()


async def test_invalid_values_are_refused(anyio_backend):
    """An invalid prefix, a too short interval, a broker that is not open."""
    broker = RedisBroker("memory://")
    collector = QueueCollector(QueueMonitor(broker=broker))
    with pytest.raises(ConfigurationError, match="prefix='my-app'"):
        QueueCollector(QueueMonitor(broker=broker), prefix="my-app")
    with pytest.raises(ConfigurationError, match="interval"):
        await collector.refresh_forever(0)
    with pytest.raises(NotOpenError):
        await collector.refresh_forever()


async def test_the_page_names_every_metric(broker):
    """The tables of docs/exporters.md list exactly the exposed metrics."""
    collector = QueueCollector(QueueMonitor(broker=broker))
    page = ROOT / "docs" / "exporters.md"
    listed = {row[0].removesuffix("_total") for row in table_under(page, "### Current state")}
    window = [row[0] for row in table_under(page, "### Runs in the window")]
    listed |= {f"streamq_{scope}{name}" for name in window for scope in ("", "tier_", "task_")}
    assert {family.name for family in collector.describe()} == listed
