"""When a schedule ticks. Pure, and the same on every machine: knows no Redis, no task and no loop.

The parser is cronsim, by the author of healthchecks.io: 500 lines, typed, without dependencies. That service lives from
cron and has checked it against Debian's cron over years of ticks. croniter, the other maintained parser, reads more
dialects (hashed fields, years), has its own rules for changes of clocks, and had no maintainer for a while. cronsim is
the extra `cron`; it is imported when the first expression is read.

This module adds one guarantee: ticks are Unix times, and each is later than the time that it was computed from. When
clocks go back, the hour from two to three comes twice. cronsim does not know in which of the two it is, and may return
a time that is past. Such times are skipped here. So `next_tick` depends on the time alone and never goes back. The
fleet's agreement on the next tick needs that, and so does `_find_latest`, which searches by bisection.

One limit of cronsim stays: where clocks change by half an hour (Lord Howe Island), an expression with a star may omit
or shift ticks within an hour or two of the change.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError, MissingExtraError
from streamq.wire import bounds

if TYPE_CHECKING:
    from cronsim import CronSim

T = TypeVar("T")
Steps = Generator[None, None, T]  # what takes long: it yields now and then, and returns what it has found
Missed = Literal["last", "skip", "all"]
MISSED: Final = get_args(Missed)

ON_TIME: Final = 10.0  # seconds after which a tick that was not sent counts as missed
MOST_MISSED: Final = 1000  # missed ticks that "all" sends at most: the latest
_STEP: Final = 10  # ticks that one step finds: each takes 0.01 to 0.5 ms

_ALIASES: Final = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_WHEN_CHECKED: Final = datetime(2000, 1, 1, tzinfo=UTC)  # an expression must tick within 50 years of this


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule: a cron expression in a time zone.

    `expression` has five fields (minute, hour, day of the month, month, day of the week), or six with seconds in front.
    It can also be `@hourly`, `@daily` and so on. `tz` is the name of a time zone. `missed` says which of the ticks are
    sent that no worker could send in time: "last", "all" or none ("skip"). With `overlap=False` a tick is omitted while
    the task of an earlier tick is not done. `args` and `kwargs` are for schedules that `@task` declares.

    Raises ConfigurationError for a value that cannot be used. The expression is only checked where the extra `cron` is
    installed: a producer does not need it.
    """

    expression: str
    tz: str = "UTC"
    missed: Missed = "last"
    overlap: bool = True
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.expression, str) or not self.expression.strip():
            raise ConfigurationError(
                f"a cron expression cannot be {repr_of(self.expression)}: give one like '*/5 * * * *'"
            )
        _check_length(self.expression)
        if self.missed not in MISSED:
            raise ConfigurationError(f"missed={repr_of(self.missed)} cannot be used: give one of {', '.join(MISSED)}")
        if not isinstance(self.overlap, bool):
            raise ConfigurationError(f"overlap={repr_of(self.overlap)} cannot be used: give True or False")
        if not isinstance(self.args, tuple | list) or not isinstance(self.kwargs, Mapping):
            raise ConfigurationError(
                f"args={repr_of(self.args)}, kwargs={repr_of(self.kwargs)}: give a tuple and a dict"
            )
        if not isinstance(self.tz, str):
            raise ConfigurationError(
                f"tz={repr_of(self.tz)} is no known time zone: give its name, like 'Europe/Berlin'"
            )
        time_zone(self.tz)
        if parser_installed() and next(ticks(self.expression, self.tz, _WHEN_CHECKED.timestamp()), None) is None:
            raise ConfigurationError(f"cron expression {self.expression!r} never ticks: there is no such day")

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """Yield the ticks after an aware datetime, in the time zone of the schedule, without end.

        Raises ConfigurationError for a datetime without a time zone, MissingExtraError without the extra `cron`.
        """
        if after.tzinfo is None:
            raise ConfigurationError(f"after={repr_of(after)} has no time zone: use datetime.now(UTC) and its like")
        for tick in ticks(self.expression, self.tz, after.timestamp()):
            yield datetime.fromtimestamp(tick, time_zone(self.tz))


def parser_installed() -> bool:
    """Return whether the parser is installed."""
    try:
        require_parser()
    except MissingExtraError:
        return False
    return True


def require_parser() -> type[CronSim]:
    """Return the parser. Raises MissingExtraError without the extra `cron`."""
    try:
        from cronsim import CronSim  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError("cron schedules", "cron") from None
    return CronSim


