"""`streamq dlq` for many dead letters at once: search, stats, replay, purge, operations, export, import."""

from __future__ import annotations

import sys
from typing import IO, Any

import click

from streamq.cli.dlq_filter import argument, filter_options, redact_option, take_filter, take_redaction
from streamq.cli.options import WholeNumber, json_option
from streamq.cli.server_options import ServerOptions, server_options
from streamq.cli.usage_errors import CommandLineError

_MANY = 1_000_000_000
_limit = click.option("--limit", type=WholeNumber(1, _MANY), help="The most letters. [default: all]")
_rate = click.option("--rate", type=click.FloatRange(0.001, 1e6), metavar="N",
                     help="Letters a second. [default: as fast as it goes]")  # fmt: skip
_dry_run = click.option("--dry-run", is_flag=True, help="Change nothing, and say what would be done.")


@click.command(short_help="Search dead letters.")
@server_options
@filter_options
@click.option("--count", "-n", type=WholeNumber(1, 1_000_000), default=20, show_default=True, show_envvar=True,
              help="Number of dead letters to find.")  # fmt: skip
@click.option("--after", metavar="ENTRY_ID", help="Go on after this dead letter, where a search has ended.")
@click.option("--examine", type=WholeNumber(1, _MANY), default=100_000, show_default=True, show_envvar=True,
              help="Number of dead letters to look at.")  # fmt: skip
@redact_option
@json_option
def search(count: int, after: str | None, examine: int, as_json: bool, **given: Any) -> None:
    """Search dead letters, newest first. At the end it says how far it has looked, and how to go on.

    With --json the last line has `examined`, `found` and `after` (null at the end of the stream).
    """
    from streamq.cli import run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    filter_, redact = take_filter(given), take_redaction(given)
    run_dlq_bulk.search(
        ServerOptions.take(given), filter_, redact, count=count, after=after, examine=examine, as_json=as_json
    )


@click.command(short_help="Count dead letters by error.")
@server_options
@filter_options
@json_option
def stats(as_json: bool, **given: Any) -> None:
    """Count dead letters by task, type of error and reason, with the first and the last time, and an example."""
    from streamq.cli import run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    filter_ = take_filter(given)
    run_dlq_bulk.stats(ServerOptions.take(given), filter_, as_json=as_json)


@click.command(short_help="Replay dead letters.")
@server_options
@click.argument("task_ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All dead letters that match the other options.")
@filter_options
@click.option("--set", "values", type=argument, multiple=True, metavar="NAME=JSON",
              help="Give an argument this value; a positional one has its place as its name, from 0 on.")  # fmt: skip
@click.option("--retries", type=WholeNumber(0, _MANY),
              help="Retry budget of the replayed task. [default: as before]")  # fmt: skip
