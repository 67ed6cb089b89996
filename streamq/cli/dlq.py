"""`streamq dlq`: list, show, follow and remove dead letters. `dlq_bulk.py` has the commands for many at once."""

from __future__ import annotations

import re
from typing import Any

import click

from streamq.cli.dlq_bulk import COMMANDS
from streamq.cli.dlq_filter import REASONS, redact_option, take_redaction
from streamq.cli.options import WholeNumber, duration, json_option, moment
from streamq.cli.server_options import ServerOptions, server_options

_ENTRY = re.compile(r"([0-9]{13,})|([0-9]+)-([0-9]+)")  # 13 digits or more are Unix milliseconds
_LARGEST = 2**64 - 1
_BEGINNING = re.compile(r"0+(\.0*)?")
_LATEST_AGO = 1e9  # a plain number from here on is in Unix seconds: so long ago was no dead letter


def _start(text: str) -> str | float:
    """Return the entry id after which to start, or how long ago (s) by the server's clock.

    `text` is an entry id, a duration before now, or a time. A plain number is seconds ago, or Unix seconds if it is
    large. As in Redis, 0 is the beginning.
    """
    if _BEGINNING.fullmatch(text.strip()):
        return "0-0"
    if (matched := _ENTRY.fullmatch(text)) is not None:
        if any(len(part) > 20 or int(part) > _LARGEST for part in matched.groups("0")):
            raise click.BadParameter(f"{text[:80]} is out of bounds: each part of an entry id is 0 to {_LARGEST:,}")
        return text
    try:
        ago = float(duration(text))
    except click.BadParameter:
        ago = None
    if ago is not None and (ago < _LATEST_AGO or not text.strip()[-1].isdigit()):
        return ago
    try:
        return f"{max(0, round(moment(text).timestamp() * 1000))}-0"
    except click.BadParameter:
        known = "10m (ago), 0 (the beginning), 2030-01-31T12:00, Unix seconds or an entry id, such as 1767225600000-0"
        raise click.BadParameter(f"{text!r} is no point to start at: write {known}") from None


@click.group(short_help="List, search, replay and remove dead letters.")
def dlq() -> None:
    """List, search, show, replay, remove, export and import dead letters.

    You can also read the dead letter stream without streamq: redis-cli XRANGE queue:dead - +
    """


@dlq.command("ls", short_help="List the newest dead letters.")
@server_options
@click.option("--count", "-n", type=WholeNumber(1, 1_000_000_000), default=20, show_default=True, show_envvar=True,
              help="Number of dead letters to list.")  # fmt: skip
@click.option("--task", show_envvar=True, help="Only dead letters of this task.")
@click.option("--reason", type=click.Choice(REASONS), show_envvar=True, help="Only dead letters with this reason.")
@redact_option
@json_option
def ls(count: int, task: str | None, reason: str | None, as_json: bool, **given: Any) -> None:
    """List dead letters, newest first."""
    from streamq.cli import run_dlq  # noqa: PLC0415 - keeps --help light
    from streamq.cli.read_dead_letters import FieldFilter  # noqa: PLC0415

    filter_ = FieldFilter(task, reason, take_redaction(given))
    run_dlq.ls(ServerOptions.take(given), filter_, count=count, as_json=as_json)


@dlq.command(short_help="Print new dead letters as they arrive.")
@server_options
@click.option("--since", type=_start, metavar="SINCE", show_envvar=True,
              help="Start at this point: 10m (ago), 2030-01-31T12:00 or an entry id. A plain number is seconds ago, "
              "from 1000000000 on Unix seconds, and 0 is the beginning. [default: now]")  # fmt: skip
@click.option("--task", show_envvar=True, help="Only dead letters of this task.")
@click.option("--reason", type=click.Choice(REASONS), show_envvar=True, help="Only dead letters with this reason.")
@redact_option
@json_option
def tail(since: str | float | None, task: str | None, reason: str | None, as_json: bool, **given: Any) -> None:
    """Print each dead letter as it arrives, until Ctrl-C. It blocks on the server and does not poll."""
    from streamq.cli import run_dlq  # noqa: PLC0415 - keeps --help light
    from streamq.cli.read_dead_letters import FieldFilter  # noqa: PLC0415

    filter_ = FieldFilter(task, reason, take_redaction(given))
    run_dlq.tail(ServerOptions.take(given), filter_, since=since, as_json=as_json)


@dlq.command(short_help="Show all fields of one dead letter.")
@server_options
@click.argument("task_id", metavar="ID")
@redact_option
@json_option
def show(task_id: str, as_json: bool, **given: Any) -> None:
    """Show all fields of one dead letter, with its traceback. ID is a task id or an entry id."""
    from streamq.cli import run_dlq  # noqa: PLC0415 - keeps --help light
    from streamq.cli.read_dead_letters import FieldFilter  # noqa: PLC0415

    filter_ = FieldFilter(redact=take_redaction(given))
    run_dlq.show(ServerOptions.take(given), task_id, filter_, as_json=as_json)


@dlq.command(short_help="Remove some dead letters.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@server_options
@json_option
@click.pass_context
def rm(ctx: click.Context, /, ids: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Remove the dead letters with these IDs, for good. An ID is a task id or an entry id.

    If a task has several dead letters, its task id means the newest. Exits with 1 if one was not found.
    """
    from streamq.cli import run_dlq  # noqa: PLC0415 - keeps --help light

    ctx.exit(run_dlq.rm(ServerOptions.take(given), ids, as_json=as_json))


for _command in COMMANDS:
    dlq.add_command(_command)
