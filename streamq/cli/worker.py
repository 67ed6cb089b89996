"""`streamq worker`: the options, and whether this process works or watches over others that do."""

from __future__ import annotations

from typing import Any

import click

from streamq.cli.options import Where, duration, processes, weights, where_options
from streamq.cli.usage_errors import Problem

_SERVER_OPTIONS = ("url", "namespace", "group", "queue")


@click.command(no_args_is_help=True, short_help="Run the tasks of modules.")
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@where_options
@click.option("--concurrency", "-c", type=click.IntRange(min=1), default=100, show_default=True, show_envvar=True,
              help="Tasks that run at once in one process.")  # fmt: skip
@click.option("--tiers", "weights", type=weights, metavar="TIER=WEIGHT,...", envvar="STREAMQ_WORKER_TIERS",
              show_envvar=True, help="Tiers to serve, with weights: critical=6,standard=3,bulk=1. A name alone keeps "
              "its weight. [default: all]")  # fmt: skip
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True,
              show_envvar=True, help="The event loop.")  # fmt: skip
@click.option("--uvloop/--no-uvloop", "uvloop", default=None, show_envvar=True,
              help="asyncio on uvloop. [default: where it is installed]")  # fmt: skip
@click.option("--processes", "-p", type=processes, metavar="N|auto", default="1", show_default=True, show_envvar=True,
              help="Worker processes; one that dies is replaced. auto: one for each usable core.")  # fmt: skip
@click.option("--burst", is_flag=True, show_envvar=True, help="End once the queue is empty.")
@click.option("--grace", type=duration, default="25s", show_default=True, show_envvar=True,
              help="How long running tasks may take to finish after the first SIGTERM or Ctrl-C.")  # fmt: skip
@click.option("--lease", type=duration, default="30s", show_default=True, show_envvar=True,
              help="The visibility timeout: how soon others take over from a worker that died. Tasks may run "
              "longer.")  # fmt: skip
@click.option("--reload", is_flag=True, show_envvar=True, help="Restart when a source file of the modules changes.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, show_envvar=True,
              help="JSON is one object per line: ts, level, logger, message, exc.")  # fmt: skip
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
              default="info", show_default=True, show_envvar=True,
              help="The least level that is logged; the banner counts as info.")  # fmt: skip
@click.option("--name", show_envvar=True, help="The consumer's name. [default: host, process and a random part]")
@click.pass_context
def worker(ctx: click.Context, /, **given: Any) -> None:
    """Run the tasks of modules until told to stop.

    MODULE is a module (app.tasks), an attribute of one (app.tasks:send, a task or a list of
    tasks), or a path (app.py). The current directory is importable. Every task in a module's
    namespace counts, imported ones included.

    \b
    A module may also define
      broker      a RedisBroker: it is opened by the worker, and handlers may use it;
                  its server then wins over --url and its like
      middleware  a MiddlewareChain, put around every run
      lifespan    an async context manager function around the whole run:
                  lifespan(worker); what it yields is each delivery's state

    The first SIGTERM or Ctrl-C drains: nothing new starts, unstarted tasks are handed back,
    running ones get the grace period. The second hands everything back and exits now.
    """
    where = Where(**{name: given.pop(name) for name in _SERVER_OPTIONS})
    source = click.core.ParameterSource.COMMANDLINE
    commanded = tuple(name for name in _SERVER_OPTIONS if ctx.get_parameter_source(name) is source)
    from streamq.cli.worker_settings import Settings  # noqa: PLC0415 - keeps --help light

    settings = Settings(where=where, commanded=commanded, **given)
    _check(settings)
    if settings.supervised:
        from streamq.cli.supervisor import supervise  # noqa: PLC0415

        ctx.exit(supervise(settings))
    from streamq.cli.worker_process import serve  # noqa: PLC0415

    serve(settings)


def _check(settings: Any) -> None:
    """Refuse what contradicts itself before anything is started."""
    if settings.where.queue is not None and settings.weights is not None:
        raise Problem("--queue and --tiers: a single stream has no tiers; give one of them")
    if settings.backend == "trio" and settings.uvloop:
        raise Problem("--uvloop and --backend trio: uvloop is a loop of asyncio; drop one of them")
    if settings.lease < 0.1:
        raise Problem(f"--lease {settings.lease:g}s is too short: give at least 0.1s")
    url = settings.where.url or ""
    private = url.startswith("memory:") or url.rstrip("/") == "embedded:"
    if settings.processes > 1 and private:
        raise Problem(
            f"--url {url} with --processes: each would have a server of its own; use embedded:///path/to/data"
        )
    if settings.processes > 1 and settings.name is not None and "/" in settings.name:
        raise Problem(f"--name {settings.name!r}: no '/' in it with --processes, which adds one")
