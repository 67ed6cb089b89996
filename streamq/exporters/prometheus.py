"""`QueueCollector`: the snapshots of a monitor, as Prometheus scrapes them.

Owns the names of the metrics (the table is in `docs/exporters.md`); all figures are the monitor's.
A scrape does no I/O and may come from any thread: it reads the last refresh, one frozen value.

What was done lies in a window that moves, so it is exposed as gauges and never as counters: a
figure that also falls would make `rate()` invent work.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import anyio
from anyio.abc import TaskStatus

from streamq.errors import BrokerError, ConfigurationError, MissingExtraError, check_number
from streamq.monitoring import Figures, QueueMetrics, QueueMonitor

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtraError("streamq.exporters.prometheus", "metrics") from error

log = logging.getLogger("streamq.exporters")

_PREFIX = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_QUANTILES = (("0.5", "p50_latency_ms"), ("0.95", "p95_latency_ms"), ("0.99", "p99_latency_ms"))
_OUTCOMES = ("done", "failed", "retried", "postponed", "died", "superseded")
_NOTHING = QueueMetrics(taken_at=datetime.fromtimestamp(0, UTC), covered_s=0.0)


@dataclass(frozen=True, slots=True)
class _Refreshed:
    """What the refreshes came to so far. `metrics` is None before the first, and after one that failed."""

    metrics: QueueMetrics | None = None
    at: float = 0.0  # Unix seconds of this machine, of the last that succeeded
    succeeded: int = 0
    failed: int = 0


class QueueCollector(Collector):
    """A custom collector for a `prometheus_client` registry, fed by `refresh()`.

    `prefix` begins the name of every metric; two queues in one registry need two. After a refresh
    that failed, `<prefix>_up` is 0 and the figures are left out, so that old ones never pass for new.

    Raises ConfigurationError for a prefix that no metric can have.

        REGISTRY.register(collector := QueueCollector(QueueMonitor(broker=broker)))
        await task_group.start(collector.refresh_forever)
    """

    def __init__(self, monitor: QueueMonitor, *, prefix: str = "streamq") -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"prefix={prefix!r} cannot be used: give letters, digits and _, no digit first")
        self._monitor = monitor
        self._prefix = prefix
        self._last = _Refreshed()

    def __repr__(self) -> str:
        last = self._last
        return f"<QueueCollector {self._prefix} {last.succeeded} refreshed, {last.failed} failed, of {self._monitor!r}>"

    async def refresh(self) -> QueueMetrics:
        """Take a snapshot for the scrapes to come, and return it.

        Raises BrokerError if the server cannot be used; scrapes say so until the next success.
        """
        try:
            metrics = await self._monitor.snapshot()
        except BrokerError:
            self._last = replace(self._last, metrics=None, failed=self._last.failed + 1)
            raise
        self._last = replace(self._last, metrics=metrics, at=time.time(), succeeded=self._last.succeeded + 1)
        return metrics

    async def refresh_forever(
        self, interval: float = 5.0, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Refresh every `interval` seconds until cancelled; a server that cannot be used is logged and tried again.

        Has started, for `task_group.start`, after the first refresh. Raises ConfigurationError for
        an interval below 0.1 s.
        """
        check_number("interval", interval, 0.1)
        while True:
            was_up = self._last.metrics is not None or not self._last.failed
            try:
                await self.refresh()
            except BrokerError as error:
                if was_up:
                    log.warning("no figures of the queue: %s; trying again every %g s", error, interval)
            task_status.started()
            task_status = anyio.TASK_STATUS_IGNORED
            await anyio.sleep(interval)

    def describe(self) -> Iterable[Metric]:
        """Return every family without samples: a registry refuses a second collector of the same names."""
        for family in self._families(_Refreshed(_NOTHING)):
            family.samples.clear()
            yield family

    def collect(self) -> Iterable[Metric]:
        """Return the families of the last refresh."""
        return self._families(self._last)

    # --- the families --------------------------------------------------------------------------

    def _families(self, last: _Refreshed) -> Iterator[Metric]:
        yield self._gauge("up", "1 if the last refresh succeeded", last.metrics is not None)
        yield self._gauge("last_refresh_timestamp_seconds", "Unix time of the last refresh that succeeded", last.at)
        refreshes = CounterMetricFamily(f"{self._prefix}_refreshes", "Refreshes of these figures", labels=["outcome"])
        refreshes.add_metric(["succeeded"], last.succeeded)
        refreshes.add_metric(["failed"], last.failed)
        yield refreshes
        if last.metrics is not None:
            yield from self._present(last.metrics)
            yield from self._past("", [], {(): last.metrics})
            yield from self._past("tier_", ["tier"], {(name,): tier for name, tier in last.metrics.tiers.items()})
            yield from self._past("task_", ["task"], {(name,): task for name, task in last.metrics.tasks.items()})

    def _present(self, metrics: QueueMetrics) -> Iterator[Metric]:
        """What there is now."""
        for name, text in (
            ("depth", "Tasks that wait to be started"),
            ("processing", "Tasks in the hands of workers"),
            ("delayed", "Tasks that wait for their time or their next attempt"),
        ):
            yield self._by_label(
                name, text, "tier", {tier.name: getattr(tier, name) for tier in metrics.tiers.values()}
            )
        oldest = {tier.name: tier.oldest_wait_s for tier in metrics.tiers.values()}
        yield self._by_label("oldest_wait_seconds", "Age of the oldest task that waits", "tier", oldest)
        yield self._gauge("dead_letters", "Dead letters", metrics.dead_letter_count)
        yield self._gauge("consumers_alive", "Workers whose heartbeat counts", metrics.workers)
        circuits = GaugeMetricFamily(
            f"{self._prefix}_circuit_not_closed", "1 for each circuit breaker's circuit that is not closed",
            labels=["circuit", "scope", "worker", "state"],
        )  # fmt: skip
        # Two breakers of a process may share a name: one sample for both.
        for labels in sorted({(one.name, one.scope, one.worker or "", one.state) for one in metrics.circuits}):
            circuits.add_metric(labels, 1)
        yield circuits
        yield self._gauge("window_seconds", "Seconds that the figures of what was done cover", metrics.covered_s)

    def _past(self, scope: str, labels: list[str], found: Mapping[tuple[str, ...], Figures]) -> Iterator[Metric]:
        """What was done in the window: of the queue, of each tier, or of each task."""

        def family(name: str, text: str, *more: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"{self._prefix}_{scope}{name}", text, labels=[*labels, *more])

        runs = family("window_runs", "Runs in the window, by what became of them", "outcome")
        throughput = family("throughput_per_second", "Tasks done per second")
        errors = family("error_ratio", "Share of the runs that failed")
        latency = family(
            "latency_seconds", "From arrival to the end of the run, right within a factor of 2", "quantile"
        )
        mean = family("latency_mean_seconds", "From arrival to the end of the run")
        run_mean = family("run_mean_seconds", "The run alone")
        for key, figures in found.items():
            for outcome in _OUTCOMES:
                runs.add_metric([*key, outcome], getattr(figures, outcome))
            throughput.add_metric(key, figures.throughput_per_sec)
            errors.add_metric(key, figures.error_rate)
            if figures.done:  # what nobody measured is left out: 0 would look like the best of all
                for quantile, name in _QUANTILES:
                    latency.add_metric([*key, quantile], getattr(figures, name) / 1000)
                mean.add_metric(key, figures.avg_latency_ms / 1000)
                run_mean.add_metric(key, figures.avg_run_ms / 1000)
        yield from (runs, throughput, errors, latency, mean, run_mean)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(f"{self._prefix}_{name}", text, value=float(value))

    def _by_label(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family
