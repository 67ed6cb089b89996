"""When a circuit opens and how it is tried again: the checked options of a circuit breaker. Pure."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from streamq.errors import ConfigurationError, check_integer, check_number


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
        if failure_rate is not None and not 0 < check_number("failure_rate", failure_rate, 0.0) <= 1:
            raise ConfigurationError(f"failure_rate={failure_rate!r} cannot be used: give a share above 0, at most 1")
        for option, value in (("reset_timeout", reset_timeout), ("release_rate", release_rate), ("window", window)):
            if not 0 < value < math.inf:
                raise ConfigurationError(f"{option}={value!r} cannot be used: give a number above 0")
        if failure_threshold is not None:
            check_integer("failure_threshold", failure_threshold, 1)
        return cls(
            failure_threshold=sys.maxsize if failure_threshold is None else failure_threshold,
            reset_timeout=float(reset_timeout), half_open_max=check_integer("half_open_max", half_open_max, 1),
            interval=1 / release_rate, failure_rate=failure_rate or 0.0, window=float(window),
            min_calls=check_integer("min_calls", min_calls, 1),
        )  # fmt: skip
