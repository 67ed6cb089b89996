"""What the log says of a run that raised: in words and in fields, with the attempt, the delay and the traceback."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from streamq.consumer.events import Event, Settled
from streamq.diagnostics.safe_log import DEBUG, INFO, SafeLog
from streamq.errors import CircuitOpenError, StreamqError
from streamq.middleware.limit_reached import LimitReached
from streamq.queue.missing_right import without_remedy
from streamq.tasks.outcome import Ack, DeadLetter, Outcome, Postpone, Reason, Retry
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

_HELD_BACK: Final = (LimitReached, CircuitOpenError)  # a limit or a circuit has said itself that tasks wait


def log_outcome(delivery: Delivery, error: BaseException, outcome: Outcome, level: int) -> None:
    """Log what becomes of a delivery whose run raised this error. A failed attempt is logged at this level.

    At level debug for a task that a limit or a circuit holds back: there may be thousands, again and again.
    """
    which = delivery.task, delivery.task_id
    match outcome:
        case Retry(delay=delay, failure=failure):
            log.at(
                level, "task %s %s: attempt %d failed: %r; the next one is in %g s", *which, delivery.attempt, error,
                round(delay, 3), event="retry", of=delivery, error=error, trace=failure.traceback,
                extra={"delay": delay, "error_type": failure.error_type, "error": failure.error},
            )  # fmt: skip
        case Postpone(delay=delay, reason=reason):
            held_back = isinstance(error, _HELD_BACK)
            log.at(
                DEBUG if held_back else INFO, "task %s %s is postponed, and runs again in %g s: %s",
                *which, round(delay, 3), reason, event="held_back" if held_back else "postponed", of=delivery,
                extra={"delay": delay, "reason": reason},
            )  # fmt: skip
        case DeadLetter(reason=why, failure=failure):  # its traceback comes with the line that says that it is dead
            log.at(
                level, "task %s %s: attempt %d failed: %r; there is no other", *which, delivery.attempt, error,
                event="failed", of=delivery,
                extra={"reason": str(why), "error_type": failure.error_type, "error": failure.error},
            )  # fmt: skip
        case _:
            pass


def log_dead(delivery: Delivery, outcome: DeadLetter) -> None:
    """Log that a task is dead, with the traceback of its last run if it has one: the server has confirmed it."""
    reason, failure = outcome.reason, outcome.failure
    said = without_remedy(failure.error) if reason == Reason.REFUSED else failure.error
    log.error(
        "task %s is dead (%s): %s: %s", name_of(delivery), reason, failure.error_type, said, event="dead", of=delivery,
        error=outcome.error, trace=failure.traceback,
        extra={"reason": str(reason), "error_type": failure.error_type, "error": said},
    )  # fmt: skip


def logs_done() -> bool:
    """Does the log take a line for each task that succeeded? They cost time, so a worker asks once, as it starts."""
    return log.takes(DEBUG)


def log_done(event: Event) -> None:
    """Log a success, which the server has confirmed. A listener of the worker."""
    if isinstance(event, Settled) and isinstance(event.outcome, Ack) and not event.outcome.cancelled:
        delivery, duration = event.delivery, round(event.duration, 6)
        log.debug("task %s is done, in %g s", name_of(delivery), duration, event="done", of=delivery,
                  extra={"duration": duration})  # fmt: skip


def without_error(outcome: Outcome) -> Outcome:
    """Return an outcome that may have to wait for long: an exception keeps the frames of its run."""
    return replace(outcome, error=None) if isinstance(outcome, DeadLetter) and outcome.error else outcome


def name_of(delivery: Delivery) -> str:
    """Return the name and the id of a task, for a line of the log."""
    try:
        return f"{delivery.task} {delivery.task_id}"
    except StreamqError:
        return repr(delivery)
