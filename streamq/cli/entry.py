"""The command `streamq`: its subcommands, and the one place that turns errors into a line and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

import streamq
from streamq.cli import output
from streamq.cli.acl import acl
from streamq.cli.cancel import cancel
from streamq.cli.demo.command import demo
from streamq.cli.dlq import dlq
from streamq.cli.doctor import doctor
from streamq.cli.enqueue import enqueue
from streamq.cli.schedules import schedules
from streamq.cli.usage_errors import FAILED, INTERRUPTED, USAGE, from_click_error
from streamq.cli.worker import worker
from streamq.diagnostics.safe_text import traceback_of

_MOST_TRACEBACK = 50_000  # characters


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "STREAMQ"})
@click.version_option(streamq.__version__, prog_name="streamq", message="%(prog)s %(version)s")
def cli() -> None:
    """A task queue on Redis Streams: fair tiers, leases, dead letters; on asyncio and trio.

    You can also set each option by an environment variable. The help of each command names it.
    """


cli.add_command(worker)
cli.add_command(enqueue)
cli.add_command(cancel)
cli.add_command(dlq)
cli.add_command(schedules)
cli.add_command(doctor)
cli.add_command(acl)
cli.add_command(demo)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 for success, 2 for a usage error, 130 after Ctrl-C."""
    _open_standard_files()
    try:
        sys.exit(_run(arguments))
    finally:
        _give_up_output()


def _open_standard_files() -> None:
    """Open those that whoever started this has closed: or a socket has such a number, and uvloop aborts at its end."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free


def _give_up_output() -> None:
    """Drop what cannot be written: Python tries it once more at its end, and would exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # it was closed when Python began
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = cli.main(arguments, prog_name="streamq", standalone_mode=False)
        output.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        output.block(error.format_message(), err=True)
        return USAGE
    except click.ClickException as error:
        from_click_error(error).show()
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # `streamq dlq ls | head` closes the pipe: no error
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - a fault of ours, with texts that may be a stranger's
        output.block(traceback_of(error, _MOST_TRACEBACK), err=True)
        return FAILED
    return code if isinstance(code, int) else 0
