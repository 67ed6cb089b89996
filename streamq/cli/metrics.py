"""`streamq metrics`: serve the figures of a queue to Prometheus, from a process of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from streamq.cli.options import address
from streamq.cli.server_options import ServerOptions, server_options


@click.command(short_help="Serve the figures of a queue to Prometheus.")
@server_options
@click.option("--listen", type=address, metavar="HOST:PORT", default="127.0.0.1:9464", show_default=True,
              show_envvar=True, help="Where to listen. 0.0.0.0:9464 is every address of this machine.")  # fmt: skip
@click.option("--statsd", type=address, metavar="HOST:PORT", show_envvar=True,
              help="Send the state of the queue to a StatsD server, too.")  # fmt: skip
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True,
              show_envvar=True, help="Event loop.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, show_envvar=True,
              help="json: one object per line.")  # fmt: skip
def metrics(
    listen: tuple[str, int], statsd: tuple[str, int] | None, backend: str, log_format: str, **given: Any
) -> None:
    """Serve /metrics, /livez and /readyz until stopped by Ctrl-C or SIGTERM.

    The figures are those of the whole queue: one such process is enough, and a worker with
    --metrics serves the same. Nothing on the server is changed, and the rights of a monitor are
    enough (streamq acl --role monitor). It is ready when the figures were read lately; while the
    server is away /metrics says streamq_up 0.
    """
    from streamq.cli import logs  # noqa: PLC0415 - keeps --help light
    from streamq.cli.exporters import beside, make_endpoint, make_statsd, start_endpoint, start_statsd  # noqa: PLC0415
    from streamq.cli.run_command import check_backend, run  # noqa: PLC0415

    check_backend(backend)
    logs.set_up(log_format, "info")
    broker = ServerOptions.take(given).lasting_broker()
    endpoint = make_endpoint("--listen", listen, broker)

    async def main() -> None:
        services = [partial(start_endpoint, "--listen", endpoint)]
        if statsd is not None:
            services.append(partial(start_statsd, make_statsd(statsd, broker)))
        async with beside(*services), broker:
            await endpoint.collector.refresh_forever()  # so that /readyz speaks of now

    run(main, backend=backend)
