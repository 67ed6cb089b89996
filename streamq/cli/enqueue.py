"""`streamq enqueue NAME [ARGS...]`: enqueue one task by name."""

from __future__ import annotations

import re
from typing import Any

import click

from streamq.cli.options import WholeNumber, check_whole_numbers, duration, json_option, json_or_text, moment
from streamq.cli.server_options import ServerOptions, server_options
from streamq.cli.usage_errors import CommandLineError

_PRIORITIES = {"critical": 100, "high": 50, "normal": 10, "low": 1}
_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")
_WINDOWS = ("until_started", "until_done")
_MODES = ("throttle", "debounce", "keep_last")
_KWARGS_REMEDY = 'write --kwargs \'{"to": "a@b.c"}\' or -k to=a@b.c'


def _priority(text: str) -> int:
    """Return a priority as a number. `text` is a whole number or a name of `Priority`."""
    if (named := _PRIORITIES.get(text.lower())) is not None:
        return named
    if _WHOLE.fullmatch(text):
        return int(text)
    names = ", ".join(_PRIORITIES)
    raise click.BadParameter(f"{text!r} is not a priority: write a whole number, or {names}")


@click.command(short_help="Enqueue a task by name.")
@click.argument("name")
@click.argument("args", nargs=-1, metavar="[ARGS]...")
@server_options
@click.option("--kwargs", "kwargs_json", metavar="JSON", help="Keyword arguments as a JSON object.", show_envvar=True)
@click.option("-k", "pairs", multiple=True, metavar="KEY=VALUE", help="One keyword argument. Repeatable.")
@click.option("--priority", type=_priority, metavar="PRIORITY", show_envvar=True,
              help="A number, or critical, high, normal, low. It selects the tier.")  # fmt: skip
@click.option("--tier", show_envvar=True, help="Name of the tier.")
@click.option("--delay", type=duration, show_envvar=True, help="Start after this delay: 30s, 5m, 2h.")
@click.option("--at", type=moment, metavar="TIME", show_envvar=True,
              help="Start at this time: ISO 8601 (local time without a zone) or Unix seconds.")  # fmt: skip
@click.option("--expires", type=duration, show_envvar=True, help="Do not start after this time from now.")
@click.option(
    "--retries", type=WholeNumber(0, 1_000_000_000), show_envvar=True, help="Retry budget: runs after the first."
)
@click.option("--timeout", type=duration, show_envvar=True, help="Longest time for one run.")
@click.option("--result-ttl", type=duration, show_envvar=True, help="Keep the result for this long.")
@click.option("--task-id", show_envvar=True, help="Your own task id. It is accepted once.")
@click.option("--dedup-key", show_envvar=True, help="Accept only one task with this key at a time.")
@click.option("--dedup-ttl", type=duration, show_envvar=True, help="Longest time to hold the key. [default: 1h]")
@click.option("--dedup-window", type=click.Choice(_WINDOWS), show_envvar=True,
              help="Hold the key until this event, at most for --dedup-ttl or 1d.")  # fmt: skip
@click.option("--dedup-mode", type=click.Choice(_MODES), show_envvar=True,
              help="Keep the first task, or the newest. [default: throttle]")  # fmt: skip
@click.option(
    "--dedup-max-delay", type=duration, show_envvar=True, help="Longest time that newer tasks may postpone it."
)
@click.option("--force", is_flag=True, show_envvar=True,
              help="Enqueue also a task that the app does not have, and where no worker has ever read.")  # fmt: skip
@json_option
def enqueue(
    name: str, args: tuple[str, ...], kwargs_json: str | None, pairs: tuple[str, ...], as_json: bool, force: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Enqueue the task NAME with ARGS and print its task id.

    An argument that parses as JSON is JSON; any other is a string. 3 is a number, '"3"' a string,
    '[1, 2]' a list, a@b.c a string. A number that JSON cannot carry is a string: whole ones of more
    than 64 bits, and those like 1e999. Write -- before arguments that begin with a dash.

    With --app the task is sent as it is declared: its tier and priority count, and its arguments
    are checked. A task for a stream that no worker has ever read is refused if others are read:
    other tiers, or other namespaces. The exit code is 1 then. If it is the app that names the
    stream, it is sent, with a warning.
    """
    server = ServerOptions.take(given)
    options = {option: value for option, value in given.items() if value is not None}
    kwargs = _kwargs(kwargs_json, pairs)
    from streamq.cli import output  # noqa: PLC0415 - keeps --help light
    from streamq.cli.run_enqueue import send  # noqa: PLC0415

    sent = send(server, name, [json_or_text(arg) for arg in args], kwargs, options, force=force)
    if as_json:
        output.result_json(sent)
    else:
        if sent["replaced"]:
            output.note("streamq: replaced the waiting message of this task")
        elif not sent["fresh"]:
            output.note("streamq: not enqueued: this task already holds the task id or dedup key")
        output.result(sent["task_id"])
    if (reason := output.unwritten()) is not None:  # no error: whoever sees one sends it again
        output.note(f"streamq: the task id is {sent['task_id']}; standard output cannot be written: {reason}")


def _kwargs(kwargs_json: str | None, pairs: tuple[str, ...]) -> dict[str, Any]:
    import orjson  # noqa: PLC0415 - keeps --help light

    try:
        kwargs = orjson.loads(kwargs_json) if kwargs_json else {}
    except orjson.JSONDecodeError as error:
        raise CommandLineError(f"--kwargs is not JSON ({error}); {_KWARGS_REMEDY}") from error
    if not isinstance(kwargs, dict):
        raise CommandLineError(f"--kwargs is not a JSON object; {_KWARGS_REMEDY}")
    check_whole_numbers(kwargs_json or "{}", kwargs)
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not key or not separator:
            raise CommandLineError(f"-k {pair}: write -k key=value")
        if key in kwargs:
            raise CommandLineError(f"-k {pair}: {key!r} is given twice; give it once")
        kwargs[key] = json_or_text(value)
    return kwargs
