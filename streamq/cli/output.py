"""The one door from the command line to the terminal. What goes through it is escaped (see `wire/printable.py`).

Results go to stdout, all else to stderr. No other module of the command line prints (tests/cli/test_output.py).
What goes to stderr and cannot be written is dropped: a full disk, or a reader that has gone, must not change what a
command does. A result that cannot be written stops no command either. `flush` says so at its end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from typing import IO, Any

import click

from streamq.cli.inherited import was_closed
from streamq.wire.printable import LONGEST, json_line, printable, printable_lines

_STDOUT = 1
_failed: list[OSError] = []  # the first failed write of a result; after it no other is tried


class UnwrittenError(Exception):
    """A result could not be written to standard output."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        super().__init__(f"standard output cannot be written: {error.strerror}")


def _print(text: str) -> None:
    if _failed:
        return
    try:
        click.echo(text)
    except OSError as error:
        _failed.append(error)


def result(text: str, *, cut: bool = False, limit: int = LONGEST) -> None:
    """Print one line of a result. With `cut` it is cut to the width of a terminal."""
    line = printable(text, limit)
    _print(line[: shutil.get_terminal_size().columns] if cut and sys.stdout.isatty() else line)


def note(text: str, *, file: IO[Any] | None = None) -> None:
    """Print one line about a result, or about an error, to stderr."""
    _say(printable(text), file)


def block(text: str, *, err: bool = False, limit: int = LONGEST) -> None:
    """Print a text of several lines that are ours, or a traceback."""
    whole = printable_lines(text, limit=limit)
    if err:
        _say(whole)
    else:
        _print(whole)


def _say(text: str, file: IO[Any] | None = None) -> None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: the file is closed
        click.echo(text, file=file, err=file is None)


def result_json(value: Any) -> None:
    """Print a result as one line of JSON. Raises TypeError for a value that is nested too deep."""
    _print(json_line(value))


def result_line(line: bytes) -> None:
    """Print one line of JSON that has its escapes already (see `escaped_json`)."""
    _print(line.decode())


def flush() -> None:
    """Hand what was printed to whoever reads it. Raises UnwrittenError or BrokenPipeError if a result was lost."""
    try:
        if _failed:
            raise _failed[0]
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnwrittenError(error) from error


def unwritten() -> str | None:
    """Return why what was printed is not written, None if it is. No error at the end then: the caller says it."""
    if was_closed(_STDOUT):
        return "it is closed"
    try:
        flush()
    except (UnwrittenError, BrokenPipeError) as error:
        give_up()
        _failed.clear()
        return str((error.error if isinstance(error, UnwrittenError) else error).strerror)
    return None


def passed_over(count: int, what: str) -> int:
    """Say how many things were passed over, and return the exit code: 1 if there were any."""
    if count:
        note(f"streamq: {count} {what}")
    return int(count > 0)


def give_up() -> None:
    """Drop what cannot be written: Python tries it once more at its end, and would exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
