"""When a failed task runs again. Pure: randomness is passed in.

The default is exponential backoff with full jitter, as derived in M. Brooker, "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015: the delay before attempt n + 1 is uniform in
[0, min(cap, base * factor ** (n - 1))].
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from streamq.errors import ConfigurationError

log = logging.getLogger("streamq")

DEFAULT_RETRIES = 3


class Uniform(Protocol):
    """What is needed of `random.Random`."""

    def uniform(self, a: float, b: float, /) -> float: ...


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff. `base` and `cap` are seconds; `jitter` spreads over [0, delay]."""

    base: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.base < math.inf and 0 <= self.cap < math.inf and 1 <= self.factor < math.inf):
            raise ConfigurationError(f"{self!r} cannot be used: base and cap at least 0, factor at least 1")

    def ceiling(self, attempt: int) -> float:
        """Return the longest delay (s) after the failure of this attempt, counted from 1."""
        try:
            return min(self.cap, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            return self.cap

    def delay(self, attempt: int, random: Uniform) -> float:
        """Return the delay (s) after the failure of this attempt, counted from 1."""
        ceiling = self.ceiling(attempt)
        return random.uniform(0.0, ceiling) if self.jitter else ceiling


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are retried, how often, and when.

    `retries` counts runs after the first. `backoff` is a `Backoff` or a function of the
    attempt (from 1) and the exception that returns seconds. `give_up_on` wins over `retry_on`.
    """

    retries: int = DEFAULT_RETRIES
    backoff: Backoff | Callable[[int, BaseException], float] = field(default_factory=Backoff)
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if type(self.retries) is not int or self.retries < 0:
            raise ConfigurationError(f"retries={self.retries!r} cannot be used: give an integer of at least 0")

    def retryable(self, error: BaseException) -> bool:
        """Return whether this failure may be retried at all."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)

    def delay(self, attempt: int, error: BaseException, random: Uniform) -> float:
        """Return the seconds to wait after this attempt failed."""
        if isinstance(self.backoff, Backoff):
            return self.backoff.delay(attempt, random)
        try:
            delay = float(self.backoff(attempt, error))
            if not delay < math.inf:
                raise ValueError(f"it returned {delay!r}")  # noqa: TRY301 - handled as what it raises itself
        except Exception:
            log.exception("backoff %r cannot be used; the default is", self.backoff)
            return Backoff().delay(attempt, random)
        return max(0.0, delay)
