"""`streamq schedules`: what recurs, and how to have it end."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from streamq.cli.options import Where, json_option, where_options

if TYPE_CHECKING:
    from streamq.queue.schedules import Schedule

_HEAD: Final = f"{'NEXT (UTC)':<19}  {'LAST (UTC)':<19}  {'NAME':<20}  {'TASK':<20}  {'FROM':<8}  WHEN"


@click.group(short_help="List what recurs, or remove it.")
def schedules() -> None:
    """Look at what recurs: declared by @task(cron=...), or stored by a program."""


@schedules.command("ls", short_help="List schedules.")
@where_options
@json_option
def ls(as_json: bool, **given: Any) -> None:
    """List schedules by the time of their next ticks."""
    import orjson  # noqa: PLC0415 - keeps --help light

    from streamq.cli.run_command import run  # noqa: PLC0415

    broker = Where(**given).broker()

    async def main() -> list[Schedule]:
        async with broker:
            return await broker.schedules()

    found = run(main)
    if as_json:
        for one in found:
            click.echo(orjson.dumps(asdict(one)))
        return
    if found:
        click.echo(_HEAD)
    for one in found:
        click.echo(_line(one))
    overdue = sum(one.overdue for one in found)
    late = f", {overdue} overdue: no worker runs that ticks them" if overdue else ""
    click.echo(f"{broker.keys.schedules} holds {len(found)} schedule{'s' * (len(found) != 1)}{late}", err=True)


@schedules.command(no_args_is_help=True, short_help="Remove schedules.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@where_options
@json_option
@click.pass_context
def rm(ctx: click.Context, /, names: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Remove the schedules of these NAMEs; what was sent stays.

    One that the code of a running worker declares is there again at once: take it out of the code first.
    Exits with 1 if one was not found.
    """
    import orjson  # noqa: PLC0415 - keeps --help light

    from streamq.cli.run_command import run  # noqa: PLC0415

    broker = Where(**given).broker()

    async def main() -> dict[str, bool]:
        async with broker:
            return {name: await broker.unschedule(name) for name in names}

    removed = run(main)
    for name, done in removed.items():
        told = orjson.dumps({"name": name, "removed": done}).decode()
        click.echo(told if as_json else f"{name}: {'removed' if done else 'not found'}")
    ctx.exit(int(not all(removed.values())))


def _line(one: Schedule) -> str:
    from streamq.cli.dead_letters import safe  # noqa: PLC0415

    source = "code" if one.declared else "stored"
    when = f"{one.expression} {one.tz}" + (", overdue" if one.overdue else "")
    return safe(
        f"{_moment(one.next):<19}  {_moment(one.last):<19}  {one.name:<20}  {one.task:<20}  {source:<8}  {when}"
    )


def _moment(at: datetime | None) -> str:
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
