"""`streamq demo`: the options."""

from __future__ import annotations

from typing import Any

import click

from streamq.cli.options import WholeNumber


@click.command(short_help="Run the queue on real input, without a server.")
@click.option("--url", metavar="URL", envvar="STREAMQ_DEMO_URL", show_envvar=True,
              help="Run on this server. The demo uses its own keys and removes them at the end. "
              "[default: an embedded server]")  # fmt: skip
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True,
              show_envvar=True, help="Event loop of the worker.")  # fmt: skip
@click.option("--kill-worker", is_flag=True, show_envvar=True,
              help="Kill the worker with SIGKILL half way, start another, and check that no task is lost.")  # fmt: skip
@click.option("--limit", type=WholeNumber(10, 1_000_000_000), show_envvar=True, help="Most files to index.")
@click.option("--keep", is_flag=True, show_envvar=True,
              help="Keep the demo's keys, and keep an embedded server until Ctrl-C.")  # fmt: skip
@click.option("--live/--no-live", "live", default=None, show_envvar=True,
              help="Show progress bars. [default: on a terminal]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print the summary as JSON.")
def demo(**options: Any) -> None:
    """Index the source files of Python's standard library, one task for each file.

    Each task parses a file with ast and counts its functions, classes and imports. The modules that
    are imported most are critical, other modules standard, test/ bulk. Files that do not parse (the
    library has some) are retried and become dead letters.
    """
    from streamq.cli.demo.run_demo import run_demo  # noqa: PLC0415 - keeps --help light

    run_demo(**options)
