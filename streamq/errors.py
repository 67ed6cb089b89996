"""Every error that streamq raises, in one tree under `StreamqError`.

Each class says when it is raised, carries its facts as attributes, and builds its own
message. Errors of the server itself stay `redis.exceptions` inside `streamq.client`; the
broker translates them at its edge into the classes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class StreamqError(Exception):
    """The base of every error of streamq."""


class ConfigurationError(StreamqError, ValueError):
    """An option has a value that streamq cannot use; the message names it and the remedy."""


def check_number(what: str, value: float, least: float) -> float:
    """Return an option that is a finite number of at least `least`; raises ConfigurationError if it is not."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < float("inf"):
        raise ConfigurationError(f"{what}={value!r} cannot be used: give a number of at least {least:g}")
    return value


def check_integer(what: str, value: int, least: int) -> int:
    """Return an option that is an integer of at least `least`; raises ConfigurationError if it is not."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{what}={value!r} cannot be used: give an integer of at least {least}")
    return value


class MissingExtraError(StreamqError, ImportError):
    """A feature needs a package that an extra of streamq installs."""

    def __init__(self, feature: str, extra: str) -> None:
        self.feature = feature
        self.extra = extra
        super().__init__(f"{feature} needs an extra: pip install 'streamq[{extra}]'")


class NotOpenError(StreamqError, RuntimeError):
    """A broker is used outside its `async with` block."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} is not open: use it inside 'async with broker:'")


# --- the server ----------------------------------------------------------------------------


class BrokerError(StreamqError):
    """The server refused a command, for a reason that waiting may or may not cure.

    `code` is the first word of the server's answer (`OOM`, `READONLY`, `NOAUTH`, ...).
    """

    def __init__(self, message: str, *, code: str = "ERR") -> None:
        self.code = code
        super().__init__(message)


class BrokerUnavailableError(BrokerError, ConnectionError):
    """The server could not be reached and the command was certainly not carried out."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="UNAVAILABLE")


class OutcomeUnknownError(BrokerError, ConnectionError):
    """The connection was lost after a command was sent and before its reply arrived.

    The command may have been carried out. An `enqueue` that was given a `task_id` may be
    repeated with the same one: it is accepted once.
    """

    def __init__(self, message: str, *, task_id: str | None = None) -> None:
        self.task_id = task_id
        super().__init__(message, code="UNKNOWN")


class NotDurableError(OutcomeUnknownError):
    """The server has the task, but it was not confirmed that the task would outlive the server.

    `wanted` is what was asked for, "replica" or "aof". The task runs, unless the server is lost
    right now; an `enqueue` that was given a `task_id` may be repeated with the same one, which
    waits again.
    """

    def __init__(self, wanted: str, reason: str) -> None:
        self.wanted = wanted
        self.reason = reason
        super().__init__(f"the task was accepted, but durable={wanted!r} was not confirmed: {reason}")


# --- tasks and messages ----------------------------------------------------------------------


class MessageError(StreamqError, ValueError):
    """The base of what can be wrong with a message."""


class EncodingError(MessageError, TypeError):
    """An argument cannot be carried as JSON."""

    def __init__(self, task: str, argument: str, reason: str) -> None:
        self.task = task
        self.argument = argument
        self.reason = reason
        super().__init__(
            f"task {task!r}: argument {argument} cannot be sent as JSON ({reason}); pass "
            "str, int, float, bool, None, lists, dicts with str keys, datetime, UUID or dataclasses"
        )


class PayloadTooLargeError(MessageError):
    """A message is larger than the limit (1 MiB unless the broker says otherwise)."""

    def __init__(self, task: str, size: int, limit: int) -> None:
        self.task = task
        self.size = size
        self.limit = limit
        super().__init__(
            f"task {task!r}: the message takes {size} bytes and the limit is {limit}; store the "
            "data elsewhere and send a reference, or raise max_payload of the broker"
        )


class UndecodableError(MessageError):
    """An entry of a stream is not a message; it goes to the dead letter stream."""


class ArgumentsError(MessageError, TypeError):
    """Arguments do not fit the signature or the annotations of a task."""

    def __init__(self, task: str, reason: str) -> None:
        self.task = task
        self.reason = reason
        super().__init__(f"task {task!r}: {reason}")


class TaskNameError(StreamqError, ValueError):
    """Two tasks of one worker have the same name, or a name is not usable."""


class TaskTimeoutError(StreamqError, TimeoutError):
    """A handler ran longer than the `timeout` of its task."""

    def __init__(self, task: str, timeout: float) -> None:
        self.task = task
        self.timeout = timeout
        super().__init__(f"task {task!r} ran longer than its timeout of {timeout:g} s")


class BatchResultError(StreamqError, TypeError):
    """The handler of a batch task returned something that cannot be told apart by its items."""

    def __init__(self, task: str, size: int, returned: Any) -> None:
        self.task = task
        self.size = size
        what = f"{len(returned)} results" if isinstance(returned, list | tuple) else f"a {type(returned).__name__}"
        super().__init__(
            f"task {task!r} returned {what} for a batch of {size}: return None, or a list with one for each item"
        )


class NotHeldError(StreamqError, LookupError):
    """A delivery is settled by somebody who does not hold it (any more)."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(
            f"task {task_id!r} is not held here: it was settled already, its lease was lost, "
            "or this broker never consumed it"
        )


