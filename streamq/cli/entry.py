"""The command `streamq`: its subcommands, and the one place that turns errors into a line and an exit code."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

import streamq
from streamq.cli import inherited, output
from streamq.cli.acl import acl
from streamq.cli.cancel import cancel
from streamq.cli.demo.command import demo
from streamq.cli.dlq import dlq
from streamq.cli.doctor import doctor
from streamq.cli.enqueue import enqueue
from streamq.cli.metrics import metrics
from streamq.cli.schedules import schedules
from streamq.cli.status import status
from streamq.cli.usage_errors import FAILED, INTERRUPTED, USAGE, from_click_error
from streamq.cli.worker import worker
from streamq.diagnostics.safe_text import traceback_of

_MOST_TRACEBACK = 50_000  # characters
_LAST_STEPS = 5.0  # seconds for what modules registered with atexit


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "STREAMQ"})
@click.version_option(streamq.__version__, prog_name="streamq", message="%(prog)s %(version)s")
def cli() -> None:
    """A task queue on Redis Streams: fair tiers, leases, dead letters; on asyncio and trio.

    You can also set each option by an environment variable. The help of each command names it.
    """


cli.add_command(worker)
cli.add_command(status)
cli.add_command(enqueue)
cli.add_command(cancel)
cli.add_command(dlq)
cli.add_command(schedules)
cli.add_command(doctor)
cli.add_command(acl)
cli.add_command(metrics)
cli.add_command(demo)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 for success, 2 for a usage error, 130 after Ctrl-C."""
    inherited.make_usable()
    try:
        code = _run(arguments)
    finally:
        output.give_up()
    if "streamq.cli.loading" in sys.modules and threading.active_count() > 1:
        _leave_threads(code)
    sys.exit(code)


def _leave_threads(code: int) -> NoReturn:
    """Exit as Python does, but wait for no thread, nor for what waits for one while Python takes its objects apart.

    A module of the user may have started some: with an event loop in which its broker is open, say.
    """
    from streamq.cli.stop_signals import exit_now  # noqa: PLC0415 - few commands load modules

    def end() -> None:
        time.sleep(_LAST_STEPS)
        exit_now(code)

    with contextlib.suppress(RuntimeError):  # no thread to be had: nothing limits the last steps
        threading.Thread(target=end, daemon=True).start()
    atexit._run_exitfuncs()  # noqa: SLF001 - what a module sends at the end, traces say, is sent
    exit_now(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return _invoke(arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        output.block(error.format_message(), err=True)
        return USAGE
    except click.ClickException as error:
        shown = from_click_error(error)
        shown.show()
        return shown.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # `streamq dlq ls | head` closes the pipe: no error
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - a fault of ours, with texts that may be a stranger's
        output.block(traceback_of(error, _MOST_TRACEBACK), err=True)
        return FAILED


def _invoke(arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code; 1 in the place of 0 if its result could not be written."""
    code = 0
    try:
        code = cli.main(arguments, prog_name="streamq", standalone_mode=False) or 0
        output.flush()
    except output.UnwrittenError as error:
        output.note(f"streamq: error: {error}")
        return code or FAILED
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not _is_of_click(error):
            raise
        output.note(f"streamq: error: {output.UnwrittenError(error)}")  # click writes --help and --version
        return FAILED
    return code


def _is_of_click(error: OSError) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("click.")
