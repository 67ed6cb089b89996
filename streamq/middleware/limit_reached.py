"""`LimitReached`: what limits raise to postpone a task that has not started. Other limits around it catch it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamq.client import Command
from streamq.tasks.outcome import RetryLaterThen
from streamq.wire.bounds import LONGEST


class LimitReached(RetryLaterThen):
    """A limit postpones a task. The task has not run, so the limits around this one take their tokens back.

    A slow limit that many tasks wait for may ask for more than the longest time: the task looks again after that.
    """

    def __init__(
        self, reason: str, *, after: float, headers: Mapping[str, Any] | None = None, then: Command = ()
    ) -> None:  # fmt: skip
        super().__init__(reason, after=min(after, LONGEST), headers=headers)
        self.then = then
