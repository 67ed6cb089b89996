"""Parsers for the values of options: durations, times, process counts, sizes, weights, names, JSON."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, Final

import click

from streamq.cli.usage_errors import CommandLineError

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,9})?")
_OUT_OF_BOUNDS: Final = re.compile(
    r"(?i:[+-]?(?:nan|inf|infinity))|(?:-[0-9]+|-(?=\.)|[0-9]{21,})(?:\.[0-9]+)?\s*(?:ms|[smhd]?)"
)  # what would be a duration
_DURATION: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?|\.[0-9]{1,20})\s*(ms|[smhd]?)")
_SIZE: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*((?i:[KMGT](?:i?B)?|B?))")
_LONGEST: Final = 1e10  # seconds, as in docs/bounds.md; its module is not loaded for --help
_MOST_PROCESSES: Final = 1_024
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]+)):([0-9]{1,5})")
_MOST_PORT: Final = 65_535
_COUNT: Final = re.compile(r"[0-9]{1,9}")
_WHOLE: Final = re.compile(r"-?[0-9]+")
_MOST_DIGITS: Final = 20  # of a number that is read; longer ones are out of every bound
_MOST_WEIGHT: Final = 10_000
_LAST_MOMENT: Final = 253_402_300_799  # Unix seconds


def duration(text: str) -> float:
    """Parse a duration into seconds: 30, 500ms, 30s, 5m, 2h, 1d. For click's `type`."""
    matched = _DURATION.fullmatch(text.strip())
    if matched is None and _OUT_OF_BOUNDS.fullmatch(text.strip()):
        raise click.BadParameter(f"{text!r} is out of bounds: give 0 to {_LONGEST:,.0f} s")
    if matched is None:
        raise click.BadParameter(f"{text!r} is not a duration: write seconds, or a number with ms, s, m, h or d")
    seconds = float(matched[1]) * _UNITS[matched[2]]
    if seconds > _LONGEST:
        raise click.BadParameter(f"{text!r} is too long: give 0 to {_LONGEST:,.0f} s")
    return seconds


def moment(text: str) -> datetime:
    """Parse a time: ISO 8601 (local time unless it names a zone) or Unix seconds."""
    word = text.strip()
    if _NUMBER.fullmatch(word) or word.lstrip("+-").lower() in ("nan", "inf", "infinity"):
        seconds = float(word)
        if not 0 <= seconds <= _LAST_MOMENT:
            raise click.BadParameter(f"{text!r} is out of bounds: give 0 to {_LAST_MOMENT:,} Unix seconds")
        return datetime.fromtimestamp(seconds, UTC)
    try:
        return _after_1969(text, datetime.fromisoformat(text).astimezone())
    except (ValueError, OverflowError):
        known = "2030-01-31T12:00, 2030-01-31T12:00Z or Unix seconds"
        raise click.BadParameter(f"{text!r} is not a time: write {known}") from None


def _after_1969(text: str, at: datetime) -> datetime:
    if at.timestamp() < 0:
        raise click.BadParameter(f"{text!r} is out of bounds: give a time from 1970-01-01T00:00Z on")
    return at


class WholeNumber(click.IntRange):
    """A whole number within a bound, in the digits 0 to 9 alone. For click's `type`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number. Fails with the value, and with the bound if it is outside."""
        text = str(value)
        if not _WHOLE.fullmatch(text):
            self.fail(f"{text[:80]!r} is not a whole number: write it in the digits 0 to 9", param, ctx)
        if len(text) > _MOST_DIGITS or not self.min <= int(text) <= self.max:  # type: ignore[operator]
            self.fail(f"{text[:80]} is out of bounds: give {self.min:,} to {self.max:,}", param, ctx)
        return int(text)


def processes(text: str) -> int:
    """Parse a process count: a whole number, or `auto` for one per usable core. For click's `type`."""
    word = text.strip().lower()
    if word == "auto":
        from streamq.consumer.cpu_count import usable_cores  # noqa: PLC0415 - read only when asked for

        return usable_cores()
    if not (_COUNT.fullmatch(word) and 0 < int(word) <= _MOST_PROCESSES):
        raise click.BadParameter(f"{text!r} is not a number of processes: write 1 to {_MOST_PROCESSES:,}, or auto")
    return int(word)


