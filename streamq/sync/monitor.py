"""The figures of a queue, for a thread."""

from __future__ import annotations

from datetime import timedelta

from streamq.broker import RedisBroker
from streamq.monitoring.metrics import QueueMetrics
from streamq.monitoring.monitor import QueueMonitor
from streamq.sync.drive import refuse_in_event_loop, run_now


class SyncQueueMonitor:
    """Reads the figures of a queue. Made by `SyncBroker.monitor`. See `streamq.monitoring.QueueMonitor`."""

    def __init__(self, broker: RedisBroker, *, window: float | timedelta) -> None:
        self._monitor = QueueMonitor(broker=broker, window=window)

    def __repr__(self) -> str:
        return f"<Sync{repr(self._monitor)[1:]}"

    def snapshot(self) -> QueueMetrics:
        """Return the current figures, in two round trips. Raises BrokerError if the server cannot be used."""
        refuse_in_event_loop()
        return run_now(self._monitor.snapshot())
