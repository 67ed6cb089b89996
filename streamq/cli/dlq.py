"""`streamq dlq`: read, follow, replay and empty the dead letter stream."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import click

from streamq.cli.options import Where, duration, json_option, moment, where_options
from streamq.cli.usage_errors import Problem

_REASONS = ("retries_exhausted", "crash_loop", "expired", "rejected", "undecodable", "unknown_task")
_ENTRY = re.compile(r"\d{13,}|\d+-\d+")  # a number of 13 digits counts milliseconds
_SERVER_OPTIONS = ("url", "namespace", "group", "queue")


def _since(text: str) -> str:
    """Return the id after which to begin: an entry's, or that of a duration before now, or of a time."""
    if _ENTRY.fullmatch(text):
        return text
    try:
        seconds = time.time() - duration(text)
    except click.BadParameter:
        seconds = moment(text).timestamp()
    return f"{max(0, round(seconds * 1000))}-0"


def _where(given: dict[str, Any]) -> Where:
    return Where(**{name: given.pop(name) for name in _SERVER_OPTIONS})


@click.group(short_help="Look at tasks that died.")
def dlq() -> None:
    """Look at the tasks that died, and send them again.

    The dead letter stream needs no tool to be read: redis-cli XRANGE queue:dead - +
    """


@dlq.command("ls", short_help="List the newest dead letters.")
@where_options
@click.option("--count", "-n", type=click.IntRange(min=1), default=20, show_default=True, show_envvar=True,
              help="How many to list.")  # fmt: skip
@click.option("--task", show_envvar=True, help="Only those of this task.")
@click.option("--reason", type=click.Choice(_REASONS), show_envvar=True, help="Only those with this reason.")
@json_option
def ls(count: int, task: str | None, reason: str | None, as_json: bool, **given: Any) -> None:
    """List dead letters, the newest first."""
    from streamq.cli import dead_letters  # noqa: PLC0415 - keeps --help light

    dead_letters.ls(_where(given), dead_letters.Wanted(task, reason), count=count, as_json=as_json)


@dlq.command(short_help="Follow dead letters as they come.")
@where_options
@click.option("--since", type=_since, metavar="SINCE", show_envvar=True,
              help="Begin with those since then: 10m, 2030-01-31T12:00 or an entry id. [default: now]")  # fmt: skip
@click.option("--task", show_envvar=True, help="Only those of this task.")
@click.option("--reason", type=click.Choice(_REASONS), show_envvar=True, help="Only those with this reason.")
@json_option
def tail(since: str | None, task: str | None, reason: str | None, as_json: bool, **given: Any) -> None:
    """Print each dead letter as it comes, until Ctrl-C. Blocks on the server; nothing is polled."""
    from streamq.cli import dead_letters  # noqa: PLC0415 - keeps --help light

    dead_letters.tail(_where(given), dead_letters.Wanted(task, reason), since=since, as_json=as_json)


@dlq.command(no_args_is_help=True, short_help="Show one dead letter whole.")
@where_options
@click.argument("task_id", metavar="ID")
@json_option
def show(task_id: str, as_json: bool, **given: Any) -> None:
    """Show the dead letter with this task id, or this entry id, with its traceback."""
    from streamq.cli import dead_letters  # noqa: PLC0415 - keeps --help light

    dead_letters.show(_where(given), task_id, as_json=as_json)


@dlq.command(short_help="Send dead letters again.")
@where_options
@click.argument("task_ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that match --task and --reason.")
@click.option("--task", help="Only those of this task.")
@click.option("--reason", type=click.Choice(_REASONS), help="Only those with this reason.")
@click.option("--retries", type=click.IntRange(min=0), help="Runs after the first that fails. [default: the task's]")
@json_option
def replay(
    task_ids: tuple[str, ...], everything: bool, task: str | None, reason: str | None, retries: int | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Send the tasks of dead letters again and print their new task ids."""
    if bool(task_ids) == (everything or task is not None or reason is not None):
        raise Problem("which ones? give task ids, or --all, --task or --reason to choose")
    from streamq.cli import dead_letters  # noqa: PLC0415 - keeps --help light

    dead_letters.replay(_where(given), task_ids, dead_letters.Wanted(task, reason), retries=retries, as_json=as_json)


@dlq.command(short_help="Remove all dead letters.")
@where_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def purge(yes: bool, as_json: bool, **given: Any) -> None:
    """Remove all dead letters, and print how many there were."""
    where = _where(given)
    if not yes:
        if not sys.stdin.isatty():
            raise Problem("this removes all dead letters: add --yes")
        click.confirm("Remove all dead letters?", abort=True, err=True)
    from streamq.cli import dead_letters  # noqa: PLC0415 - keeps --help light

    dead_letters.purge(where, as_json=as_json)
