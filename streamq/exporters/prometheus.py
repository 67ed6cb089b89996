"""`QueueCollector`: exposes the snapshots of a monitor as Prometheus metrics.

Owns the names of the metrics (the table is in `docs/exporters.md`). The monitor computes all figures. A
scrape does no I/O and may come from any thread: it reads the last refresh, one frozen value.

Figures of past runs cover a moving window, so they are gauges and not counters: they also fall, and `rate()`
would report work that did not happen.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product

import anyio
from anyio.abc import TaskStatus

from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import BrokerError, ConfigurationError, MissingExtraError, NotOpenError, WrongLoopError
from streamq.monitoring import Figures, QueueMetrics, QueueMonitor
from streamq.wire import bounds

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtraError("streamq.exporters.prometheus", "metrics") from error

log = SafeLog("streamq.exporters")

_PREFIX = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_QUANTILES = (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))
_ACCURATE = "accurate within 7 %"
_OUTCOMES = ("done", "failed", "retried", "postponed", "died", "superseded", "cancelled")
_EMPTY_METRICS = QueueMetrics(taken_at=datetime.fromtimestamp(0, UTC), covered_s=0.0)


@dataclass(frozen=True, slots=True)
class _RefreshState:
    """The result of the refreshes so far. `metrics` is None before the first, and after one that failed."""

    metrics: QueueMetrics | None = None
    at: float = 0.0  # Unix time of the last refresh that succeeded, by this machine's clock
    succeeded: int = 0
    failed: int = 0


class QueueCollector(Collector):
    """A custom collector for a `prometheus_client` registry. `refresh()` updates it.

    `prefix` is the start of every metric name. Two queues in one registry need two prefixes. After a failed
    refresh `<prefix>_up` is 0 and the figures are left out, so that old figures are not taken for new ones.

    Raises ConfigurationError if the prefix cannot start a metric name.

        REGISTRY.register(collector := QueueCollector(QueueMonitor(broker=broker)))
        await task_group.start(collector.refresh_forever)
    """

    def __init__(self, monitor: QueueMonitor, *, prefix: str = "streamq") -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"prefix={repr_of(prefix)} cannot be used: give letters, digits and _, and no digit first"
            )
        self._monitor = monitor
        self._prefix = prefix
        self._state = _RefreshState()
        self._refreshed = 0.0  # when, by `time.monotonic`

    def __repr__(self) -> str:
        state = self._state
        return (
            f"<QueueCollector {self._prefix} {state.succeeded} refreshed, {state.failed} failed, of {self._monitor!r}>"
        )

    @property
    def up(self) -> bool:
        """Did the last refresh succeed?"""
        return self._state.metrics is not None

    @property
    def age(self) -> float:
        """Seconds since the last refresh that succeeded; infinite if the last one failed."""
        return time.monotonic() - self._refreshed if self.up else math.inf

    def note_failure(self) -> None:
        """Note that a refresh was cut off: the figures are old. Scrapes show `up` 0 until the next success."""
        self._state = replace(self._state, metrics=None, failed=self._state.failed + 1)

    async def refresh(self) -> QueueMetrics:
        """Take a snapshot, keep it for later scrapes, and return it.

        Raises BrokerError if the server cannot be used. Scrapes then show `up` 0 until the next success.
        """
        try:
            metrics = await self._monitor.snapshot()
        except Exception:
            self.note_failure()
            raise
        self._refreshed = time.monotonic()
        self._state = replace(self._state, metrics=metrics, at=time.time(), succeeded=self._state.succeeded + 1)
        return metrics

    async def refresh_forever(
        self, interval: float = 5.0, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Refresh every `interval` seconds until cancelled. A failed refresh is logged and tried again.

        With `task_group.start` it has started after the first refresh. Raises ConfigurationError if the
        interval is below 0.1 s, NotOpenError or WrongLoopError if the broker cannot be used here.
        """
        interval = bounds.SCRAPE_INTERVAL.check(interval)
        while True:
            was_up = self._state.metrics is not None or not self._state.failed
            try:
                await self.refresh()
            except BrokerError as error:
                if was_up:
                    log.warning(
                        "cannot read the figures of the queue: %s; trying again every %g s",
                        error,
                        interval,
                        event="figures_missing",
                    )
            except (NotOpenError, WrongLoopError):
                raise
            except Exception:  # a fault of ours must not end the program that is watched
                if was_up:
                    log.exception(
                        "cannot read the figures of the queue; trying again every %g s",
                        interval,
                        event="figures_missing",
                    )
            task_status.started()
            task_status = anyio.TASK_STATUS_IGNORED
            await anyio.sleep(interval)

    def describe(self) -> Iterable[Metric]:
        """Return all families without samples. A registry uses them to refuse two collectors with the same names."""
        for family in self._families(_RefreshState(_EMPTY_METRICS)):
            family.samples.clear()
            yield family

    def collect(self) -> Iterable[Metric]:
        """Return the families of the last refresh."""
        return self._families(self._state)

    # --- the families --------------------------------------------------------------------------

    def _families(self, state: _RefreshState) -> Iterator[Metric]:
        yield self._gauge("up", "1 if the last refresh succeeded", state.metrics is not None)
        yield self._gauge("last_refresh_timestamp_seconds", "Unix time of the last refresh that succeeded", state.at)
        refreshes = CounterMetricFamily(f"{self._prefix}_refreshes", "Refreshes of these figures", labels=["outcome"])
        refreshes.add_metric(["succeeded"], state.succeeded)
        refreshes.add_metric(["failed"], state.failed)
        yield refreshes
        if state.metrics is not None:
            yield from self._current_families(state.metrics)
            yield from self._window_families("", [], {(): state.metrics})
            yield from self._window_families(
                "tier_", ["tier"], {(name,): tier for name, tier in state.metrics.tiers.items()}
            )
            yield from self._window_families(
                "task_", ["task"], {(name,): task for name, task in state.metrics.tasks.items()}
            )

    def _current_families(self, metrics: QueueMetrics) -> Iterator[Metric]:
        """Yield the families of the current state."""
        for name, text in (
            ("depth", "Tasks that wait to be started"),
            ("processing", "Tasks that workers hold"),
            ("delayed", "Tasks that are not yet due: delayed or to be retried"),
        ):
            yield self._by_label(
                name, text, "tier", {tier.name: getattr(tier, name) for tier in metrics.tiers.values()}
            )
        oldest = {tier.name: tier.oldest_wait_s for tier in metrics.tiers.values()}
        yield self._by_label("oldest_wait_seconds", "Age of the oldest waiting task", "tier", oldest)
        yield self._gauge("dead_letters", "Dead letters", metrics.dead_letter_count)
        yield self._gauge(
            "dead_letters_dropped",
            "Dead letters that the bound of their stream has removed",
            metrics.dead_letters_dropped,
        )
        yield self._gauge("consumers_alive", "Workers that are alive", metrics.workers)
        circuits = GaugeMetricFamily(
            f"{self._prefix}_circuit_not_closed", "1 for each circuit that is not closed",
            labels=["circuit", "scope", "worker", "state"],
        )  # fmt: skip
        # Two breakers of one process may share a name. They get one sample.
        for labels in sorted({(one.name, one.scope, one.worker or "", one.state) for one in metrics.circuits}):
            circuits.add_metric(labels, 1)
        yield circuits
        yield self._gauge(
            "window_seconds",
            "Seconds that the window_*, throughput, error and latency figures cover",
            metrics.covered_s,
        )

    def _window_families(
        self, scope: str, labels: list[str], figures_by_key: Mapping[tuple[str, ...], Figures]
    ) -> Iterator[Metric]:
        """Yield the families of the window: of the queue, of each tier, or of each task."""

        def family(name: str, text: str, *more: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"{self._prefix}_{scope}{name}", text, labels=[*labels, *more])

        runs = family("window_runs", "Runs in the window, by outcome", "outcome")
        throughput = family("throughput_per_second", "Tasks done per second")
        errors = family("error_ratio", "Share of failed runs")
        times = {  # by their name in `Figures`
            "latency": family("latency_seconds", f"From arrival to the end of the run, {_ACCURATE}", "quantile"),
            "wait": family("wait_seconds", f"From arrival to the start of the run, {_ACCURATE}", "quantile"),
        }
        means = {
            "latency": family("latency_mean_seconds", "From arrival to the end of the run"),
            "wait": family("wait_mean_seconds", "From arrival to the start of the run"),
            "run": family("run_mean_seconds", "The run alone"),
        }
        for key, figures in figures_by_key.items():
            for outcome in _OUTCOMES:
                runs.add_metric([*key, outcome], getattr(figures, outcome))
            throughput.add_metric(key, figures.throughput_per_sec)
            errors.add_metric(key, figures.error_rate)
            if figures.done:  # without runs there is no latency: 0 would look like the best value
                for what, (quantile, percentile) in product(times, _QUANTILES):
                    times[what].add_metric([*key, quantile], getattr(figures, f"{percentile}_{what}_ms") / 1000)
                for what, mean in means.items():
                    mean.add_metric(key, getattr(figures, f"avg_{what}_ms") / 1000)
        yield from (runs, throughput, errors, *times.values(), *means.values())

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(f"{self._prefix}_{name}", text, value=float(value))

    def _by_label(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family


name_remedies(QueueCollector, "collector")
