"""When a failed task runs again. Pure: randomness is passed in.

A schedule says how long to wait after attempt n failed, n from 1:

    Backoff    uniform in [0, min(cap, base * factor ** (n - 1))]
    Linear     min(cap, base + step * n)
    Fixed      seconds
    Delays     the n-th of a list, the last for ever after

Exponential backoff with full jitter is the default, as derived in M. Brooker, "Exponential Backoff
And Jitter", AWS Architecture Blog, 2015. The others say exact times, and spread them only if asked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from streamq.errors import ConfigurationError

log = logging.getLogger("streamq")

DEFAULT_RETRIES = 3
LONGEST = 86_400.0  # seconds: no delay is longer, unless the policy says so


class Uniform(Protocol):
    """What is needed of `random.Random`."""

    def uniform(self, a: float, b: float, /) -> float: ...


@runtime_checkable
class Schedule(Protocol):
    """When a failed task runs again, by the number of the attempt that failed, from 1."""

    def delay(self, attempt: int, random: Uniform, /) -> float:
        """Return the seconds to wait after this attempt failed."""
        ...


Way = Schedule | float | Sequence[float] | Callable[[int, BaseException], float]
BackoffLike = Way | Mapping[type[BaseException], Way]
RetriesLike = int | Mapping[type[BaseException], int]


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

    @property
    def longest(self) -> float:
        """The longest delay (s) of all."""
        return self.cap

    def ceiling(self, attempt: int) -> float:
        """Return the longest delay (s) after the failure of this attempt, counted from 1."""
        try:
            return min(self.cap, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            return self.cap

    def delay(self, attempt: int, random: Uniform) -> float:
        """Return the delay (s) after the failure of this attempt, counted from 1."""
        return _spread(self.ceiling(attempt), random, jitter=self.jitter)


@dataclass(frozen=True, slots=True)
class Linear:
    """`step` seconds more with each attempt, on top of `base`, up to `cap`; `jitter` spreads over [0, delay]."""

    step: float = 1.0
    base: float = 0.0
    cap: float = 300.0
    jitter: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.step < math.inf and 0 <= self.base < math.inf and 0 <= self.cap < math.inf):
            raise ConfigurationError(f"{self!r} cannot be used: step, base and cap are seconds, at least 0")

    @property
    def longest(self) -> float:
        """The longest delay (s) of all."""
        return self.cap

    def ceiling(self, attempt: int) -> float:
        """Return the longest delay (s) after the failure of this attempt, counted from 1."""
        return min(self.cap, self.base + self.step * attempt)

    def delay(self, attempt: int, random: Uniform) -> float:
        """Return the delay (s) after the failure of this attempt, counted from 1."""
        return _spread(self.ceiling(attempt), random, jitter=self.jitter)


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same delay after each attempt; `jitter` spreads over [0, seconds]."""

    seconds: float
    jitter: bool = False

    def __post_init__(self) -> None:
        if not _is_seconds(self.seconds):
            raise ConfigurationError(f"{self!r} cannot be used: give seconds, at least 0")

    @property
    def longest(self) -> float:
        """The longest delay (s) of all."""
        return self.seconds

    def delay(self, attempt: int, random: Uniform) -> float:  # noqa: ARG002 - as every schedule
        """Return the delay (s) after the failure of this attempt, counted from 1."""
        return _spread(self.seconds, random, jitter=self.jitter)


