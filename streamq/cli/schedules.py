"""`streamq schedules`: list and remove schedules."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from streamq.cli.options import json_option
from streamq.cli.server_options import ServerOptions, server_options

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.queue.schedules import Schedule

_HEADER: Final = f"{'NEXT (UTC)':<19}  {'LAST (UTC)':<19}  {'NAME':<20}  {'TASK':<20}  {'FROM':<8}  WHEN"


@click.group(short_help="List and remove schedules.")
def schedules() -> None:
    """List and remove schedules: those of @task(cron=...), and those that a program stored."""


@schedules.command("ls", short_help="List schedules.")
@server_options
@json_option
@click.pass_context
def ls(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """List schedules, the next tick first. Exits with 1 if one was passed over, because it cannot be shown."""
    from streamq.cli import output  # noqa: PLC0415 - keeps --help light
    from streamq.cli.run_command import run  # noqa: PLC0415

    broker = ServerOptions.take(given).lasting_broker()

    async def main() -> list[Schedule]:
        async with broker:
            return await broker.schedules()

    found, unread = run(main), 0
    if as_json:
        for schedule in found:
            try:
                output.result_json(asdict(schedule))
            except (TypeError, RecursionError) as error:
                unread += 1
                output.note(f"streamq: the schedule {schedule.name!r} cannot be shown as JSON: {error}")
        ctx.exit(output.passed_over(unread, "passed over"))
    if found:
        output.result(_HEADER)
    for schedule in found:
        output.result(_row(schedule))
    output.note(f"{broker.keys.schedules} holds {len(found)} schedule{'s' * (len(found) != 1)}{_late(found, broker)}")


@schedules.command(short_help="Remove schedules.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@server_options
@json_option
@click.pass_context
def rm(ctx: click.Context, /, names: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Remove the schedules with these NAMEs. Tasks that were already enqueued stay.

    If the code of a running worker declares a schedule, the worker adds it again at once: remove it from the
    code first. Exits with 1 if a schedule was not found.
    """
    from streamq.cli import output  # noqa: PLC0415 - keeps --help light
    from streamq.cli.run_command import run  # noqa: PLC0415

    broker = ServerOptions.take(given).lasting_broker()

    async def main() -> dict[str, bool]:
        async with broker:
            return {name: await broker.unschedule(name) for name in names}

    removed = run(main)
    for name, done in removed.items():
        if as_json:
            output.result_json({"name": name, "removed": done})
        else:
            output.result(f"{name}: {'removed' if done else 'not found'}")
    ctx.exit(int(not all(removed.values())))


def _late(found: list[Schedule], broker: RedisBroker) -> str:
    """Return how many schedules do not tick, and why, as the end of a sentence."""
    unusable = sum(bool(schedule.problem) for schedule in found)
    others = sum(schedule.overdue and not schedule.problem for schedule in found)
    late = f", {others} overdue: no running worker sends their ticks" if others else ""
    if not unusable:
        return late
    from streamq.wire.command_line import streamq_command  # noqa: PLC0415 - keeps --help light

    remove = streamq_command(broker.keys, "schedules", "rm", "NAME")
    return f"{late}, {unusable} that cannot tick: store anew, or remove ({remove})"


def _row(schedule: Schedule) -> str:
    source = "code" if schedule.declared else "stored"
    when = f"{schedule.expression} {schedule.tz}" if schedule.expression else ""
    when = ", ".join(filter(None, (when, "overdue" * schedule.overdue, schedule.problem)))
    return (
        f"{_time_text(schedule.next):<19}  {_time_text(schedule.last):<19}  "
        f"{schedule.name:<20}  {schedule.task:<20}  {source:<8}  {when}"
    )


def _time_text(at: datetime | None) -> str:
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
