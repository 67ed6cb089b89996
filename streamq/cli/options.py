"""Options that commands share, and the kinds of values that people type: times, processes, weights, JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from streamq.cli.usage_errors import Problem

if TYPE_CHECKING:
    from streamq.broker import RedisBroker

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL: Final = "redis://localhost:6379"
_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|[smhd]?)")
_WHOLE: Final = re.compile(r"-?\d+")


def duration(text: str) -> float:
    """Return seconds of a number with or without a unit: 30, 500ms, 30s, 5m, 2h, 1d. For click's `type`."""
    matched = _DURATION.fullmatch(text.strip())
    if matched is None:
        raise click.BadParameter(f"{text!r} is no duration: write seconds, or a number with ms, s, m, h or d")
    return float(matched[1]) * _UNITS[matched[2]]


def moment(text: str) -> datetime:
    """Return the time that is meant by ISO 8601 (local time unless it names a zone) or Unix seconds."""
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        known = "2030-01-31T12:00, 2030-01-31T12:00Z or Unix seconds"
        raise click.BadParameter(f"{text!r} is no time: write {known}") from None


def processes(text: str) -> int:
    """Return how many processes are meant: a whole number, or `auto` for one per usable core. For click's `type`."""
    word = text.strip().lower()
    if word == "auto":
        from streamq.cli.cpu_count import usable_cores  # noqa: PLC0415 - read only when asked for

        return usable_cores()
    if not (word.isdecimal() and int(word) > 0):
        raise click.BadParameter(f"{text!r} is no number of processes: write 1 or more, or auto")
    return int(word)


def weights(text: str) -> dict[str, int | None]:
    """Return the weights in critical=6,standard=3,bulk by tier; None for a tier that keeps its own."""
    found: dict[str, int | None] = {}
    for part in text.split(","):
        name, separator, weight = (piece.strip() for piece in part.partition("="))
        if not name or (separator and not (weight.isdecimal() and int(weight) > 0)):
            raise click.BadParameter(f"{part!r} is no tier: write critical=6,standard=3,bulk=1")
        if name in found:
            raise click.BadParameter(f"tier {name!r} is named twice: write each tier once")
        found[name] = int(weight) if separator else None
    return found


def json_or_text(text: str) -> Any:
    """Return what a word of the command line means: JSON where it is JSON, else the word itself.

    Whole numbers beyond 64 bits stay text: as JSON they would lose digits.
    """
    import orjson  # noqa: PLC0415 - keeps --help light

    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return text if isinstance(value, float) and _WHOLE.fullmatch(text.strip()) else value


@dataclass(frozen=True, slots=True)
class Where:
    """Which server and which keys. None means that nobody said so."""

    url: str | None = None
    namespace: str | None = None
    group: str | None = None
    queue: str | None = None

    def broker(self, **more: Any) -> RedisBroker:
        """Return the broker of these. Raises Problem for what cannot be used."""
        from streamq.broker import RedisBroker  # noqa: PLC0415 - keeps --help light
        from streamq.errors import StreamqError  # noqa: PLC0415

        given = {"queue_name": self.queue, "namespace": self.namespace, "group": self.group}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        try:
            return RedisBroker(self.url or DEFAULT_URL, **options, **more)
        except StreamqError as error:
            raise Problem(str(error)) from error


def where_options(function: F) -> F:
    """Add --url, --namespace, --group and --queue, under the same variables for every command."""
    for name, metavar, text in reversed((
        ("url", "URL", f"The server: redis, rediss, valkey, unix, embedded:///path. [default: {DEFAULT_URL}]"),
        ("namespace", "PREFIX", "The prefix of every key. [default: queue]"),
        ("group", "NAME", "The consumer group. [default: workers]"),
        ("queue", "STREAM", "One stream alone, as queue:critical, instead of tiers."),
    )):  # fmt: skip
        variable = f"STREAMQ_{name.upper()}"
        function = click.option(f"--{name}", metavar=metavar, envvar=variable, show_envvar=True, help=text)(function)
    return function


json_option = click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print JSON, one object per line.")
