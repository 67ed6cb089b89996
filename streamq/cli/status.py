"""`streamq status`: one screen that says how a queue is, and an exit code for scripts."""

from __future__ import annotations

from typing import Any

import click

from streamq.cli.options import WholeNumber, duration, json_option
from streamq.cli.server_options import ServerOptions, server_options

_MOST = 1_000_000_000


@click.command(short_help="Show on one screen how the queue is.")
@server_options
@click.option("--window", type=duration, metavar="DURATION", default="60s", show_default=True, show_envvar=True,
              help="Time that the runs cover: 10s to 15m.")  # fmt: skip
@click.option("--max-wait", type=duration, metavar="DURATION", show_envvar=True,
              help="Exit with 1 if a task has waited longer.")  # fmt: skip
@click.option("--max-waiting", type=WholeNumber(0, _MOST), show_envvar=True, help="Exit with 1 if more tasks wait.")
@click.option("--max-dead", type=WholeNumber(0, _MOST), show_envvar=True,
              help="Exit with 1 if there are more dead letters.")  # fmt: skip
@click.option("--min-workers", type=WholeNumber(0, _MOST), show_envvar=True,
              help="Exit with 1 if fewer workers are alive.")  # fmt: skip
@json_option
@click.pass_context
def status(
    ctx: click.Context, /, window: float, max_wait: float | None, max_waiting: int | None, max_dead: int | None,
    min_workers: int | None, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Show how the queue is: what waits and runs in each tier, the workers, and what is wrong.

    Reads one snapshot, at a cost that does not grow with the tasks, and changes nothing; the
    rights of a monitor are enough. Exits with 1 if something is wrong: tasks are there and no
    worker is alive, a worker that is silent still holds tasks after a minute, or one of the
    limits given here is passed. What may be well, such as an open circuit, is a note.
    """
    from streamq.cli import run_status  # noqa: PLC0415 - keeps --help light

    limits = run_status.Limits(wait=max_wait, waiting=max_waiting, dead=max_dead, workers=min_workers)
    ctx.exit(run_status.status(ServerOptions.take(given), window=window, limits=limits, as_json=as_json))
