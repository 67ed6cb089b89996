"""What `on_exhausted` of a task is told: which task is dead, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamq.wire.delivery import Delivery, Failure

_TOLD = 4000  # characters of a traceback that a task is sent


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A task that is dead: its last delivery, the reason of its dead letter, and how it failed."""

    delivery: Delivery
    reason: str
    failure: Failure

    def as_dict(self) -> dict[str, Any]:
        """Return what a task is sent in its place. Raises UndecodableError if the delivery cannot be read."""
        delivery, failure = self.delivery, self.failure
        return {
            "task_id": delivery.task_id, "task": delivery.task, "args": delivery.args, "kwargs": delivery.kwargs,
            "headers": delivery.headers, "reason": str(self.reason), "error_type": failure.error_type,
            "error": failure.error, "traceback": failure.traceback[-_TOLD:], "attempts": delivery.attempt,
        }  # fmt: skip
