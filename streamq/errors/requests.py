"""What a handler raises to choose the outcome of its run: `Retry`, `RetryLater`, `Reject` and errors like them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from streamq.diagnostics.safe_text import repr_of
from streamq.errors.base import StreamqError


class RetryLater(StreamqError):  # noqa: N818 - a request of the handler, not a failure
    """Raise this in a handler to run the task again after `after` (seconds or a timedelta). It spends no attempt.

    It is made for `Retry-After`. The run fails if `after` is no time within its bound (`docs/bounds.md`). `headers` are
    merged into those of the message. With `drain` the innermost rate limit around the handler starts no task of the
    same key for these seconds (see RateLimitMiddleware).
    """

    def __init__(
        self,
        reason: str = "",
        *,
        after: float | timedelta,
        headers: Mapping[str, Any] | None = None,
        drain: bool = False,
    ) -> None:
        self.reason = reason
        # A float, unless it is no time at all: then the run fails when it is decided.
        self.after: float = after.total_seconds() if isinstance(after, timedelta) else after
        self.headers = headers
        self.drain = drain
        super().__init__(reason or (f"again in {self.after:g} s" if _is_short(self.after) else "again later"))


def _is_short(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e15


class Retry(StreamqError):  # noqa: N818 - a request of the handler
    """Raise this in a handler to fail its run and choose when the next attempt is: after `after` (s or timedelta).

    It spends an attempt, unlike RetryLater: with none left the task is dead-lettered, `retries_exhausted`. It is
    retried whatever `retry_on` and `give_up_on` say, and `max_backoff` does not bound it. If `after` is no time within
    its bound (`docs/bounds.md`), the task's backoff is used in its place, and the log says so. `raise Retry(...) from
    error` keeps the cause in the traceback of the dead letter.
    """

    def __init__(self, reason: str = "", *, after: float | timedelta) -> None:
        self.reason = reason
        # A float, unless it is no time at all: that is found when the run is decided.
        self.after: float = after.total_seconds() if isinstance(after, timedelta) else after
        super().__init__(reason or "to be tried again")


class Reject(StreamqError):  # noqa: N818 - a request of the handler, not a failure
    """Raise this in a handler to dead-letter the task at once, without further attempts."""

    def __init__(self, reason: str = "rejected by its handler") -> None:
        self.reason = reason
        super().__init__(reason)


class EffectInProgressError(RetryLater):
    """Raised by `once` if another run has the effect. `after` is when (s) to look again.

    That is as long as the effect has been in progress: at least 0.5 s, at most the rest of the other run's lease. A
    handler that lets it pass is run again after that time, and spends no attempt.
    """

    def __init__(self, key: str, *, after: float) -> None:
        self.key = key
        super().__init__(f"the effect {key!r} is in progress elsewhere", after=after)


class EffectLostError(RetryLater):
    """Raised by `once` if this run could not renew its lease in time, so its result was not recorded.

    Another run may have taken the effect over. `key` is that of the effect, `token` the fencing token of this run,
    which is no longer valid. `after` is the length of a lease (s). A handler that lets it pass is run again after that
    time, spends no attempt, and gets what the other run recorded.
    """

    def __init__(self, key: str, token: int, *, after: float) -> None:
        self.key = key
        self.token = token
        super().__init__(f"the effect {key!r} was lost: its lease was over, and nothing was recorded", after=after)


class UnrecordableError(Reject):
    """Raised if the result of an effect cannot be recorded. The effect itself is recorded, so it is not repeated.

    It is raised by `effect.record`, and later by every run that reads the result. A handler that lets it pass has its
    task dead-lettered: another attempt cannot help.
    """

    def __init__(self, key: str, why: str) -> None:
        self.key = key
        self.why = why
        super().__init__(f"the result of the effect {key!r} cannot be recorded: {why}")


class CircuitOpenError(RetryLater):
    """Raised if a circuit breaker does not let a call through. `after` is the time (s) until the next try.

    A handler that lets it pass is run again after that time, and spends no attempt.
    """

    def __init__(self, circuit: str, *, after: float, last_failure: BaseException | None = None) -> None:
        self.circuit = circuit
        self.last_failure = last_failure
        cause = "" if last_failure is None else f"; it failed with {repr_of(last_failure)}"
        super().__init__(f"the circuit {circuit!r} is open for another {after:.3g} s{cause}", after=after)
