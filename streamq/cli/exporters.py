"""What tells others of a worker process, or of a queue: the endpoint for probes and scrapes, and StatsD."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio

from streamq.cli.usage_errors import CommandLineError
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from streamq.broker import RedisBroker
    from streamq.exporters import Endpoint, StatsdExporter
    from streamq.worker import Worker

log = SafeLog("streamq.cli")

Address = tuple[str, int]  # a host and a port
_STATSD_INTERVAL: Final = 10.0  # seconds: what a StatsD server flushes by default


def make_endpoint(
    option: str, address: Address, broker: RedisBroker, worker: Worker | None = None, *, reuse_port: bool = False
) -> Endpoint:
    """Return an endpoint at the address that an option names. Raises CommandLineError if its extra is missing."""
    try:
        from streamq.exporters import Endpoint, QueueCollector  # noqa: PLC0415 - few programs need them
    except MissingExtraError as error:
        raise CommandLineError(f"{option}: {error}") from None
    from streamq.monitoring import QueueMonitor  # noqa: PLC0415

    host, port = address
    collector = QueueCollector(QueueMonitor(broker=broker))
    return Endpoint(collector, worker=worker, host=host, port=port, reuse_port=reuse_port)


@asynccontextmanager
async def beside(*services: Callable[[TaskGroup], Awaitable[None]]) -> AsyncIterator[None]:
    """Start services around a block, and cancel them at its end. Errors of the block come out as they are."""
    if not services:
        yield
        return
    failed: Exception | None = None
    async with anyio.create_task_group() as group:
        try:
            for start in services:
                await start(group)
            yield
        except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
            failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def start_endpoint(option: str, endpoint: Endpoint, group: TaskGroup) -> None:
    """Serve an endpoint. Raises CommandLineError if nothing can listen there."""
    try:
        port: int = await group.start(endpoint.serve)
    except ConfigurationError as error:
        raise CommandLineError(f"{option} {_in_url(endpoint.host)}:{endpoint.port}: {error}") from None
    log.info("probes and metrics at http://%s:%d", _in_url(endpoint.host), port, event="endpoint_started",
             extra={"host": endpoint.host, "port": port})  # fmt: skip


def make_statsd(address: Address, broker: RedisBroker | None = None) -> StatsdExporter:
    """Return what sends to the StatsD server at an address: the state of a broker's queue too, if it is given."""
    from streamq.exporters import StatsdExporter  # noqa: PLC0415 - few workers need it

    if broker is None:
        return StatsdExporter(*address)
    from streamq.monitoring import QueueMonitor  # noqa: PLC0415

    return StatsdExporter(*address, interval=_STATSD_INTERVAL, monitor=QueueMonitor(broker=broker))


async def start_statsd(exporter: StatsdExporter, group: TaskGroup) -> None:
    """Send to a StatsD server."""
    await group.start(exporter.send_forever)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
