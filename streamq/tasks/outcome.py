"""What becomes of a delivery. Pure: `decide` returns it, the consumer carries it out.

A delivery ends in exactly one of these; the state machine is in `docs/architecture.md`.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from streamq.errors import ArgumentsError, Reject, RetryLater, UndecodableError
from streamq.tasks.retry_policy import RetryPolicy, Uniform
from streamq.wire.delivery import Failure
from streamq.wire.message import dumps

_LONGEST_ERROR = 8_000  # characters of an error's message that are kept


class Reason(StrEnum):
    """Why a task is dead."""

    RETRIES_EXHAUSTED = "retries_exhausted"
    CRASH_LOOP = "crash_loop"
    EXPIRED = "expired"
    REJECTED = "rejected"
    UNDECODABLE = "undecodable"
    UNKNOWN_TASK = "unknown_task"


EXPIRED = Failure("Expired", "it had not started before it expired")


@dataclass(frozen=True, slots=True)
class Ack:
    """The run succeeded, or was `cancelled`. `result` is what waiters are told, as JSON; empty if none is kept."""

    result: bytes = b""
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """The run failed; the task runs again after `delay` seconds, one attempt poorer."""

    delay: float
    failure: Failure


@dataclass(frozen=True, slots=True)
class Postpone:
    """The task runs again after `delay` seconds and has spent no attempt.

    `headers` are merged into those of the message; `unknown` marks a task that no one here knows.
    """

    delay: float
    reason: str
    headers: Mapping[str, Any] | None = None
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The task will not run again; it is kept for people to look at."""

    reason: Reason
    failure: Failure


@dataclass(frozen=True, slots=True)
class Release:
    """The delivery is handed back, to be taken by anyone at once."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Another group's retry: acknowledged here without a run, and counted by no one."""


Outcome = Ack | Skip | Retry | Postpone | DeadLetter | Release


def failure_of(error: BaseException) -> Failure:
    """Return an exception as words: qualified type, message, traceback."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - a __str__ that raises must not cost the task
        text = f"<no message: its __str__ raised {type(broken).__name__}>"
    return Failure(name, _carried(text)[:_LONGEST_ERROR], _carried("".join(traceback.format_exception(error))))


def _carried(text: str) -> str:
    """Return a text that UTF-8 can carry: names of files come with lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _postponed(request: RetryLater) -> Postpone:
    """Return what a handler asked for. Raises TypeError or ValueError if nobody can do it."""
    delay = float(request.after)
    if not delay < math.inf:
        raise ValueError(f"RetryLater(after={request.after!r}): give a number of seconds")
    if request.headers is not None:
        dumps(dict(request.headers))
    return Postpone(max(0.0, delay), _carried(str(request)), headers=request.headers)


def decide(policy: RetryPolicy, *, attempt: int, retries: int | None, error: BaseException, random: Uniform) -> Outcome:
    """Return what becomes of a delivery whose run raised this error.

    `attempt` counts from 1; `retries` overrides the policy's own if it is not None.
    """
    if isinstance(error, RetryLater):
        try:
            return _postponed(error)
        except (TypeError, ValueError) as unusable:  # a mistake of the handler, as any other
            error = unusable
    match error:
        case Reject() | ArgumentsError():
            return DeadLetter(Reason.REJECTED, failure_of(error))
        case UndecodableError():
            return DeadLetter(Reason.UNDECODABLE, failure_of(error))
        case _ if not policy.retryable(error):
            return DeadLetter(Reason.REJECTED, failure_of(error))
        case _ if attempt > (policy.budget(error) if retries is None else retries):
            return DeadLetter(Reason.RETRIES_EXHAUSTED, failure_of(error))
        case _:
            return Retry(policy.delay(attempt, error, random), failure_of(error))
