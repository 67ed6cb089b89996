"""Options that commands share, and parsers for their values: durations, times, process counts, weights, names, JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from streamq.cli.usage_errors import CommandLineError

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.wire.signing import SigningKeys

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL: Final = "redis://localhost:6379"
SERVER_OPTIONS: Final = ("url", "namespace", "group", "queue", "tiers", "signing_keys", "sign_with", "accept_unsigned")
URL: Final = "STREAMQ_URL"
SIGNING_OPTIONS: Final = SERVER_OPTIONS[5:]
TIERS: Final = "STREAMQ_TIERS"  # the variable with the names of the tiers; those of a worker are in its modules
SIGNING_KEYS: Final = "STREAMQ_SIGNING_KEYS"  # the variable with the keys: a command line can be read by others
SIGNING_KEYS_FILE: Final = "STREAMQ_SIGNING_KEYS_FILE"
_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,9})?")
_OUT_OF_BOUNDS: Final = re.compile(
    r"(?i:[+-]?(?:nan|inf|infinity))|(?:-[0-9]+|-(?=\.)|[0-9]{21,})(?:\.[0-9]+)?\s*(?:ms|[smhd]?)"
)  # what would be a duration
_DURATION: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?|\.[0-9]{1,20})\s*(ms|[smhd]?)")
_LONGEST: Final = 1e10  # seconds, as in docs/bounds.md; its module is not loaded for --help
_MOST_PROCESSES: Final = 1_024
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
        from streamq.cli.cpu_count import usable_cores  # noqa: PLC0415 - read only when asked for

        return usable_cores()
    if not (_COUNT.fullmatch(word) and 0 < int(word) <= _MOST_PROCESSES):
        raise click.BadParameter(f"{text!r} is not a number of processes: write 1 to {_MOST_PROCESSES:,}, or auto")
    return int(word)


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


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options that select a server and its keys. None stands for an option that was not given."""

    url: str | None = None
    namespace: str | None = None
    group: str | None = None
    queue: str | None = None
    tiers: list[str] | None = None
    signing_keys: str | None = None
    sign_with: str | None = None
    accept_unsigned: bool = False

    def wants_signing(self) -> bool:
        """Are there signing keys for this command? Raises CommandLineError if what should have them is empty."""
        given = os.environ.get(SIGNING_KEYS)
        for name, value in (
            (SIGNING_KEYS, given), (SIGNING_KEYS_FILE, os.environ.get(SIGNING_KEYS_FILE)),
            ("--signing-keys", self.signing_keys),
        ):  # fmt: skip
            if value is not None and not value.strip():  # a secret that is not there must not turn signing off
                remedy = "leave the option out" if name.startswith("-") else "unset it"
                raise CommandLineError(f"{name} is empty: give signing keys, or {remedy} to work without")
        if given is not None and self.signing_keys is not None:
            raise CommandLineError(
                f"signing keys are given twice: {SIGNING_KEYS}, and the file {self.signing_keys} (--signing-keys or "
                f"{SIGNING_KEYS_FILE}): give one of the two"
            )
        return given is not None or self.signing_keys is not None

    def signing(self) -> SigningKeys | None:
        """Return the signing keys of the file or of the environment, None if there are none.

        Raises CommandLineError, which shows no key, if they cannot be used.
        """
        from streamq.errors import StreamqError  # noqa: PLC0415 - keeps --help light
        from streamq.wire.signing import SigningKeys  # noqa: PLC0415

        if not self.wants_signing():
            if self.sign_with is not None or self.accept_unsigned:
                option = "--accept-unsigned" if self.sign_with is None else "--sign-with"
                raise CommandLineError(
                    f"{option} without signing keys: give --signing-keys FILE, or set {SIGNING_KEYS}"
                )
            return None
        where = self.signing_keys or SIGNING_KEYS
        try:
            text = _read_keys(self.signing_keys) if self.signing_keys else os.environ[SIGNING_KEYS]
            return SigningKeys.parse(text, sign_with=self.sign_with, accept_unsigned=self.accept_unsigned)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise CommandLineError(f"the signing keys in {where} cannot be read: {why}") from None
        except StreamqError as error:
            raise CommandLineError(f"{where}: {error}") from None

    def broker(self, **more: Any) -> RedisBroker:
        """Return a broker for these options. Raises CommandLineError if one cannot be used."""
        self.check_url()
        from streamq.broker import RedisBroker  # noqa: PLC0415 - keeps --help light
        from streamq.errors import StreamqError  # noqa: PLC0415
        from streamq.wire.tiers import Tier  # noqa: PLC0415

        if self.queue is not None and self.tiers is not None:
            raise CommandLineError(f"--queue {self.queue} and --tiers: a single stream has no tiers; give one of them")
        given = {"queue_name": self.queue, "namespace": self.namespace, "group": self.group}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        try:
            if self.has_own_tiers():  # of their thresholds nothing is known: only the names count
                options["tiers"] = [Tier(name, threshold=-place) for place, name in enumerate(self.tiers or ())]
            return RedisBroker(self.url or DEFAULT_URL, **options, signing=self.signing(), **more)
        except StreamqError as error:
            raise CommandLineError(str(error)) from error

    def has_own_tiers(self) -> bool:
        """Are there names of tiers other than those that a queue has by default?"""
        from streamq.wire.tiers import DEFAULT_TIERS  # noqa: PLC0415 - keeps --help light

        return self.tiers is not None and set(self.tiers) != {tier.name for tier in DEFAULT_TIERS}

    def lasting_broker(self) -> RedisBroker:
        """Return a broker whose server outlives this command. Raises CommandLineError for `memory://`."""
        broker = self.broker()
        if broker.url.startswith("memory:"):
            raise CommandLineError(
                f"{broker.url} is a server inside this command and ends with it: give the URL of a server, or "
                "embedded:///path/to/data"
            )
        return broker

    def check_url(self) -> None:
        """Raise CommandLineError if the URL is empty: a variable that failed to be set is no wish for localhost."""
        if not (self.url if self.url is not None else os.environ.get(URL, DEFAULT_URL)):
            option = URL if self.url is None else "--url"
            raise CommandLineError(f"{option} is empty: give the URL of a server, or leave it out for {DEFAULT_URL}")


