"""When a schedule ticks: pure, and the same on every machine. Knows no Redis, no task and no loop.

The parser is cronsim's, by the author of healthchecks.io: 500 lines without dependencies, typed, run by a
service whose trade is cron, and checked there against Debian's cron over years of ticks. croniter, the other
one that is kept, reads more dialects (hashed fields, years) but has rules of its own around the changes of
clocks, and was orphaned for a while. cronsim is the extra `cron`, imported when the first expression is read.

What is added here: ticks are Unix times, strictly later than what was asked for. cronsim forgets in which of the
two hours between two and three o'clock of an autumn night it was asked, and may answer with what is
past; it is asked again then. So `next_tick` is a function of time alone that never goes back, which is what the
fleet's agreement on the next tick rests on, and what lets `latest_tick` find the last one by bisection.

One limit is cronsim's: where clocks change by half an hour (Lord Howe Island) an expression with a star may leave
out or shift ticks within an hour or two of the change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from streamq.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from cronsim import CronSim

Missed = Literal["last", "skip", "all"]
MISSED: Final = get_args(Missed)

ON_TIME: Final = 10.0  # seconds after which a tick that was not sent counts as missed
MOST_MISSED: Final = 1000  # missed ticks that are made up for by "all": the latest

_ALIASES: Final = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_WHEN_CHECKED: Final = datetime(2000, 1, 1, tzinfo=UTC)  # an expression must tick within 50 years of this


@dataclass(frozen=True, slots=True)
class Cron:
    """When a task runs again and again: a cron expression in a time zone.

    Five fields (minute, hour, day of the month, month, day of the week), or six with seconds in front, or
    `@hourly` and its like. `tz` is the name of a time zone. `missed` says what becomes of ticks that nobody
    could send in time: the "last" of them is sent, "all" are, or none ("skip"). Without `overlap` a tick is
    left out while the run of an earlier one is not done. `args` and `kwargs` are for schedules that `@task` declares.

    Raises ConfigurationError for what cannot be used. Where the extra `cron` is not installed the
    expression is not looked at: a producer need not have it.
    """

    expression: str
    tz: str = "UTC"
    missed: Missed = "last"
    overlap: bool = True
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.expression, str) or not self.expression.strip():
            raise ConfigurationError(f"a cron expression cannot be {self.expression!r}: give one like '*/5 * * * *'")
        if self.missed not in MISSED:
            raise ConfigurationError(f"missed={self.missed!r} cannot be used: give one of {', '.join(MISSED)}")
        if not isinstance(self.overlap, bool):
            raise ConfigurationError(f"overlap={self.overlap!r} cannot be used: give True or False")
        if not isinstance(self.args, tuple | list) or not isinstance(self.kwargs, Mapping):
            raise ConfigurationError(f"args={self.args!r}, kwargs={self.kwargs!r}: give a tuple and a dict")
        if not isinstance(self.tz, str):
            raise ConfigurationError(f"tz={self.tz!r} is no known time zone: give its name, like 'Europe/Berlin'")
        zone(self.tz)
        if installed() and next(ticks(self.expression, self.tz, _WHEN_CHECKED.timestamp()), None) is None:
            raise ConfigurationError(f"cron expression {self.expression!r} never ticks: there is no such day")

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """Yield the ticks after a moment (an aware datetime), in the schedule's time zone, without end."""
        if after.tzinfo is None:
            raise ConfigurationError(f"after={after!r} has no time zone: use datetime.now(UTC) and its like")
        for tick in ticks(self.expression, self.tz, after.timestamp()):
            yield datetime.fromtimestamp(tick, zone(self.tz))


def installed() -> bool:
    """Is the parser there?"""
    try:
        require()
    except MissingExtraError:
        return False
    return True


def require() -> type[CronSim]:
    """Return the parser. Raises MissingExtraError."""
    try:
        from cronsim import CronSim  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError("cron schedules", "cron") from None
    return CronSim


@lru_cache(maxsize=64)
def zone(name: str) -> tzinfo:
    """Return a time zone by its name. Raises ConfigurationError."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - not needed for UTC

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, TypeError, AttributeError, OSError) as error:
        raise ConfigurationError(
            f"tz={name!r} is no known time zone: give one like 'Europe/Berlin'; where the system has none, "
            "pip install tzdata"
        ) from error


def ticks(expression: str, tz: str, after: float) -> Iterator[float]:
    """Yield the ticks later than `after` in Unix seconds, each later than the one before.

    Ends where nothing comes for 50 years. Raises ConfigurationError for an expression or a time zone that
    cannot be used, MissingExtraError without the parser.
    """
    sim = _parsed(expression, datetime.fromtimestamp(after // 1, zone(tz)))
    last = after
    for moment in sim:
        tick = moment.timestamp()
        if tick > last:
            last = tick
            yield tick


def next_tick(expression: str, tz: str, after: float) -> float | None:
    """Return the first tick later than `after`, in Unix seconds; None if there is none. Raises what `ticks` raises."""
    return next(ticks(expression, tz, after), None)


def latest_tick(expression: str, tz: str, first: float, until: float) -> float:
    """Return the last tick that is not later than `until`, where `first` is one that is not either."""
    low, high, found = int(first), int(until), first
    while low <= high:
        middle = (low + high) // 2
        tick = next_tick(expression, tz, middle)
        if tick is not None and tick <= until:
            found, low = tick, int(tick)
        else:
            high = middle - 1
    return found


def due_ticks(expression: str, tz: str, missed: Missed, first: float, now: float) -> tuple[list[float], float | None]:
    """Return which ticks are to be sent now, and the next one after them.

    `first` is the tick that was expected; it and all that came until `now` (Unix seconds) have not been sent.
    Those that are late by no more than `ON_TIME` are sent in any case. Of those that were missed "all"
    has the latest `MOST_MISSED`, "last" the latest if none is on time, "skip" none.
    """
    line = now - ON_TIME
    if first >= line:
        late, soon = [], [first, *_between(expression, tz, first, now)]
    else:
        last = latest_tick(expression, tz, first, line - 0.001)
        late, soon = [last], list(_between(expression, tz, last, now))
        if missed == "all":
            late = list(_between(expression, tz, _far_enough(expression, tz, first, last), last))[-MOST_MISSED:]
    following = next_tick(expression, tz, (soon or late)[-1])
    if missed == "all":
        return [*late, *soon], following
    return (late if missed == "last" and not soon else soon), following


def _far_enough(expression: str, tz: str, first: float, last: float) -> float:
    """Return a moment between which and `last` there are `MOST_MISSED` ticks, or all from `first` on."""

    def enough(after: float) -> bool:
        return next(islice(_between(expression, tz, after, last), MOST_MISSED - 1, None), None) is not None

    low, high = int(first) - 1, int(last)
    while low < high and enough(low):
        middle = (low + high + 1) // 2
        if not enough(middle):
            high = middle - 1
        else:
            low = middle
    return low


def _between(expression: str, tz: str, after: float, until: float) -> Iterator[float]:
    """Yield the ticks later than `after` and not later than `until`."""
    return takewhile(lambda tick: tick <= until, ticks(expression, tz, after))


def _parsed(expression: str, after: datetime) -> CronSim:
    parser = require()
    from cronsim import CronSimError  # noqa: PLC0415 - an extra

    written = _ALIASES.get(expression.strip().lower(), expression)
    try:
        return parser(written, after)
    except (CronSimError, ValueError, AssertionError) as error:  # a number of 5,000 digits is a ValueError
        raise ConfigurationError(f"cron expression {expression!r} cannot be used: {error}") from error
