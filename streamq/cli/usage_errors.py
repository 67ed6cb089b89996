"""Errors of use: one line that says what is wrong and what to do, and exit code 2.

Foreign errors are turned into a `Problem` at the edge of each command. No password is ever part
of one: streamq's own errors show none.
"""

from __future__ import annotations

import re
from typing import IO, Any

import click

USAGE = 2  # the exit code of every error of use
INTERRUPTED = 130  # as a shell says it of a program that was ended by Ctrl-C

_DASHED_NUMBER = re.compile(r"-[\d.]")  # what looks like an option to click, and was meant as an argument


class Problem(click.ClickException):
    """Something that its user can put right; `message` names the remedy."""

    exit_code = USAGE

    def format_message(self) -> str:
        """Return the message as one line."""
        return " ".join(self.message.split())

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it to stderr."""
        click.echo(f"streamq: error: {self.format_message()}", file=file, err=file is None)


def as_problem(error: click.ClickException) -> Problem:
    """Return an error of click, wrong options say, as one line that names the command's help."""
    if isinstance(error, Problem):
        return error
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "streamq"
    if isinstance(error, click.NoSuchOption) and _DASHED_NUMBER.match(error.option_name):
        return Problem(f"no such option: {error.option_name}; write -- before arguments that begin with a dash")
    text = " ".join(error.format_message().split())
    return Problem(f"{text.rstrip('.')} (see '{path} --help')")


def explained(error: Exception) -> Problem:
    """Return an error of streamq, about a server or a value, with its remedy."""
    from streamq.errors import BrokerUnavailableError, OutcomeUnknownError  # noqa: PLC0415 - keeps --help light

    text = str(error) or type(error).__name__
    code = getattr(error, "code", "")
    match error:
        case OutcomeUnknownError():
            return Problem(f"{text}; it may have been carried out: repeat it with the same --task-id, which is safe")
        case BrokerUnavailableError():
            return Problem(f"{text}; start a Redis or Valkey server there, or say where with --url or STREAMQ_URL")
        case _ if code in ("NOAUTH", "WRONGPASS"):
            return Problem(f"{text}; give user and password in --url or STREAMQ_URL: redis://user:password@host:6379")
        case _ if code == "NOPERM":
            return Problem(f"{text}; have this user's ACL allow it, or give another user in --url or STREAMQ_URL")
        case _ if code == "WRONGTYPE":
            return Problem(f"{text}; a key of this name is used by something else: choose another --namespace")
        case _:
            return Problem(text)