def size(text: str) -> int:
    """Parse a size in memory into bytes: 300MiB, 300M (the same), 300MB (of 1,000 each), 1.5GiB, bytes.

    For click's `type`. The bound is that of `max_rss`.
    """
    from streamq.wire.bounds import MAX_RSS  # noqa: PLC0415 - keeps --help light

    matched = _SIZE.fullmatch(text.strip())
    if matched is None:
        raise click.BadParameter(f"{text[:80]!r} is not a size: write bytes, or a number with MiB, GiB, MB or GB")
    unit = matched[2].upper()
    base = 1000 if unit.endswith("B") and "I" not in unit else 1024
    found = int(float(matched[1]) * base ** " KMGT".index(unit[:1].strip("B") or " "))
    if found not in MAX_RSS:
        raise click.BadParameter(f"{text[:80]!r} is out of bounds: give {MAX_RSS.range}")
    return found


def address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT; an IPv6 address goes in brackets. For click's `type`."""
    matched = _ADDRESS.fullmatch(text.strip())
    if matched is None or int(matched[3]) > _MOST_PORT:
        raise click.BadParameter(
            f"{text[:80]!r} is no address: write HOST:PORT, such as 127.0.0.1:9464, 0.0.0.0:9464 or [::1]:9464"
        )
    return matched[1] or matched[2], int(matched[3])


def weights(text: str) -> dict[str, int | None]:
    """Parse critical=6,standard=3,bulk into weights by tier. None stands for the tier's own weight."""
    return _by_tier(text, "critical=6,standard=3,bulk=1")


def _by_tier(text: str, example: str) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for part in text.split(","):
        name, separator, weight = (piece.strip() for piece in part.partition("="))
        if name and _WHOLE.fullmatch(weight) and not 1 <= int(weight[:_MOST_DIGITS]) <= _MOST_WEIGHT:
            raise click.BadParameter(f"{part!r} is out of bounds: give a weight from 1 to {_MOST_WEIGHT:,}")
        if not name or (separator and not _COUNT.fullmatch(weight)):
            raise click.BadParameter(f"{part!r} is not a tier: write {example}")
        if name in found:
            raise click.BadParameter(f"tier {name!r} is named twice: write each tier once")
        found[name] = int(weight) if separator else None
    return found


def tier_names(text: str) -> list[str]:
    """Parse names of tiers: now,today,someday. Weights, as `streamq worker` takes them, are left out."""
    return list(_by_tier(text, "their names, as in now,today,someday"))


def names(text: str) -> list[str]:
    """Parse names that are separated by commas. For click's `type`."""
    return [name for name in (part.strip() for part in text.split(",")) if name]


def modules(text: str) -> list[str]:
    """Parse names of modules that are separated by commas. For click's `type`."""
    if not (found := names(text)):
        raise click.BadParameter(f"{text!r} names no module: write app.tasks, or leave it out")
    return found


def json_or_text(text: str) -> Any:
    """Return an argument as JSON if it parses, else as text.

    Numbers beyond what JSON can carry stay text: whole ones of more than 64 bits would lose digits, and `1e999` is
    infinity. Raises CommandLineError for a list or an object with such a whole number.
    """
    import orjson  # noqa: PLC0415 - keeps --help light

    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    check_whole_numbers(text, value)
    return text if isinstance(value, float) and _WHOLE.fullmatch(text.strip()) else value


def check_whole_numbers(text: str, value: Any) -> None:
    """Raise CommandLineError if the JSON list or object `value` has lost digits of a whole number in its text."""
    if isinstance(value, list | dict):
        json.loads(text, parse_int=_kept_whole)


def _kept_whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS or not -(2**63) <= int(digits) < 2**64:
        raise CommandLineError(f"the number {digits[:80]} has more than 64 bits: write it as a string, in quotes")
    return int(digits)


json_option = click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print JSON, one object per line.")
