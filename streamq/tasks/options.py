"""The options of one message: their names, their types and their checks.

`Options` is what `task.options(...)` and the keyword arguments of an enqueue become. A module of values: it knows no
task, no message and no broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict, get_args

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.wire import bounds
from streamq.wire.names import check_name

Durable = Literal["replica", "aof"]
DURABLE = get_args(Durable)
DedupUntil = Literal["until_started", "until_done"]
DedupMode = Literal["throttle", "debounce", "keep_last"]
DEDUP_WORDS = get_args(DedupUntil)
DEDUP_MODES = get_args(DedupMode)


class OptionValues(TypedDict, total=False):
    """The options of one enqueue, as keyword arguments. `Options` documents each."""

    priority: int
    tier: str
    delay: float | timedelta
    at: datetime | float
    expires: float | timedelta | datetime
    retries: int
    timeout: float | timedelta
    result_ttl: float | timedelta
    dedup_key: str
    dedup_ttl: float | timedelta | DedupUntil
    dedup_window: float | timedelta | DedupUntil
    dedup_mode: DedupMode
    dedup_max_delay: float | timedelta
    task_id: str
    headers: Mapping[str, Any]
    durable: Durable


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one message is sent. None means: the setting of the task applies, else that of the broker.

    - `priority` picks the tier by its threshold, `tier` picks it by its name.
    - `delay` (s) or `at` (an aware datetime, or Unix seconds): the earliest start. Give one of them.
    - `expires` (s from now, or an aware datetime): the latest start.
    - `retries`, `timeout` (s) and `result_ttl` (s) replace those of the task. A time in seconds may be a timedelta.
    - `dedup_key`: of all enqueues with one key one wins. `dedup_mode` says which: "throttle" (the default: the
      first), "debounce" or "keep_last" (the newest). The key is held for `dedup_ttl` (s), or by `dedup_window` until
      the task has started or is done; `dedup_ttl` is then the upper limit. `dedup_max_delay` (s) limits for how long
      newer enqueues can put the task off.
    - `task_id`: an enqueue that is repeated with the same id is accepted once.
    - `durable`: the enqueue waits until the task would survive the loss of its server. "replica": a replica has it.
      "aof": it is in the append-only file on disk.
    - `headers`: a mapping of JSON values for middleware and handlers.

    Raises ConfigurationError for a value that cannot be used.
    """

    priority: int | None = None
    tier: str | None = None
    delay: float | timedelta | None = None
    at: datetime | float | None = None
    expires: float | timedelta | datetime | None = None
    retries: int | None = None
    timeout: float | None = None
    result_ttl: float | None = None
    dedup_key: str | None = None
    dedup_ttl: float | DedupUntil | None = None
    dedup_window: float | DedupUntil | None = None
    dedup_mode: DedupMode | None = None
    dedup_max_delay: float | None = None
    task_id: str | None = None
    headers: Mapping[str, Any] | None = None
    durable: Durable | None = None

    def __post_init__(self) -> None:
        for name, kinds, wanted in _KINDS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise ConfigurationError(f"{name}={repr_of(value)} cannot be used: give {wanted}")
        self._check_together()
        self._check_numbers()
        if self.durable is not None and not (isinstance(self.durable, str) and self.durable in DURABLE):
            raise ConfigurationError(
                f"durable={repr_of(self.durable)} cannot be used: give one of {', '.join(DURABLE)}"
            )
        if self.task_id is not None:
            check_name("task_id", self.task_id)
        if self.dedup_key is not None:
            check_name("key", self.dedup_key, what="dedup_key")

    def _check_together(self) -> None:
        if self.delay is not None and self.at is not None:
            raise ConfigurationError(f"delay={repr_of(self.delay)} and at={repr_of(self.at)}: give one of them")
        if self.dedup_key is None:
            for name in _NEEDS_DEDUP_KEY:
                if (value := getattr(self, name)) is not None:
                    raise ConfigurationError(f"{name}={repr_of(value)} without dedup_key: give both, or the key alone")
        else:
            self._check_dedup()

    def _check_dedup(self) -> None:
        ttl, window, mode, bound = self.dedup_ttl, self.dedup_window, self.dedup_mode, self.dedup_max_delay
        for name, word, words in (("dedup_mode", mode, DEDUP_MODES), ("dedup_window", window, DEDUP_WORDS),
                                  ("dedup_ttl", ttl, DEDUP_WORDS)):  # fmt: skip
            if isinstance(word, str) and word not in words:
                more = "" if name == "dedup_mode" else ", or seconds"
                raise ConfigurationError(f"{name}={repr_of(word)} cannot be used: give one of {', '.join(words)}{more}")
        if ttl is not None and window is not None and (isinstance(ttl, str) or not isinstance(window, str)):
            raise ConfigurationError(
                f"dedup_ttl={repr_of(ttl)} and dedup_window={repr_of(window)}: "
                "give one, or a word as window and seconds as ttl"
            )
        if mode == "debounce":
            if not self.delay:
                raise ConfigurationError(
                    f"dedup_mode='debounce' with delay={repr_of(self.delay)}: give the delay to restart"
                )
            if ttl is not None or window is not None:
                named = "dedup_window" if ttl is None else "dedup_ttl"
                raise ConfigurationError(f"dedup_mode='debounce' with {named}: leave that out, its window is its delay")
        if mode == "keep_last" and isinstance(window, int | float | timedelta):
            remedy = "give until_started or until_done"
            raise ConfigurationError(f"dedup_mode='keep_last' with dedup_window={repr_of(window)}: {remedy}")
        if bound is not None and mode not in ("debounce", "keep_last"):
            raise ConfigurationError(
                f"dedup_max_delay={repr_of(bound)}: only dedup_mode 'debounce' and 'keep_last' put off"
            )

    def _check_numbers(self) -> None:
        for name in ("at", "expires"):
            moment = getattr(self, name)
            if isinstance(moment, datetime):
                if moment.utcoffset() is None:
                    raise ConfigurationError(
                        f"{name}={repr_of(moment)} has no time zone: use datetime.now(UTC) and its like"
                    )
                bounds.AT.check(min(moment.timestamp(), bounds.LAST_MOMENT), f"{name} of {moment}: Unix seconds")
        for name, bound in _BOUNDS:
            value = getattr(self, name)
            if isinstance(value, int | float | timedelta):
                seconds = bound.check(value, name)
                if isinstance(value, timedelta) and name not in _TIMEDELTAS:
                    object.__setattr__(self, name, seconds)
        if isinstance(self.at, int | float):
            bounds.AT.check(self.at)


