"""Monitoring: how the queue does, in figures that cost the server next to nothing."""

from streamq.monitoring.figures import CircuitMetrics, ConsumerMetrics, Figures, QueueMetrics, TaskMetrics, TierMetrics
from streamq.monitoring.monitor import QueueMonitor

__all__ = ["CircuitMetrics", "ConsumerMetrics", "Figures", "QueueMetrics", "QueueMonitor", "TaskMetrics", "TierMetrics"]
