"""The one door from the command line to the terminal. What goes through it is escaped (see `wire/printable.py`).

Results go to stdout, all else to stderr. No other module of the command line prints (tests/cli/test_output.py).
"""

from __future__ import annotations

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
    click.echo(printable(text), file=file, err=file is None)


def block(text: str, *, err: bool = False, limit: int = LONGEST) -> None:
    """Print a text of several lines that are ours, or a traceback."""
    click.echo(printable_lines(text, limit=limit), err=err)


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
