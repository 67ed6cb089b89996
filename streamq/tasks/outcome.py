"""The outcomes of a delivery, and the decision between them after a failed run.

Pure: `decide` returns an outcome, `consumer/settling.py` carries it out. Each delivery gets exactly one outcome. The
state machine is in `docs/architecture.md`.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from streamq.errors import ArgumentsError, Reject, RetryLater, UndecodableError
from streamq.tasks.exception_groups import deciding
from streamq.tasks.retry_policy import RetryPolicy, Uniform
from streamq.wire.dead_letter_fields import Failure
from streamq.wire.message import dumps

_LONGEST_ERROR = 8_000  # characters of an error's message that are kept


class Reason(StrEnum):
    """Why a task was dead-lettered."""

    RETRIES_EXHAUSTED = "retries_exhausted"
    CRASH_LOOP = "crash_loop"
    EXPIRED = "expired"
    REJECTED = "rejected"
    UNDECODABLE = "undecodable"
    UNKNOWN_TASK = "unknown_task"


EXPIRED = Failure("Expired", "it had not started before it expired")


@dataclass(frozen=True, slots=True)
class Ack:
    """The run succeeded, or was `cancelled`. `result` is the JSON that waiters get; empty if no result is kept."""

    result: bytes = b""
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """The run failed. The task runs again after `delay` seconds, and has spent an attempt."""

    delay: float
    failure: Failure


@dataclass(frozen=True, slots=True)
class Postpone:
    """The task runs again after `delay` seconds, and has spent no attempt.

    `headers` are merged into those of the message. `unknown`: this worker does not know the task.
    """

    delay: float
    reason: str
    headers: Mapping[str, Any] | None = None
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The task will not run again. It moves to the dead letters, where people can look at it and replay it."""

    reason: Reason
    failure: Failure


@dataclass(frozen=True, slots=True)
class Release:
    """The delivery is given back to the group: any consumer can take it at once."""


@dataclass(frozen=True, slots=True)
class Skip:
    """The retry of another group: it is acknowledged here without a run, and is not counted."""


Outcome = Ack | Skip | Retry | Postpone | DeadLetter | Release


def failure_of(error: BaseException, group: BaseException | None = None) -> Failure:
    """Return an exception as text: qualified type, message, traceback.

    `group` is the exception group that it was raised in: its traceback shows all of it.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - a __str__ that raises must not cost the task
        text = f"<no message: its __str__ raised {type(broken).__name__}>"
    return Failure(
        name, _utf8_safe(text)[:_LONGEST_ERROR], _utf8_safe("".join(traceback.format_exception(group or error)))
    )


def _utf8_safe(text: str) -> str:
    """Return a text that UTF-8 can encode: names of files may hold lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _postpone(request: RetryLater) -> Postpone:
    """Return the outcome that a handler asked for. Raises TypeError or ValueError if its values cannot be used."""
    delay = float(request.after)
    if not delay < math.inf:
        raise ValueError(f"RetryLater(after={request.after!r}): give a number of seconds")
    if request.headers is not None:
        dumps(dict(request.headers))
    return Postpone(max(0.0, delay), _utf8_safe(str(request)), headers=request.headers)


def decide(policy: RetryPolicy, *, attempt: int, retries: int | None, error: BaseException, random: Uniform) -> Outcome:
    """Return the outcome of a delivery whose run raised this error.

    `attempt` counts from 1. `retries` are those of the message; None: those of the policy. Of an exception group one
    exception decides (see `exception_groups`).
    """
    raised, error = error, deciding(error, policy)
    if isinstance(error, RetryLater):
        try:
            return _postpone(error)
        except (TypeError, ValueError) as unusable:  # a mistake of the handler, treated as any other error
            raised = error = unusable
    match error:
        case Reject() | ArgumentsError():
            return DeadLetter(Reason.REJECTED, failure_of(error, raised))
        case UndecodableError():
            return DeadLetter(Reason.UNDECODABLE, failure_of(error, raised))
        case _ if not policy.retryable(error):
            return DeadLetter(Reason.REJECTED, failure_of(error, raised))
        case _ if attempt > (policy.max_retries(error) if retries is None else retries):
            return DeadLetter(Reason.RETRIES_EXHAUSTED, failure_of(error, raised))
        case _:
            return Retry(policy.delay(attempt, error, random), failure_of(error, raised))
