"""`streamq cancel ID...`: withdraw waiting tasks, and cancel running ones."""

from __future__ import annotations

from typing import Any, Final

import click

from streamq.cli.options import json_option
from streamq.cli.server_options import ServerOptions, server_options

_OUTCOME_TEXTS: Final = {
    "queued": "withdrawn", "delayed": "withdrawn before it was due",
    "running": "running; its worker was asked to stop it", "unknown": "not found",
}  # fmt: skip


@click.command(short_help="Cancel tasks by id.")
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...")
@server_options
@click.option("--tier", show_envvar=True, help="Name of the tier to search first.")
@json_option
@click.pass_context
def cancel(ctx: click.Context, /, task_ids: tuple[str, ...], tier: str | None, as_json: bool, **given: Any) -> None:
    """Cancel the tasks with these IDs.

    A task that waits is withdrawn. If a task runs already, its worker is asked to stop it. Prints one
    line for each task, and goes on. Exits with 1 if a task was not found: it has ended, it never existed, or
    no task can have that ID.
    """
    from streamq.cli import output  # noqa: PLC0415 - keeps --help light
    from streamq.cli.run_command import run  # noqa: PLC0415
    from streamq.errors import ConfigurationError  # noqa: PLC0415

    broker = ServerOptions.take(given).lasting_broker()

    found: dict[str, str] = {}

    async def main() -> None:
        async with broker:
            if tier is not None:
                broker.handle("0", tier=tier)  # an unknown tier is an error of all
            for task_id in task_ids:
                try:
                    was = await broker.handle(task_id, tier=tier).withdraw()
                except ConfigurationError as error:
                    output.note(f"streamq: {error}")
                    was = "unknown"
                found[task_id] = was
                if as_json:
                    output.result_json({"task_id": task_id, "was": was, "found": was != "unknown"})
                else:
                    output.result(f"{task_id}: {_OUTCOME_TEXTS[was]}")

    run(main)
    ctx.exit(int("unknown" in found.values()))
