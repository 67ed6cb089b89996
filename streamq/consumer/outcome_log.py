"""What the log says of a run that raised: in words, with the attempt and the delay."""

from __future__ import annotations

from typing import Final

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import CircuitOpenError
from streamq.middleware.limit_reached import LimitReached
from streamq.tasks.outcome import DeadLetter, Outcome, Postpone, Retry
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

_HELD_BACK: Final = (LimitReached, CircuitOpenError)  # a limit or a circuit has said itself that tasks wait


def log_outcome(delivery: Delivery, error: BaseException, outcome: Outcome) -> None:
    """Log what becomes of a delivery whose run raised this error.

    At level debug for a task that a limit or a circuit holds back: there may be thousands, again and again.
    """
    which = delivery.task, delivery.task_id
    match outcome:
        case Retry(delay=delay):
            words = "task %s %s: attempt %d failed: %r; the next one is in %g s"
            log.info(words, *which, delivery.attempt, error, round(delay, 3))
        case Postpone(delay=delay, reason=reason):
            say = log.debug if isinstance(error, _HELD_BACK) else log.info
            say("task %s %s is postponed, and runs again in %g s: %s", *which, round(delay, 3), reason)
        case DeadLetter():
            log.info("task %s %s: attempt %d failed: %r; there is no other", *which, delivery.attempt, error)
        case _:
            pass