class DeadLetterNotFoundError(StreamqError, LookupError):
    """No dead letter of that task id is in the dead letter stream."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(f"no dead letter has the task id {task_id!r}; list them with 'streamq dlq ls'")


# --- results ---------------------------------------------------------------------------------

_NAMED = 5  # ids in a message; all are in `missing`


class ResultTimeoutError(StreamqError, TimeoutError):
    """A result did not arrive within the time that its waiter gave it.

    `missing` are the ids of all tasks that did not end in time, `task_id` is the first.
    """

    def __init__(self, task_id: str, timeout: float, *, missing: Sequence[str] = (), of: int = 1) -> None:
        self.task_id = task_id
        self.timeout = timeout
        self.missing = tuple(missing) or (task_id,)
        if of == 1:
            super().__init__(f"no result of task {task_id!r} within {timeout:g} s")
            return
        more = len(self.missing) - _NAMED
        names = ", ".join(map(repr, self.missing[:_NAMED])) + (f" and {more} more" if more > 0 else "")
        super().__init__(f"{len(self.missing)} of {of} tasks gave no result within {timeout:g} s: {names}")


class ResultNotKeptError(StreamqError):
    """A result is awaited of a task that keeps none."""

    def __init__(self, task: str) -> None:
        self.task = task
        super().__init__(
            f"task {task!r} keeps no result: declare it with @task(result_ttl=seconds) "
            "or enqueue it with options(result_ttl=seconds)"
        )


class TaskFailedError(StreamqError):
    """The awaited task ended in the dead letter queue, or was cancelled.

    `error_type`, `error` and `traceback` are those of its last run; `reason` is the
    reason of the dead letter, or `cancelled`. The traceback is a note too, so whoever prints
    this error sees where the task failed.
    """

    def __init__(self, task_id: str, *, reason: str, error_type: str, error: str, traceback: str) -> None:
        self.task_id = task_id
        self.reason = reason
        self.error_type = error_type
        self.error = error
        self.traceback = traceback
        super().__init__(f"task {task_id!r} failed ({reason}): {error_type}: {error}")
        if traceback:
            self.add_note("In the worker:\n" + traceback.rstrip("\n"))


# --- what a handler raises to say what becomes of its run --------------------------------------


class RetryLater(StreamqError):  # noqa: N818 - a request of the handler, not a failure
    """Run this task again `after` seconds, without spending an attempt (for Retry-After).

    `headers` are merged into those of the message, for whoever looks at it next. With `drain` the rate limit
    next to the handler starts nothing of the same key for these seconds (see RateLimitMiddleware).
    """

    def __init__(
        self, reason: str = "", *, after: float, headers: Mapping[str, Any] | None = None, drain: bool = False
    ) -> None:
        self.reason = reason
        self.after = after
        self.headers = headers
        self.drain = drain
        super().__init__(reason or f"again in {after:g} s")


class Reject(StreamqError):  # noqa: N818 - a request of the handler, not a failure
    """Send this task to the dead letter queue at once: repeating it cannot help."""

    def __init__(self, reason: str = "rejected by its handler") -> None:
        self.reason = reason
        super().__init__(reason)


class EffectInProgressError(RetryLater):
    """Another run is at this effect, and `after` is how long (s) its lease lasts yet.

    Raised by a handler it puts the task off for that time, without spending an attempt.
    """

    def __init__(self, key: str, *, after: float) -> None:
        self.key = key
        super().__init__(f"the effect {key!r} is in progress elsewhere", after=after)


class EffectLostError(RetryLater):
    """An effect was taken over by another run, because this one could not renew its lease; nothing was recorded.

    `key` is the effect's, `token` the fencing token that is not the last one any more. `after` is the
    length of a lease (s). Raised by a handler it does just that: the task runs again after that
    time, has spent no attempt, and gets what the other recorded.
    """

    def __init__(self, key: str, token: int, *, after: float) -> None:
        self.key = key
        self.token = token
        super().__init__(f"the effect {key!r} was lost: its lease was over, and nothing was recorded", after=after)


class UnrecordableError(Reject):
    """The result of an effect cannot be recorded. The effect is recorded all the same, so it is not repeated.

    Raised where the result was given, and wherever it is asked for later. Raised by a handler it sends the
    task to the dead letters: repeating it cannot help.
    """

    def __init__(self, key: str, why: str) -> None:
        self.key = key
        self.why = why
        super().__init__(f"the result of the effect {key!r} cannot be recorded: {why}")


class CircuitOpenError(RetryLater):
    """A circuit breaker does not let a call through.

    `after` is how long (s) to wait before the next try. Raised by a handler it does just that: the
    task runs again after that time and has spent no attempt.
    """

    def __init__(self, circuit: str, *, after: float, last_failure: BaseException | None = None) -> None:
        self.circuit = circuit
        self.last_failure = last_failure
        cause = "" if last_failure is None else f"; it failed with {last_failure!r}"
        super().__init__(f"the circuit {circuit!r} is open for another {after:.3g} s{cause}", after=after)
