"""`streamq cancel ID...`: withdraw waiting tasks, and cancel running ones."""

from __future__ import annotations

from typing import Any, Final

import click

from streamq.cli.options import ServerOptions, json_option, server_options

_OUTCOME_TEXTS: Final = {
    "queued": "withdrawn", "delayed": "withdrawn before it was due",
    "running": "running; its worker was asked to stop it", "unknown": "not found",
}  # fmt: skip


@click.command(no_args_is_help=True, short_help="Cancel tasks by id.")
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...")
@server_options
@click.option("--tier", show_envvar=True, help="Name of the tier to search first.")
@json_option
@click.pass_context
def cancel(ctx: click.Context, /, task_ids: tuple[str, ...], tier: str | None, as_json: bool, **given: Any) -> None:
    """Cancel the tasks with these IDs.

    A task that waits is withdrawn. If a task runs already, its worker is asked to stop it. Prints one
    line for each task. Exits with 1 if a task was not found: it has ended, or it never existed.
    """
    import orjson  # noqa: PLC0415 - keeps --help light

    from streamq.cli.run_command import run  # noqa: PLC0415

    broker = ServerOptions(**given).broker()

    async def main() -> dict[str, str]:
        async with broker:
            return {task_id: await broker.handle(task_id, tier=tier).withdraw() for task_id in task_ids}

    found = run(main)
    for task_id, was in found.items():
        line = orjson.dumps({"task_id": task_id, "was": was, "found": was != "unknown"}).decode()
        click.echo(line if as_json else f"{task_id}: {_OUTCOME_TEXTS[was]}")
    ctx.exit(int("unknown" in found.values()))
