"""`LimitReached`: what limits raise to postpone a task that has not started. Other limits around it catch it."""

from __future__ import annotations

from streamq.errors import RetryLater


class LimitReached(RetryLater):
    """A limit postpones a task. The task has not run, so the limits around this one take their tokens back."""
