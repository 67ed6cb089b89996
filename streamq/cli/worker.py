"""`streamq worker`: the options. Runs a worker in this process, or a supervisor of worker processes."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import click

from streamq.cli.app import APP, project_app
from streamq.cli.options import WholeNumber, address, duration, names, processes, size, weights
from streamq.cli.server_options import ServerOptions, worker_server_options
from streamq.cli.usage_errors import CommandLineError


@click.command(short_help="Run the tasks of modules.")
@click.argument("modules", nargs=-1, metavar="MODULE...")
@worker_server_options
@click.option("--concurrency", "-c", type=WholeNumber(1, 100_000), default=100, show_default=True, show_envvar=True,
              help="Most tasks that run at the same time in one process.")  # fmt: skip
@click.option("--max-prefetch", type=WholeNumber(0, 1_000_000), default=500, show_default=True, show_envvar=True,
              help="Most tasks that one process holds beyond those that run.")  # fmt: skip
@click.option("--prefetch-bytes", type=WholeNumber(1 << 10, 1 << 40), default=64 << 20, show_default=True,
              show_envvar=True, help="Most bytes of messages above 4 KiB that one process holds.")  # fmt: skip
@click.option("--tiers", "weights", type=weights, metavar="TIER=WEIGHT,...", envvar="STREAMQ_WORKER_TIERS",
              show_envvar=True, help="Tiers to serve, with weights: critical=6,standard=3,bulk=1. A name without a "
              "weight keeps the tier's own. [default: all]")  # fmt: skip
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True,
              show_envvar=True, help="Event loop.")  # fmt: skip
@click.option("--uvloop/--no-uvloop", "uvloop", default=None, show_envvar=True,
              help="Run asyncio on uvloop. [default: if it is installed]")  # fmt: skip
@click.option("--processes", "-p", type=processes, metavar="N|auto", default="1", show_default=True, show_envvar=True,
              help="Worker processes. One that ends is replaced. auto: one for each usable core.")  # fmt: skip
@click.option("--max-rss", type=size, metavar="SIZE", show_envvar=True,
              help="Replace a process that has more memory than this: 300MiB, 2GiB.")  # fmt: skip
@click.option("--max-tasks", type=WholeNumber(1, 1_000_000_000), show_envvar=True,
              help="Replace a process after this many runs, and up to a tenth more.")  # fmt: skip
@click.option("--task-processes", type=WholeNumber(1, 1_024), metavar="N", show_envvar=True,
              help="Processes of one worker process for tasks with run_in='process'. [default: the usable cores]"
              )  # fmt: skip
@click.option("--max-tasks-per-process", type=WholeNumber(1, 1_000_000_000), metavar="N", show_envvar=True,
              help="Such a process is replaced after N tasks.")  # fmt: skip
@click.option("--process-max-rss", type=size, metavar="SIZE", show_envvar=True,
              help="Such a process is replaced when a task leaves it with more memory.")  # fmt: skip
@click.option("--process-initializer", metavar="MODULE:NAME", show_envvar=True,
              help="A function that such a process calls first, such as app.tasks:prepare.")  # fmt: skip
@click.option("--burst", is_flag=True, show_envvar=True, help="Exit when the queue is empty.")
@click.option("--grace", type=duration, default="25s", show_default=True, show_envvar=True,
              help="Grace period for running tasks after the first SIGTERM or Ctrl-C.")  # fmt: skip
@click.option("--lease", type=duration, default="30s", show_default=True, show_envvar=True,
              help="Visibility timeout: after this time other workers take over the tasks of a worker that "
              "died. Tasks may run longer.")  # fmt: skip
@click.option("--max-crashes", type=WholeNumber(2, 1000), default=3, show_default=True, show_envvar=True,
              help="Workers that a task may crash before it is dead-lettered (crash_loop).")  # fmt: skip
@click.option("--unknown-wait", type=duration, default="5m", show_default=True, show_envvar=True,
              help="A task that no worker knows is dead-lettered (unknown_task) after this time.")  # fmt: skip
@click.option("--reload", is_flag=True, show_envvar=True, help="Restart when a source file of the modules changes.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, show_envvar=True,
              help="json: one object per line, with ts, level, logger, pid, message, event, task_id and more."
              )  # fmt: skip
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
              default="info", show_default=True, show_envvar=True,
              help="Lowest level to log. The banner has the level info.")  # fmt: skip
@click.option("--log-failures", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
              default="info", show_default=True, show_envvar=True,
              help="Level of the line about each failed attempt. That of a dead letter is always error."
              )  # fmt: skip
@click.option("--listener", "listeners", multiple=True, metavar="MODULE:NAME", show_envvar=True,
              help="A function that gets every event, such as app.metrics:on_event. Repeatable.")  # fmt: skip
@click.option("--metrics", type=address, metavar="HOST:PORT", show_envvar=True,
              help="Serve /livez, /readyz and /metrics there. With --processes, process N listens at PORT + N - 1."
              )  # fmt: skip
@click.option("--statsd", type=address, metavar="HOST:PORT", show_envvar=True,
              help="Send counts and times of runs to a StatsD server, such as 127.0.0.1:8125.")  # fmt: skip
@click.option(
    "--name",
    show_envvar=True,
    help="Name of the worker; its consumer has a random part after it. [default: host and process]",
)
@click.pass_context
def worker(ctx: click.Context, /, **given: Any) -> None:
    """Run the tasks of modules until stopped.

    MODULE is a module (app.tasks), an attribute of one (app.tasks:send, a task or a list of
    tasks), or a path (app.py). The current directory is importable. All tasks in a module's
    namespace are run, imported ones included. Without MODULE, those that STREAMQ_APP or
    [tool.streamq] in pyproject.toml names.

    \b
    A module may also define
      broker      a RedisBroker: the worker opens it, and handlers may use it;
                  it replaces --url, --namespace, --group and --queue. To take
                  one of another name, write it as the MODULE: app.tasks:mail.
                  Of a SyncBroker the worker takes the settings
      middleware  a MiddlewareChain, put around every run
      lifespan    a function that returns an async context manager, called as
                  lifespan(worker) and open while the worker runs; the value that it
                  yields is each delivery's state

    The first SIGTERM or Ctrl-C drains: no new task starts, prefetched tasks are released, and
    running tasks get the grace period. The second releases the running tasks and exits now,
    the third exits at once. A worker that has not started yet ends at the first.

    With --max-rss or --max-tasks, a process that has passed its limit is replaced: another one
    starts, and once that reads the old one drains.

    Exit codes: 0 after a drain, a stop, or the end of --burst; 1 if the worker failed or could
    not stop in time; 2 for a usage error; 128 and the number of the signal after the third.
    """
    from streamq.cli.stop_signals import StopSignals  # noqa: PLC0415 - keeps --help light

    stops = StopSignals()
    stops.install()
    server = ServerOptions.take(given, has_app=False)
    given["modules"], folder = _modules(ctx, given["modules"])
    server = replace(server, app_folder=folder)
    from streamq.cli.worker_settings import Settings  # noqa: PLC0415 - keeps --help light

    settings = Settings(server=server, explicit_logging=_given(ctx, "log_format", "log_level"), **given)
    _check_combinations(settings)
    if settings.supervised:
        from streamq.cli.supervisor import supervise  # noqa: PLC0415

        ctx.exit(supervise(settings))
    from streamq.cli.worker_process import serve  # noqa: PLC0415

    serve(settings, stops)


def _given(ctx: click.Context, *names: str) -> tuple[str, ...]:
    """Return which of these options were given, on the command line or by their variables."""
    default = click.core.ParameterSource.DEFAULT
    return tuple(name for name in names if ctx.get_parameter_source(name) not in (default, None))


def _modules(ctx: click.Context, given: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """Return the modules to run, or else those of the app, and the folder of its project."""
    if given:
        return given, None
    if variable := names(os.environ.get(APP, "")):
        return tuple(variable), None
    found, folder = project_app()
    if not found:
        argument = next(param for param in ctx.command.params if param.name == "modules")
        raise click.MissingParameter(
            'pyproject.toml may name it: [tool.streamq] with app = "app.tasks"', ctx=ctx, param=argument
        )
    return found, folder


def _check_combinations(settings: Any) -> None:
    """Raise CommandLineError for options that contradict each other."""
    from streamq.cli.worker_settings import in_process  # noqa: PLC0415 - keeps --help light

    if settings.server.queue is not None and settings.weights is not None:
        raise CommandLineError("--queue and --tiers: a single stream has no tiers; give one of the two")
    if settings.backend == "trio" and settings.uvloop:
        raise CommandLineError("--uvloop and --backend trio: uvloop is an asyncio event loop; drop one of the two")
    if settings.metrics is not None and settings.metrics[1] + settings.processes - 1 > 65_535:
        raise CommandLineError(
            f"--metrics {settings.metrics[0]}:{settings.metrics[1]} with {settings.processes} processes: their ports "
            "go beyond 65535; give a lower one"
        )
    if settings.lease < 0.1:
        raise CommandLineError(f"--lease {settings.lease:g}s is too short: give at least 0.1s")
    url = settings.server.url or ""
    if (settings.processes > 1 or settings.recycles) and in_process(url):
        option = "--processes" if settings.processes > 1 else "--max-rss or --max-tasks"
        raise CommandLineError(
            f"--url {url.partition(':')[0]}:// with {option}: each process would have its own server; use embedded:///path/to/data"
        )
    if settings.processes > 1 and settings.name is not None and "/" in settings.name:
        raise CommandLineError(f"--name {settings.name!r}: with --processes, give a name without '/'")
