"""When a circuit opens and how it is tried again: the checked options of a circuit breaker. Pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from streamq.errors import ConfigurationError
from streamq.wire import bounds


@dataclass(frozen=True, slots=True)
class CircuitSettings:
    """The rules of one circuit. All times have the unit of the clock that the circuit goes by.

    `interval` is the time between two released calls, 1/release_rate. With a `failure_rate` of 0 only failures in a
    row count.
    """

    failure_threshold: int = 5
    reset_timeout: float = 60.0
    half_open_max: int = 1
    interval: float = 0.1
    failure_rate: float = 0.0
    window: float = 60.0
    min_calls: int = 20

    @classmethod
    def checked(
        cls, *, failure_threshold: int | None, reset_timeout: float, failure_rate: float | None, window: float,
        min_calls: int, half_open_max: int, release_rate: float,
    ) -> CircuitSettings:  # fmt: skip
        """Return the settings for the options of a circuit breaker.

        Raises ConfigurationError if an option is out of range, or if the circuit would never open.
        """
        if failure_threshold is None and failure_rate is None:
            raise ConfigurationError("failure_threshold=None and failure_rate=None: such a circuit never opens")
        if failure_rate is not None:
            bounds.FAILURE_RATE.check(failure_rate)
        if failure_threshold is not None:
            bounds.FAILURE_THRESHOLD.check(failure_threshold)
        return cls(
            failure_threshold=sys.maxsize if failure_threshold is None else failure_threshold,
            reset_timeout=float(bounds.RESET_TIMEOUT.check(reset_timeout)),
            half_open_max=bounds.HALF_OPEN_MAX.check(half_open_max),
            interval=1 / bounds.RELEASE_RATE.check(release_rate), failure_rate=failure_rate or 0.0,
            window=float(bounds.CIRCUIT_WINDOW.check(window)),
            min_calls=bounds.MIN_CALLS.check(min_calls),
        )  # fmt: skip
