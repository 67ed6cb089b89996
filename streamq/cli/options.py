"""Options that commands share, and parsers for option values: durations, times, process counts, weights, JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from streamq.cli.usage_errors import CommandLineError

if TYPE_CHECKING:
    from streamq.broker import RedisBroker

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL: Final = "redis://localhost:6379"
_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|[smhd]?)")
_WHOLE: Final = re.compile(r"-?\d+")


def duration(text: str) -> float:
    """Parse a duration into seconds: 30, 500ms, 30s, 5m, 2h, 1d. For click's `type`."""
    matched = _DURATION.fullmatch(text.strip())
    if matched is None:
        raise click.BadParameter(f"{text!r} is not a duration: write seconds, or a number with ms, s, m, h or d")
    return float(matched[1]) * _UNITS[matched[2]]


def moment(text: str) -> datetime:
    """Parse a time: ISO 8601 (local time unless it names a zone) or Unix seconds."""
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        known = "2030-01-31T12:00, 2030-01-31T12:00Z or Unix seconds"
        raise click.BadParameter(f"{text!r} is not a time: write {known}") from None


def processes(text: str) -> int:
    """Parse a process count: a whole number, or `auto` for one per usable core. For click's `type`."""
    word = text.strip().lower()
    if word == "auto":
        from streamq.cli.cpu_count import usable_cores  # noqa: PLC0415 - read only when asked for

        return usable_cores()
    if not (word.isdecimal() and int(word) > 0):
        raise click.BadParameter(f"{text!r} is not a number of processes: write 1 or more, or auto")
    return int(word)


def weights(text: str) -> dict[str, int | None]:
    """Parse critical=6,standard=3,bulk into weights by tier. None stands for the tier's own weight."""
    found: dict[str, int | None] = {}
    for part in text.split(","):
        name, separator, weight = (piece.strip() for piece in part.partition("="))
        if not name or (separator and not (weight.isdecimal() and int(weight) > 0)):
            raise click.BadParameter(f"{part!r} is not a tier: write critical=6,standard=3,bulk=1")
        if name in found:
            raise click.BadParameter(f"tier {name!r} is named twice: write each tier once")
        found[name] = int(weight) if separator else None
    return found


def json_or_text(text: str) -> Any:
    """Return an argument as JSON if it parses, else as text.

    Whole numbers beyond 64 bits stay text, because they would lose digits as JSON.
    """
    import orjson  # noqa: PLC0415 - keeps --help light

    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return text if isinstance(value, float) and _WHOLE.fullmatch(text.strip()) else value


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options that select a server and its keys. None stands for an option that was not given."""

    url: str | None = None
    namespace: str | None = None
    group: str | None = None
    queue: str | None = None

    def broker(self, **more: Any) -> RedisBroker:
        """Return a broker for these options. Raises CommandLineError if one cannot be used."""
        from streamq.broker import RedisBroker  # noqa: PLC0415 - keeps --help light
        from streamq.errors import StreamqError  # noqa: PLC0415

        given = {"queue_name": self.queue, "namespace": self.namespace, "group": self.group}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        try:
            return RedisBroker(self.url or DEFAULT_URL, **options, **more)
        except StreamqError as error:
            raise CommandLineError(str(error)) from error


def server_options(function: F) -> F:
    """Add --url, --namespace, --group and --queue. Their environment variables are the same for all commands."""
    for name, metavar, text in reversed((
        ("url", "URL", f"Server URL: redis, rediss, valkey, unix or embedded:///path. [default: {DEFAULT_URL}]"),
        ("namespace", "PREFIX", "Prefix of all keys. [default: queue]"),
        ("group", "NAME", "Consumer group. [default: workers]"),
        ("queue", "STREAM", "Use this one stream instead of tiers, for example queue:critical."),
    )):  # fmt: skip
        variable = f"STREAMQ_{name.upper()}"
        function = click.option(f"--{name}", metavar=metavar, envvar=variable, show_envvar=True, help=text)(function)
    return function


json_option = click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print JSON, one object per line.")
