"""The argument of `on_exhausted`: which task was dead-lettered, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamq.wire.dead_letter_fields import Failure, runs_of
from streamq.wire.delivery import Delivery

_MAX_TRACEBACK = 4000  # characters of a traceback in the argument of a task: the last ones


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A task that was dead-lettered: its last delivery, the reason, and the failure of its last run."""

    delivery: Delivery
    reason: str
    failure: Failure

    def as_dict(self) -> dict[str, Any]:
        """Return the argument for an `on_exhausted` that is a task.

        Raises UndecodableError if the delivery cannot be read.
        """
        delivery, failure = self.delivery, self.failure
        return {
            "task_id": delivery.task_id, "task": delivery.task, "args": delivery.args, "kwargs": delivery.kwargs,
            "headers": delivery.headers, "reason": str(self.reason), "error_type": failure.error_type,
            "error": failure.error, "traceback": failure.traceback[-_MAX_TRACEBACK:],
            "attempts": runs_of(delivery, self.reason)[0],
        }  # fmt: skip