@lru_cache(maxsize=64)
def time_zone(name: str) -> tzinfo:
    """Return a time zone by its name. Raises ConfigurationError for an unknown name."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - not needed for UTC

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, TypeError, AttributeError, OSError) as error:
        raise ConfigurationError(
            f"tz={repr_of(name)} is no known time zone: give one like 'Europe/Berlin'; where the system has none, "
            "pip install tzdata"
        ) from error


def ticks(expression: str, tz: str, after: float) -> Iterator[float]:
    """Yield the ticks after `after` (Unix seconds), each later than the one before.

    Ends if there is no tick for 50 years. Raises ConfigurationError for an expression or a time zone that cannot be
    used, MissingExtraError without the parser.
    """
    sim = _parse(expression, datetime.fromtimestamp(after // 1, time_zone(tz)))
    last = after
    for moment in sim:
        tick = moment.timestamp()
        if tick > last:
            last = tick
            yield tick


def next_tick(expression: str, tz: str, after: float) -> float | None:
    """Return the first tick after `after` (Unix seconds), None if there is none. Raises what `ticks` raises."""
    return next(ticks(expression, tz, after), None)


def find_due_ticks(
    expression: str, tz: str, missed: Missed, first: float, now: float
) -> Steps[tuple[list[float], float | None]]:
    """Find the ticks to send now, and the next tick after them, in steps of a few milliseconds.

    `first` is the expected tick. No tick from `first` to `now` (Unix seconds) has been sent. Ticks that are at most
    `ON_TIME` late are always sent. Of the missed ticks "all" sends the latest `MOST_MISSED`, "last" sends the latest
    one if no other tick is on time, and "skip" sends none. Without a missed tick it is one step.

    A thousand missed ticks take half a second, so an event loop lets others run between the steps.
    """
    line = now - ON_TIME
    if first >= line:
        late, soon = [], [first, *_ticks_between(expression, tz, first, now)]
    else:
        last = yield from _find_latest(expression, tz, first, line - 0.001)
        late, soon = [last], list(_ticks_between(expression, tz, last, now))
        if missed == "all":  # a time that was written by hand may be that of no tick: it is then sent itself
            late = (yield from _find_missed(expression, tz, first, last)) or late
    following = next_tick(expression, tz, (soon or late)[-1])
    if missed == "all":
        return [*late, *soon], following
    return (late if missed == "last" and not soon else soon), following


def _find_latest(expression: str, tz: str, first: float, until: float) -> Steps[float]:
    """Find the last tick that is not later than `until`, by bisection."""
    low, high, found = int(first), int(until), first
    while low <= high:
        middle = (low + high) // 2
        tick = next_tick(expression, tz, middle)
        if tick is not None and tick <= until:
            found, low = tick, int(tick)
        else:
            high = middle - 1
        yield
    return found


def _find_missed(expression: str, tz: str, first: float, last: float) -> Steps[list[float]]:
    """Find the latest `MOST_MISSED` of the ticks from `first` to `last`, in pieces of time from the end on.

    A piece is twice as long as the one after it, and halved while it has more ticks than are wanted. There is at most
    one tick a second, so a piece of `MOST_MISSED` seconds has not.
    """
    found: list[float] = []
    start, end, span = int(first) - 1, int(last), MOST_MISSED
    while len(found) < MOST_MISSED and end > start:
        begin = max(start, end - span)
        piece: list[float] = []
        for tick in islice(_ticks_between(expression, tz, begin, end), MOST_MISSED + 1):
            piece.append(tick)
            if len(piece) % _STEP == 0:
                yield
        yield
        if len(piece) > MOST_MISSED:
            span = (end - begin) // 2
            continue
        found, end, span = piece + found, begin, span * 2
    return found[-MOST_MISSED:]


def _ticks_between(expression: str, tz: str, after: float, until: float) -> Iterator[float]:
    """Yield the ticks later than `after` and not later than `until`."""
    return takewhile(lambda tick: tick <= until, ticks(expression, tz, after))


def _check_length(expression: str) -> None:
    """Raise ConfigurationError for a text that is too long: the parser would block the event loop."""
    if len(expression) not in bounds.CRON:
        raise ConfigurationError(
            f"a cron expression of {len(expression):,} characters cannot be used: give at most "
            f"{bounds.CRON.highest:,}; a range ('0-59') or steps ('*/5') are shorter than a list"
        )


def _parse(expression: str, after: datetime) -> CronSim:
    parser = require_parser()
    from cronsim import CronSimError  # noqa: PLC0415 - an extra

    _check_length(expression)
    fields = _ALIASES.get(expression.strip().lower(), expression)
    try:
        return parser(fields, after)
    except (CronSimError, ValueError, AssertionError) as error:  # a number of 5,000 digits is a ValueError
        raise ConfigurationError(f"cron expression {repr_of(expression)} cannot be used: {error}") from error