@_limit
@_rate
@_dry_run
@json_option
@click.pass_context
def replay(
    ctx: click.Context, /, task_ids: tuple[str, ...], everything: bool, values: tuple[tuple[str, Any], ...],
    retries: int | None, limit: int | None, rate: float | None, dry_run: bool, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Enqueue the tasks of dead letters again, and print each new task id at once.

    What cannot be replayed is passed over and named on stderr; it stays. Then the exit code is 1.

    --all, and options that select, begin an operation: each letter is replayed once, though this command is killed.
    `streamq dlq resume` goes on with it. With an app, what --set has changed is checked as an enqueue is.

    --all and --task replay those with the reason crash_loop, too. Each may crash max_crashes more workers, which can be
    all that you have: replay them apart (--reason crash_loop), once their cause is mended.
    """
    from streamq.cli import run_dlq, run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    filter_ = take_filter(given)
    filtered = everything or bool(filter_)
    if not task_ids and not filtered:
        raise CommandLineError("no dead letters chosen: give task ids, or --all, --task or --reason")
    if task_ids and filtered:
        raise CommandLineError("task ids together with --all, --task or --reason: give one or the other")
    if task_ids and (values or limit or rate or dry_run):
        raise CommandLineError("--set, --limit, --rate and --dry-run are for --all, and for options that select")
    server = ServerOptions.take(given)
    if task_ids:
        ctx.exit(run_dlq.replay(server, task_ids, retries=retries, as_json=as_json))
    ctx.exit(run_dlq_bulk.replay(
        server, filter_, dict(values), retries=retries, limit=limit, rate=rate, dry_run=dry_run, as_json=as_json
    ))  # fmt: skip


@click.command(short_help="Remove dead letters.")
@server_options
@filter_options
@_limit
@_rate
@_dry_run
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@click.pass_context
def purge(
    ctx: click.Context, /, limit: int | None, rate: float | None, dry_run: bool, yes: bool, as_json: bool, **given: Any
) -> None:
    """Remove all dead letters, or those that match, and print how many were removed.

    It counts them and asks first. It removes those that were there then, and none that has come since.
    """
    from streamq.cli import run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    filter_ = take_filter(given)
    if not (yes or dry_run or sys.stdin.isatty()):
        what = "dead letters that match" if filter_ else "all dead letters"
        raise CommandLineError(f"this removes {what}: add --yes, or --dry-run to see how many")
    ctx.exit(run_dlq_bulk.purge(
        ServerOptions.take(given), filter_, limit=limit, rate=rate, dry_run=dry_run, ask=not yes, as_json=as_json
    ))  # fmt: skip


@click.command(short_help="List operations over dead letters.")
@server_options
@json_option
def operations(as_json: bool, **given: Any) -> None:
    """List the operations that replay and purge have begun, the newest first, and how far each is.

    They are kept for 7 days after their last step.
    """
    from streamq.cli import run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    run_dlq_bulk.operations(ServerOptions.take(given), as_json=as_json)


@click.command(short_help="Stop an operation.")
@server_options
@click.argument("operation_id", metavar="ID")
@json_option
def stop(operation_id: str, as_json: bool, **given: Any) -> None:
    """Stop an operation before its next letter, whichever process runs it. `streamq dlq resume` goes on with it."""
    from streamq.cli import run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    run_dlq_bulk.stop(ServerOptions.take(given), operation_id, as_json=as_json)


@click.command(short_help="Go on with an operation.")
@server_options
@click.argument("operation_id", metavar="ID")
@json_option
@click.pass_context
def resume(ctx: click.Context, /, operation_id: str, as_json: bool, **given: Any) -> None:
    """Go on with an operation that was stopped or killed, from where it is. The exit code is that of the whole.

    If another process runs it, one of the two goes on and the other ends.
    """
    from streamq.cli import run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    ctx.exit(run_dlq_bulk.resume(ServerOptions.take(given), operation_id, as_json=as_json))


@click.command("export", short_help="Print dead letters as lines of JSON.")
@server_options
@filter_options
@redact_option
def export(**given: Any) -> None:
    """Print dead letters as lines of JSON, oldest first, for `streamq dlq import`. They stay where they are.

    Nothing of a letter is lost, bytes that are no text included: {"base64": "..."}. With --redact some values are, and
    what was printed so cannot be imported.
    """
    from streamq.cli import run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    filter_, redact = take_filter(given), take_redaction(given)
    run_dlq_bulk.export(ServerOptions.take(given), filter_, redact)


@click.command("import", short_help="Add dead letters from lines of JSON.")
@server_options
@click.argument("file", type=click.File("rb"))
@json_option
@click.pass_context
def import_(ctx: click.Context, /, file: IO[bytes], as_json: bool, **given: Any) -> None:
    """Add the dead letters in FILE, which `streamq dlq export` has printed; - is standard input.

    Each gets a new entry id. A line that is none is passed over and named on stderr; then the exit code is 1. To import
    a file twice adds its letters twice.
    """
    from streamq.cli import run_dlq_bulk  # noqa: PLC0415 - keeps --help light

    ctx.exit(run_dlq_bulk.import_lines(ServerOptions.take(given), file, as_json=as_json))


COMMANDS = (search, stats, replay, purge, operations, stop, resume, export, import_)
