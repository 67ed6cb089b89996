"""`streamq cancel ID...`: withdraw tasks, or tell those that run to stop."""

from __future__ import annotations

from typing import Any, Final

import click

from streamq.cli.options import Where, json_option, where_options

_WORDS: Final = {
    "queued": "withdrawn", "delayed": "withdrawn before it was due", "running": "runs; its worker was told",
    "unknown": "not found",
}  # fmt: skip


@click.command(no_args_is_help=True, short_help="Withdraw tasks by id.")
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...")
@where_options
@click.option("--tier", show_envvar=True, help="The tier to look in first, by name.")
@json_option
@click.pass_context
def cancel(ctx: click.Context, /, task_ids: tuple[str, ...], tier: str | None, as_json: bool, **given: Any) -> None:
    """Withdraw the tasks of these IDs, and tell the workers of those that run already to stop them.

    Prints what became of each. Exits with 1 if one was not found: it has ended, or never was.
    """
    import orjson  # noqa: PLC0415 - keeps --help light

    from streamq.cli.run_command import run  # noqa: PLC0415

    broker = Where(**given).broker()

    async def main() -> dict[str, str]:
        async with broker:
            return {task_id: await broker.handle(task_id, tier=tier).withdraw() for task_id in task_ids}

    found = run(main)
    for task_id, was in found.items():
        told = orjson.dumps({"task_id": task_id, "was": was, "found": was != "unknown"}).decode()
        click.echo(told if as_json else f"{task_id}: {_WORDS[was]}")
    ctx.exit(int("unknown" in found.values()))