def _read_keys(path: str) -> str:
    """Return the text of a key file. Raises CommandLineError if others may change it, warns if all may read it."""
    with Path(path).open(encoding="utf-8") as file:
        mode = os.fstat(file.fileno()).st_mode if os.name == "posix" else 0
        if mode & 0o022:
            raise CommandLineError(f"others may write the signing keys in {path}: chmod 600 {path}")
        if mode & 0o004:
            from streamq.cli import output  # noqa: PLC0415 - keeps --help light

            output.note(f"streamq: warning: all users may read the signing keys in {path}: chmod 600 {path}")
        return file.read(1 << 20)


def _unless_the_other(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Return the value of `--tiers` or `--queue`, None if a variable has it and the other is on the command line."""
    sources = click.core.ParameterSource
    other = "queue" if param.name == "tiers" else "tiers"
    from_variable = ctx.get_parameter_source(param.name or "") is sources.ENVIRONMENT
    return None if from_variable and ctx.get_parameter_source(other) is sources.COMMANDLINE else value


def server_options(function: F) -> F:
    """Add the options of `SERVER_OPTIONS`. Their environment variables are the same for all commands."""
    return _with_names(click.option(
        "--tiers", type=tier_names, metavar="NAME,...", envvar=TIERS, show_envvar=True, callback=_unless_the_other,
        help="Names of the tiers, if they are not critical, standard and bulk.",
    )(_with_signing(function)))  # fmt: skip


def worker_server_options(function: F) -> F:
    """Add the options of `SERVER_OPTIONS` but `tiers`: the modules of a worker have the tiers, and it serves some."""
    return _with_names(_with_signing(function))


def _with_signing(function: F) -> F:
    function = click.option(
        "--accept-unsigned", is_flag=True, envvar="STREAMQ_ACCEPT_UNSIGNED", show_envvar=True,
        help="Run messages without a signature as well, while signing is introduced.",
    )(function)  # fmt: skip
    function = click.option(
        "--sign-with", metavar="ID", envvar="STREAMQ_SIGN_WITH", show_envvar=True,
        help="Id of the key that signs, if there are several.",
    )(function)  # fmt: skip
    return click.option(
        "--signing-keys", metavar="FILE", envvar=SIGNING_KEYS_FILE, show_envvar=True,
        help=f"File of signing keys, one a line: ID=HEX. Or set {SIGNING_KEYS} to the keys themselves.",
    )(function)  # fmt: skip


def _with_names(function: F) -> F:
    for name, metavar, text in reversed((
        ("url", "URL", f"Server URL: redis, rediss, valkey, unix or embedded:///path. [default: {DEFAULT_URL}]"),
        ("namespace", "PREFIX", "Prefix of all keys. [default: queue]"),
        ("group", "NAME", "Consumer group. [default: workers]"),
        ("queue", "STREAM", "Use this one stream instead of tiers, for example queue:critical."),
    )):  # fmt: skip
        variable = f"STREAMQ_{name.upper()}"
        callback = _unless_the_other if name == "queue" else None
        function = click.option(
            f"--{name}", metavar=metavar, envvar=variable, show_envvar=True, help=text, callback=callback
        )(function)
    return function


json_option = click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print JSON, one object per line.")
