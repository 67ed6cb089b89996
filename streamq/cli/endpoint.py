"""The endpoint for probes and scrapes of a worker process, and of `streamq metrics`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from streamq.cli.usage_errors import CommandLineError
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.exporters import Endpoint
    from streamq.worker import Worker

log = SafeLog("streamq.cli")

Address = tuple[str, int]  # a host and a port


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
async def serving(option: str, endpoint: Endpoint | None) -> AsyncIterator[None]:
    """Serve an endpoint around a block; None serves nothing. Errors of the block come out as they are.

    Raises CommandLineError if nothing can listen there.
    """
    if endpoint is None:
        yield
        return
    failed: Exception | None = None
    async with anyio.create_task_group() as group:
        try:
            port = await _started(group, option, endpoint)
            log.info("probes and metrics at http://%s:%d", _in_url(endpoint.host), port, event="endpoint_started",
                     extra={"host": endpoint.host, "port": port})  # fmt: skip
            yield
        except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
            failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _started(group: anyio.abc.TaskGroup, option: str, endpoint: Endpoint) -> int:
    try:
        port: int = await group.start(endpoint.serve)
    except ConfigurationError as error:
        raise CommandLineError(f"{option} {_in_url(endpoint.host)}:{endpoint.port}: {error}") from None
    return port


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
