"""The one door from the command line to the terminal. What goes through it is escaped (see `wire/printable.py`).

Results go to stdout, all else to stderr. No other module of the command line prints (tests/cli/test_output.py).
A result that cannot be written is an error. What goes to stderr is not: a full disk, or a reader that has gone, must
not change what a command does.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from typing import IO, Any

import click

from streamq.wire.printable import LONGEST, json_line, printable, printable_lines


def result(text: str, *, cut: bool = False, limit: int = LONGEST) -> None:
    """Print one line of a result. With `cut` it is cut to the width of a terminal."""
    line = printable(text, limit)
    click.echo(line[: shutil.get_terminal_size().columns] if cut and sys.stdout.isatty() else line)


def note(text: str, *, file: IO[Any] | None = None) -> None:
    """Print one line about a result, or about an error, to stderr."""
    _say(printable(text), file)


def block(text: str, *, err: bool = False, limit: int = LONGEST) -> None:
    """Print a text of several lines that are ours, or a traceback."""
    whole = printable_lines(text, limit=limit)
    if err:
        _say(whole)
    else:
        click.echo(whole)


def _say(text: str, file: IO[Any] | None = None) -> None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: the file is closed
        click.echo(text, file=file, err=file is None)


def result_json(value: Any) -> None:
    """Print a result as one line of JSON. Raises TypeError for a value that is nested too deep."""
    click.echo(json_line(value))


def flush() -> None:
    """Hand what was printed to whoever reads it."""
    sys.stdout.flush()


def passed_over(count: int, what: str) -> int:
    """Say how many things were passed over, and return the exit code: 1 if there were any."""
    if count:
        note(f"streamq: {count} {what}")
    return int(count > 0)
