"""Whether a failed task runs again, and when. Pure: randomness is passed in.

A backoff is the delay after attempt n failed, with n from 1:

    Backoff    uniform in [0, min(cap, base * factor ** (n - 1))]
    Linear     min(cap, base + step * n)
    Fixed      seconds
    Delays     the n-th of a list, then always the last

The default is exponential backoff with full jitter, as derived in M. Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015. The others have exact delays, unless they are made with `jitter=True`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError, Retry
from streamq.wire import bounds

log = SafeLog("streamq")

DEFAULT_RETRIES = 3
LONGEST = 86_400.0  # seconds: no delay is longer, unless `max_backoff` says so
MOST_TOLD = 10_000  # attempts: a message may have any number, and a backoff may count up to it, or raise 2 to it


class Uniform(Protocol):
    """The part of `random.Random` that is used here."""

    def uniform(self, a: float, b: float, /) -> float: ...


@runtime_checkable
class BackoffStrategy(Protocol):
    """A backoff: the delay by the number of the attempt that failed, from 1."""

    def delay(self, attempt: int, random: Uniform, /) -> float:
        """Return the delay (s) after this attempt failed."""
        ...


BackoffRule = (
    BackoffStrategy
    | float
    | timedelta
    | Sequence[float | timedelta]
    | Callable[[int, BaseException], float | timedelta]
)
BackoffLike = BackoffRule | Mapping[type[BaseException], BackoffRule]
RetriesLike = int | Mapping[type[BaseException], int]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff. `base` and `cap` are seconds. `jitter`: the delay is a random part of that."""

    base: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: bool = True

    def __post_init__(self) -> None:
        _check_seconds(self, "base", "cap")
        # A float: a power of whole numbers has no end, and a message may say that it is the billionth attempt.
        object.__setattr__(self, "factor", float(bounds.BACKOFF_FACTOR.check(self.factor, "Backoff.factor")))

    @property
    def longest(self) -> float:
        """The longest delay (s) that this backoff returns."""
        return self.cap

    def ceiling(self, attempt: int) -> float:
        """Return the delay (s) without jitter after this attempt failed, counted from 1."""
        try:
            return min(self.cap, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            return self.cap if self.base else 0.0

    def delay(self, attempt: int, random: Uniform) -> float:
        """Return the delay (s) after this attempt failed, counted from 1."""
        return _with_jitter(self.ceiling(attempt), random, jitter=self.jitter)


@dataclass(frozen=True, slots=True)
class Linear:
    """`base` seconds and `step` more with each attempt, up to `cap`. `jitter`: the delay is a random part of that."""

    step: float = 1.0
    base: float = 0.0
    cap: float = 300.0
    jitter: bool = False

    def __post_init__(self) -> None:
        _check_seconds(self, "step", "base", "cap")

    @property
    def longest(self) -> float:
        """The longest delay (s) that this backoff returns."""
        return self.cap

    def ceiling(self, attempt: int) -> float:
        """Return the delay (s) without jitter after this attempt failed, counted from 1."""
        return min(self.cap, self.base + self.step * attempt)

    def delay(self, attempt: int, random: Uniform) -> float:
        """Return the delay (s) after this attempt failed, counted from 1."""
        return _with_jitter(self.ceiling(attempt), random, jitter=self.jitter)


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same delay (s) after each attempt. `jitter`: the delay is a random part of that."""

    seconds: float
    jitter: bool = False

    def __post_init__(self) -> None:
        _check_seconds(self, "seconds")

    @property
    def longest(self) -> float:
        """The longest delay (s) that this backoff returns."""
        return self.seconds

    def delay(self, attempt: int, random: Uniform) -> float:  # noqa: ARG002 - as every backoff
        """Return the delay (s) after this attempt failed, counted from 1."""
        return _with_jitter(self.seconds, random, jitter=self.jitter)


@dataclass(frozen=True, slots=True)
class Delays:
    """The n-th delay (s) after the n-th attempt, then always the last. `jitter`: the delay is a random part of that."""

    delays: Sequence[float]
    jitter: bool = False

    def __post_init__(self) -> None:
        good = isinstance(self.delays, Iterable) and not isinstance(self.delays, str | bytes)
        delays = tuple(self.delays) if good else ()
        if not delays:
            raise ConfigurationError(
                f"{repr_of(self)} cannot be used: give one delay or more, each in seconds, at least 0"
            )
        seconds = tuple(bounds.BACKOFF.check(delay, "Delays: a delay") for delay in delays)
        object.__setattr__(self, "delays", seconds)

    @property
    def longest(self) -> float:
        """The longest delay (s) that this backoff returns."""
        return max(self.delays)

    def delay(self, attempt: int, random: Uniform) -> float:
        """Return the delay (s) after this attempt failed, counted from 1."""
        return _with_jitter(self.delays[min(attempt, len(self.delays)) - 1], random, jitter=self.jitter)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are retried, how often, and when.

    `retries` counts runs after the first. `backoff` is a backoff object, seconds, a list of seconds, or a function of
    the attempt (from 1) and the exception that returns seconds. Both can be a mapping from exception classes: the first
    class that fits counts, and the default where none fits. There is one count of attempts for all classes.
    `give_up_on` wins over `retry_on`. No delay is longer than `max_backoff` seconds.

    Raises ConfigurationError for a value that cannot be used.
    """

    retries: RetriesLike = DEFAULT_RETRIES
    backoff: BackoffLike = field(default_factory=Backoff)
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()
    max_backoff: float = LONGEST
    _rules: tuple[tuple[type[BaseException], Any], ...] = field(init=False, repr=False, compare=False)
    _limits: tuple[tuple[type[BaseException], int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_backoff", bounds.MAX_BACKOFF.check(self.max_backoff))
        for name in ("retry_on", "give_up_on"):
            for one in getattr(self, name):
                if not (isinstance(one, type) and issubclass(one, BaseException)):
                    raise ConfigurationError(
                        f"{name} has {repr_of(one)}: give a class of exceptions, or a tuple of them"
                    )
        limits = _by_class("retries", self.retries)
        for _, retries in limits:
            bounds.RETRIES.check(retries)
        rules = tuple((kind, _checked_rule(rule)) for kind, rule in _by_class("backoff", self.backoff))
        for _, rule in rules:
            if getattr(rule, "longest", 0.0) > self.max_backoff and rule != Backoff():  # the default is cut short
                raise ConfigurationError(
                    f"backoff={repr_of(rule)} waits longer than max_backoff={self.max_backoff:g} s: "
                    "raise that, or wait less"
                )
        object.__setattr__(self, "_limits", (*limits, (BaseException, DEFAULT_RETRIES)))
        object.__setattr__(self, "_rules", (*rules, (BaseException, Backoff())))

    @property
    def named(self) -> tuple[type[BaseException], ...]:
        """The exception classes that this policy names."""
        by_class = (kind for pairs in (self._limits, self._rules) for kind, _ in pairs)
        return (*self.retry_on, *self.give_up_on, *by_class)

    def retryable(self, error: BaseException) -> bool:
        """Return whether this failure can be retried at all."""
        return isinstance(error, Retry) or (isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on))

    def max_retries(self, error: BaseException) -> int:
        """Return how many runs there may be after the first if a run failed with this error."""
        return next(retries for kind, retries in self._limits if isinstance(error, kind))

    def delay(self, attempt: int, error: BaseException, random: Uniform, *, run: object = "a run") -> float:
        """Return the delay (s) after this attempt failed with this error. The `repr` of `run` names it in the log.

        One of the user's is told of `MOST_TOLD` attempts at most. A backoff that raises, or returns what is no delay
        within its bound (`docs/bounds.md`), is logged and replaced by the default. `Retry` chooses its own.
        """
        if isinstance(error, Retry):
            try:
                return float(bounds.BACKOFF.check(error.after, "Retry(after)"))
            except Exception as broken:
                text = "%r: Retry(after=%r) cannot be used, the task's backoff is used in its place"
                log.exception(text, run, error.after, event="retry_refused", of=run, error=broken)
        rule = next(rule for kind, rule in self._rules if isinstance(error, kind))
        try:
            told = attempt if attempt <= MOST_TOLD or rule.__class__ in _OURS else MOST_TOLD
            returned = rule.delay(told, random) if isinstance(rule, BackoffStrategy) else rule(told, error)
            delay = float(bounds.BACKOFF.check(returned, "the delay of a backoff"))
        except BaseException as broken:
            text = "%r: backoff %r cannot be used, the default is used in its place"
            log.exception(text, run, rule, event="retry_refused", of=run, error=broken)
            delay = Backoff().delay(attempt, random)
        return min(delay, self.max_backoff)


_OURS = (Backoff, Linear, Fixed, Delays)  # these take any number of attempts


def _with_jitter(ceiling: float, random: Uniform, *, jitter: bool) -> float:
    """Return the delay itself, or with full jitter a random one from 0 to it."""
    return random.uniform(0.0, ceiling) if jitter else ceiling


def _check_seconds(backoff: Any, *names: str) -> None:
    """Check the times of a backoff; a timedelta becomes seconds."""
    for name in names:
        seconds = bounds.BACKOFF.check(getattr(backoff, name), f"{type(backoff).__name__}.{name}")
        object.__setattr__(backoff, name, seconds)


def _by_class(what: str, value: Any) -> tuple[tuple[type[BaseException], Any], ...]:
    """Return (exception class, value) pairs. Raises ConfigurationError for an entry that no exception reaches."""
    if not isinstance(value, Mapping):
        return ((BaseException, value),)
    if not value:
        raise ConfigurationError(f"{what}={repr_of(value)} cannot be used: name one exception class, or leave it out")
    earlier: list[type[BaseException]] = []
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigurationError(f"{what}: {repr_of(kind)} is no exception class")
        if hidden := next((other for other in earlier if issubclass(kind, other)), None):
            raise ConfigurationError(
                f"{what}: {kind.__name__} is never reached, {hidden.__name__} before it fits first: change their order"
            )
        earlier.append(kind)
    return tuple(value.items())


def _checked_rule(rule: Any) -> Any:
    """Return a backoff object or a function. Raises ConfigurationError for anything else."""
    match rule:
        case type() | bool() | str() | bytes() | Mapping():
            pass
        case BackoffStrategy():
            return rule
        case int() | float() | timedelta():
            return Fixed(rule)  # type: ignore[arg-type]
        case Sequence():
            return Delays(rule)
        case _ if callable(rule):
            return rule
    raise ConfigurationError(
        f"backoff={repr_of(rule)} cannot be used: "
        "give a Backoff, seconds, a list of them, or a function of attempt and error"
    )