@dataclass(frozen=True, slots=True)
class Delays:
    """The n-th delay after the n-th attempt, and the last one for ever after; `jitter` spreads over [0, delay]."""

    delays: Sequence[float]
    jitter: bool = False

    def __post_init__(self) -> None:
        good = isinstance(self.delays, Iterable) and not isinstance(self.delays, str | bytes)
        delays = tuple(self.delays) if good else ()
        if not delays or not all(map(_is_seconds, delays)):
            raise ConfigurationError(f"{self!r} cannot be used: give one delay or more, each in seconds, at least 0")
        object.__setattr__(self, "delays", delays)

    @property
    def longest(self) -> float:
        """The longest delay (s) of all."""
        return max(self.delays)

    def delay(self, attempt: int, random: Uniform) -> float:
        """Return the delay (s) after the failure of this attempt, counted from 1."""
        return _spread(self.delays[min(attempt, len(self.delays)) - 1], random, jitter=self.jitter)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are retried, how often, and when.

    `retries` counts runs after the first. `backoff` is a schedule, a number of seconds, a list of
    them, or a function of the attempt (from 1) and the exception that returns seconds. Both may be a
    mapping from exception classes: the first that fits counts, and the default where none does; all
    share one count of attempts. `give_up_on` wins over `retry_on`. No delay is longer than
    `max_backoff` seconds, whoever asks for it.
    """

    retries: RetriesLike = DEFAULT_RETRIES
    backoff: BackoffLike = field(default_factory=Backoff)
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()
    max_backoff: float = LONGEST
    _ways: tuple[tuple[type[BaseException], Any], ...] = field(init=False, repr=False, compare=False)
    _budgets: tuple[tuple[type[BaseException], int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _is_seconds(self.max_backoff):
            raise ConfigurationError(f"max_backoff={self.max_backoff!r} cannot be used: give seconds, at least 0")
        budgets = _by_class("retries", self.retries)
        for _, retries in budgets:
            if type(retries) is not int or retries < 0:
                raise ConfigurationError(f"retries={self.retries!r} cannot be used: give an integer of at least 0")
        ways = tuple((kind, _usable(way)) for kind, way in _by_class("backoff", self.backoff))
        for _, way in ways:
            if getattr(way, "longest", 0.0) > self.max_backoff:
                raise ConfigurationError(
                    f"backoff={way!r} waits longer than max_backoff={self.max_backoff:g} s: raise that, or wait less"
                )
        object.__setattr__(self, "_budgets", (*budgets, (BaseException, DEFAULT_RETRIES)))
        object.__setattr__(self, "_ways", (*ways, (BaseException, Backoff())))

    def retryable(self, error: BaseException) -> bool:
        """Return whether this failure may be retried at all."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)

    def budget(self, error: BaseException) -> int:
        """Return how many runs there may be after the first, when this is how one ended."""
        return next(retries for kind, retries in self._budgets if isinstance(error, kind))

    def delay(self, attempt: int, error: BaseException, random: Uniform) -> float:
        """Return the seconds to wait after this attempt failed."""
        way = next(way for kind, way in self._ways if isinstance(error, kind))
        try:
            delay = float(way.delay(attempt, random) if isinstance(way, Schedule) else way(attempt, error))
            if math.isnan(delay) or delay == math.inf:
                raise ValueError(f"it returned {delay!r}")  # noqa: TRY301 - handled as what it raises itself
        except Exception:
            log.exception("backoff %r cannot be used; the default is", way)
            delay = Backoff().delay(attempt, random)
        return min(max(0.0, delay), self.max_backoff)


def _spread(ceiling: float, random: Uniform, *, jitter: bool) -> float:
    """Return the delay itself, or with full jitter any up to it."""
    return random.uniform(0.0, ceiling) if jitter else ceiling


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _by_class(what: str, value: Any) -> tuple[tuple[type[BaseException], Any], ...]:
    """Return what is meant for which exceptions. Raises ConfigurationError for an entry that nothing reaches."""
    if not isinstance(value, Mapping):
        return ((BaseException, value),)
    if not value:
        raise ConfigurationError(f"{what}={value!r} cannot be used: name one exception class, or leave it out")
    earlier: list[type[BaseException]] = []
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigurationError(f"{what}: {kind!r} is no exception class")
        if hidden := next((other for other in earlier if issubclass(kind, other)), None):
            raise ConfigurationError(
                f"{what}: {kind.__name__} is never reached, {hidden.__name__} before it fits first: change their order"
            )
        earlier.append(kind)
    return tuple(value.items())


def _usable(way: Any) -> Any:
    """Return a schedule or a function. Raises ConfigurationError for anything else."""
    match way:
        case type() | bool() | str() | bytes() | Mapping():
            pass
        case Schedule():
            return way
        case int() | float():
            return Fixed(way)
        case Sequence():
            return Delays(way)
        case _ if callable(way):
            return way
    raise ConfigurationError(
        f"backoff={way!r} cannot be used: give a schedule, seconds, a list of them, or a function of attempt and error"
    )
