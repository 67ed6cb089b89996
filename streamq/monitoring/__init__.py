"""Monitoring: snapshots of a queue's figures, at little cost for the server."""

from streamq.monitoring.metrics import CircuitMetrics, ConsumerMetrics, Figures, QueueMetrics, TaskMetrics, TierMetrics
from streamq.monitoring.monitor import QueueMonitor

__all__ = ["CircuitMetrics", "ConsumerMetrics", "Figures", "QueueMetrics", "QueueMonitor", "TaskMetrics", "TierMetrics"]
