"""`streamq demo`: the options."""

from __future__ import annotations

from typing import Any

import click


@click.command(short_help="See it work on real input, without a server.")
@click.option("--url", metavar="URL", envvar="STREAMQ_DEMO_URL", show_envvar=True,
              help="Run on this server, under keys of its own that are removed at the end. "
              "[default: an embedded server]")  # fmt: skip
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True,
              show_envvar=True, help="The worker's event loop.")  # fmt: skip
@click.option("--kill-worker", is_flag=True, show_envvar=True,
              help="Kill the worker with SIGKILL half way, start another, and count that nothing is lost.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=10), show_envvar=True, help="Index only so many files.")
@click.option("--keep", is_flag=True, show_envvar=True,
              help="Keep what lies in Redis afterwards, and an embedded server until Ctrl-C.")  # fmt: skip
@click.option("--live/--no-live", "live", default=None, show_envvar=True,
              help="Draw the progress. [default: on a terminal]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print the summary as JSON.")
def demo(**options: Any) -> None:
    """Index the source of Python's standard library with a task per file.

    Thousands of real files are parsed with ast and counted. The modules that are imported most
    are critical, the other packages standard, test/ bulk. Files that do not parse (the library
    ships some) are retried and become dead letters with their real errors.
    """
    from streamq.cli.demo.show import show  # noqa: PLC0415 - keeps --help light

    show(**options)