_BOUNDS = (
    ("priority", bounds.PRIORITY), ("retries", bounds.RETRIES), ("delay", bounds.DELAY), ("timeout", bounds.TIMEOUT),
    ("result_ttl", bounds.RESULT_TTL), ("expires", bounds.EXPIRES), ("dedup_ttl", bounds.DEDUP_TTL),
    ("dedup_window", bounds.DEDUP_WINDOW), ("dedup_max_delay", bounds.DEDUP_MAX_DELAY),
)  # fmt: skip
_TIMEDELTAS = ("delay", "expires")  # kept as they are given
_NEEDS_DEDUP_KEY = ("dedup_ttl", "dedup_window", "dedup_mode", "dedup_max_delay")
# Checked in the sender, where the mistake is. The worker could only dead-letter a message that it cannot read.
_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("priority", int, "an integer"),
    ("tier", str, "the name of a tier"),
    ("delay", int | float | timedelta, "seconds or a timedelta"),
    ("at", int | float | datetime, "Unix seconds or an aware datetime"),
    ("expires", int | float | timedelta | datetime, "seconds, a timedelta or an aware datetime"),
    ("retries", int, "an integer"),
    ("timeout", int | float | timedelta, "seconds or a timedelta"),
    ("result_ttl", int | float | timedelta, "seconds or a timedelta"),
    ("dedup_key", str, "a str"),
    ("dedup_ttl", int | float | timedelta | str, "seconds, a timedelta, 'until_started' or 'until_done'"),
    ("dedup_window", int | float | timedelta | str, "seconds, a timedelta, 'until_started' or 'until_done'"),
    ("dedup_mode", str, "one of throttle, debounce, keep_last"),
    ("dedup_max_delay", int | float | timedelta, "seconds or a timedelta"),
    ("task_id", str, "a str"),
    ("headers", Mapping, "a dict of what JSON can carry"),
)
OPTION_NAMES = frozenset(option.name for option in fields(Options))
NO_OPTIONS = Options()


def merge(options: Options, values: Mapping[str, Any]) -> Options:
    """Return a copy of `options` with these values replaced. Raises ConfigurationError for an unknown name."""
    unknown = set(values) - OPTION_NAMES
    if unknown:
        raise ConfigurationError(
            f"no such option: {', '.join(sorted(unknown))}; there are {', '.join(sorted(OPTION_NAMES))}"
        )
    return replace(options, **values)
