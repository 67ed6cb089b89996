"""The options that select dead letters by what they hold, and those that hide arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from streamq.cli.options import duration, json_or_text, names
from streamq.cli.usage_errors import CommandLineError

if TYPE_CHECKING:
    from streamq.dead_letter import DeadLetterFilter, Redaction

F = TypeVar("F", bound=Callable[..., Any])

# As in `streamq.tasks.outcome.Reason`, which is not loaded for --help.
REASONS: Final = (
    "retries_exhausted", "crash_loop", "expired", "rejected", "undecodable", "unknown_task", "unknown_group",
    "refused", "internal_error",
)  # fmt: skip
_NAMES: Final = ("task", "error_type", "reason", "tier", "text", "older_than", "newer_than", "arg")


def argument(text: str) -> tuple[str, Any]:
    """Parse NAME=JSON; a value that is no JSON is a text. For click's `type`."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise click.BadParameter(f"{text[:80]!r} is no argument: write its name and a value, as in customer=c-17")
    return name, json_or_text(value)


def filter_options(function: F) -> F:
    """Add the options that select dead letters. `take_filter` reads them."""
    for option in reversed((
        click.option("--task", help="Only dead letters of this task."),
        click.option("--error-type", metavar="CLASS", help="Only with this type of error: a class, its module or not."),
        click.option("--reason", type=click.Choice(REASONS), help="Only dead letters with this reason."),
        click.option("--tier", metavar="NAME", help="Only dead letters of this tier."),
        click.option("--text", help="Only with this text in the error or in the arguments, in any case."),
        click.option("--older-than", type=duration, metavar="TIME", help="Only what died so long ago: 90m, 7d."),
        click.option("--newer-than", type=duration, metavar="TIME", help="Only what died since: 90m, 7d."),
        click.option("--arg", type=argument, multiple=True, metavar="NAME=JSON",
                     help="Only with this value of an argument; the name of a positional one is its place, from 0 on."),
    )):  # fmt: skip
        function = option(function)
    return function


def redact_option(function: F) -> F:
    """Add `--redact`. `take_redaction` reads it."""
    return click.option(
        "--redact", type=names, metavar="NAME,...", envvar="STREAMQ_REDACT", show_envvar=True,
        help="Hide the values of these arguments, such as password,*token*. '*' hides all.",
    )(function)  # fmt: skip


def take_filter(given: dict[str, Any]) -> DeadLetterFilter:
    """Return the filter of a command, and take its options out of its parameters. Raises CommandLineError."""
    from streamq.dead_letter import DeadLetterFilter  # noqa: PLC0415 - keeps --help light
    from streamq.errors import StreamqError  # noqa: PLC0415

    values = {name: given.pop(name) for name in _NAMES}
    arguments = values.pop("arg")
    try:
        return DeadLetterFilter(task_name=values.pop("task"), arguments=dict(arguments), **values)
    except StreamqError as error:
        raise CommandLineError(str(error)) from None


def take_redaction(given: dict[str, Any]) -> Redaction | None:
    """Return what hides arguments, None if nothing does, and take it out of the parameters of a command."""
    from streamq.dead_letter import Redaction  # noqa: PLC0415 - keeps --help light
    from streamq.errors import StreamqError  # noqa: PLC0415

    hidden = given.pop("redact")
    if hidden is None:
        return None
    try:
        return Redaction(hidden)
    except StreamqError as error:
        raise CommandLineError(f"--redact: {error}") from None
