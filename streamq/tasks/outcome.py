"""The outcomes of a delivery, and the decision between them after a failed run.

Pure: `decide` returns an outcome, `consumer/settling.py` carries it out. Each delivery gets exactly one outcome. The
state machine is in `docs/architecture.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import str_of, traceback_of, type_name
from streamq.errors import ArgumentsError, ConfigurationError, Reject, RetryLater, UndecodableError
from streamq.tasks.exception_groups import deciding, is_of_message
from streamq.tasks.retry_policy import RetryPolicy, Uniform
from streamq.wire import bounds
from streamq.wire.dead_letter_fields import ERROR_KEPT, UNDECODABLE, Failure
from streamq.wire.message import MAX_PAYLOAD, TRACEBACK_TAIL, dumps

log = SafeLog("streamq")


class Reason(StrEnum):
    """Why a task was dead-lettered."""

    RETRIES_EXHAUSTED = "retries_exhausted"
    CRASH_LOOP = "crash_loop"
    EXPIRED = "expired"
    REJECTED = "rejected"
    UNDECODABLE = UNDECODABLE
    UNKNOWN_TASK = "unknown_task"
    UNKNOWN_GROUP = "unknown_group"  # it names a consumer group that its stream does not have
    REFUSED = "refused"  # the server refuses what follows its delivery
    INTERNAL_ERROR = "internal_error"  # streamq, or code of the user that it asked, failed with this delivery


EXPIRED = Failure("Expired", "it had not started before it expired")


@dataclass(frozen=True, slots=True)
class Ack:
    """The run succeeded, or was `cancelled`. `result` is the JSON that waiters get; empty if no result is kept."""

    result: bytes = b""
    cancelled: bool = False


CANCELLED = Ack(
    dumps({"error_type": "Cancelled", "error": "cancelled while it ran", "reason": "cancelled", "traceback": ""}),
    cancelled=True,
)


@dataclass(frozen=True, slots=True)
class Retry:
    """The run failed. The task runs again after `delay` seconds, and has spent an attempt."""

    delay: float
    failure: Failure


@dataclass(frozen=True, slots=True)
class Postpone:
    """The task runs again after `delay` seconds, and has spent no attempt.

    `headers` are merged into those of the message. `unknown`: this worker does not know the task. `then` is a command
    that follows the postponement, in the same round trip; () for none.
    """

    delay: float
    reason: str
    headers: Mapping[str, Any] | None = None
    unknown: bool = False
    then: Sequence[Any] | bytes = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The task will not run again. It moves to the dead letters, where people can look at it and replay it.

    `error` is what its last run raised, where it raised; None once the dead letter has to wait for the server.
    """

    reason: Reason
    failure: Failure
    error: BaseException | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Release:
    """The delivery is given back to the group: any consumer can take it at once."""


@dataclass(frozen=True, slots=True)
class Skip:
    """The retry of another group: it is acknowledged here without a run, and is not counted.

    If its stream has no such group, it becomes a dead letter in place of that.
    """


RetryOutcome = Retry  # its public name: `streamq.Retry` is what a handler raises
Outcome = Ack | Skip | Retry | Postpone | DeadLetter | Release


class RetryLaterThen(RetryLater):
    """A RetryLater whose postponement is followed by a command: `then`, which is sent in the same round trip.

    So it is carried out however the worker ends, if the postponement is.
    """

    then: Sequence[Any] | bytes = ()


def then_of(outcome: Outcome) -> Sequence[Any] | bytes:
    """Return the command that follows an outcome, () if there is none."""
    return outcome.then if isinstance(outcome, Postpone) else ()


def failure_of(error: BaseException, group: BaseException | None = None) -> Failure:
    """Return an exception as text: qualified type, message, traceback. Never raises, whatever the exception is.

    `group` is the exception group that it was raised in: its traceback shows all of it.
    """
    shown = error if group is None else group
    return Failure(type_name(error), str_of(error, ERROR_KEPT), traceback_of(shown, TRACEBACK_TAIL))


def _postpone(request: RetryLater) -> Postpone:
    """Return the outcome that a handler asked for. Raises ConfigurationError if its values cannot be used."""
    try:
        delay = bounds.AFTER.check(request.after)
    except ConfigurationError as error:
        what, _, rest = str(error).partition(" cannot be used: ")
        raise ConfigurationError(f"RetryLater({what}) cannot be used: {rest}") from None
    headers = None
    if request.headers is not None:
        headers = dict(request.headers)
        if (size := len(dumps(headers))) > MAX_PAYLOAD:
            raise ConfigurationError(f"RetryLater(headers) of {size} bytes cannot be used: give at most {MAX_PAYLOAD}")
    then = request.then if isinstance(request, RetryLaterThen) else ()
    return Postpone(max(0.0, float(delay)), str_of(request), headers=headers, then=then)


def decide(
    policy: RetryPolicy, *, attempt: int, retries: int | None, error: BaseException, random: Uniform,
    run: object = "a run",
) -> Outcome:  # fmt: skip
    """Return the outcome of a delivery whose run raised this error.

    `attempt` counts from 1. `retries` are those of the message; None: those of the policy. Of an exception group one
    exception decides (see `exception_groups`). The `repr` of `run` names it in the log.
    """
    raised, error = error, deciding(error, policy)
    if isinstance(error, RetryLater):
        try:
            return _postpone(error)
        except Exception as unusable:  # noqa: BLE001 - a mistake of the handler, treated as any other error
            why = type_name(unusable), str_of(unusable)
            log.warning("%r asked to run again, and has failed: %s: %s", run, *why, event="retry_refused", of=run)
            raised = error = unusable
    match error:
        case UndecodableError() if is_of_message(error):
            return DeadLetter(Reason.UNDECODABLE, failure_of(error, raised), raised)
        case _ if _rejects(error) or not policy.retryable(error):
            return DeadLetter(Reason.REJECTED, failure_of(error, raised), raised)
        case _ if attempt > (policy.max_retries(error) if retries is None else retries):
            return DeadLetter(Reason.RETRIES_EXHAUSTED, failure_of(error, raised), raised)
        case _:
            return Retry(policy.delay(attempt, error, random, run=run), failure_of(error, raised))


def never_called(error: BaseException, policy: RetryPolicy) -> bool:
    """Is this the error of arguments that do not fit the handler, so that it was not called?"""
    deciding_one = deciding(error, policy)
    return isinstance(deciding_one, ArgumentsError) and is_of_message(deciding_one)


def _rejects(error: BaseException) -> bool:
    return isinstance(error, Reject) or (isinstance(error, ArgumentsError) and is_of_message(error))
