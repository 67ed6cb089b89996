"""The server, the keys and the worker of the demo. Removes its keys at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import anyio
import anyio.abc

from streamq.broker import RedisBroker
from streamq.cli.child_process import WorkerProcess
from streamq.cli.demo import tasks
from streamq.cli.server_options import ServerOptions
from streamq.cli.usage_errors import CommandLineError
from streamq.cli.worker_settings import Settings
from streamq.client.address import Address
from streamq.embedded import EmbeddedServer
from streamq.errors import BrokerError, MissingExtraError
from streamq.wire.keys import STATS_WINDOW
from streamq.worker import Worker

LEASE = 2.0  # seconds: short, so that the tasks of a killed worker are taken over soon


@asynccontextmanager
async def server_for(url: str | None) -> AsyncIterator[tuple[str, str]]:
    """Yield the URL and the namespace. On a user's server the namespace is random."""
    namespace = f"streamq-demo-{secrets.token_hex(4)}"
    if url is not None and not url.startswith("embedded:"):
        yield url, namespace
        return
    try:
        server = EmbeddedServer((url or "embedded://").partition("://")[2] or None)
    except MissingExtraError:
        if url is not None or importlib.util.find_spec("fakeredis") is None:
            raise CommandLineError(
                "streamq demo needs an extra: pip install 'streamq[demo]', or a server with --url"
            ) from None
        yield "memory://streamq-demo", "queue"
        return
    async with server:
        yield server.url, "queue" if url is None else namespace


class DemoWorker(Protocol):
    """The worker of the demo: a process, or a task in this process if the server is in this process."""

    pid: int

    async def ended(self) -> int:
        """Wait until the worker ends and return its exit code."""
        ...

    def kill(self) -> None:
        """Kill the worker with SIGKILL."""

    def last_error_line(self) -> str:
        """Return the last line that it wrote to stderr."""
        ...


class WorkerStarter:
    """Starts workers and makes sure that each has ended."""

    def __init__(self, url: str, namespace: str, *, backend: Any, concurrency: int) -> None:
        self.settings = Settings(
            modules=("streamq.cli.demo.tasks",), server=ServerOptions(url, namespace), concurrency=concurrency,
            backend=backend, burst=True, lease=LEASE, grace=5.0, log_level="error",
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<WorkerStarter for {self.settings.server.namespace}>"

    @asynccontextmanager
    async def worker(self, broker: RedisBroker) -> AsyncIterator[DemoWorker]:
        """Start a worker. Kill it at the end if it still runs."""
        if broker.url.startswith("memory:"):
            async with anyio.create_task_group() as group:
                local = _InProcessWorker(broker, self.settings)
                group.start_soon(local.run)
                yield local
                group.cancel_scope.cancel()
            return
        with tempfile.TemporaryFile() as stderr:
            child = await WorkerProcess.start(self.settings, stderr=stderr)
            try:
                async with child.stream:
                    yield _ProcessWorker(child, stderr)
            finally:
                if child.process.returncode is None:
                    child.process.kill()
                with anyio.CancelScope(shield=True):
                    await child.process.wait()


class _ProcessWorker:
    def __init__(self, child: WorkerProcess, stderr: Any) -> None:
        self._child = child
        self._stderr = stderr
        self.pid: int = child.process.pid

    async def ended(self) -> int:
        return await self._child.process.wait()

    def kill(self) -> None:
        self._child.process.kill()

    def last_error_line(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return str(lines[-1]) if lines else "it wrote nothing to stderr"


class _InProcessWorker:
    """A worker in this process, for `memory://`."""

    pid = 0

    def __init__(self, broker: RedisBroker, settings: Settings) -> None:
        self._ended = anyio.Event()
        self._worker = Worker(
            broker, [tasks.index], middleware=tasks.middleware, lifespan=tasks.lifespan, burst=True,
            concurrency=settings.concurrency, visibility_timeout=settings.lease, grace_period=settings.grace,
        )  # fmt: skip

    async def run(self) -> None:
        await self._worker.run()
        self._ended.set()

    async def ended(self) -> int:
        await self._ended.wait()
        return 0

    def kill(self) -> None:
        raise RuntimeError("a worker in this process cannot be killed without the demo: --kill-worker needs a server")

    def last_error_line(self) -> str:
        return ""


async def clean_up(broker: RedisBroker, since: float) -> None:
    """Remove all keys of the demo by name. Reads no other key of the server.

    Uses a new connection, because the broker's is closed when the demo is interrupted.
    """
    keys = broker.keys
    names = [keys.dead, tasks.effects_key(broker), tasks.runs_key(broker)]
    names += [name for tier in keys.tiers for name in dataclasses.astuple(tier)]
    windows = range(int(since - STATS_WINDOW), int(time.time()) + 2 * STATS_WINDOW, STATS_WINDOW)
    names += [keys.stats(at) for at in windows]
    with anyio.move_on_after(5, shield=True), contextlib.suppress(BrokerError):
        async with RedisBroker(broker.url, namespace=keys.namespace) as cleanup_broker:
            await cleanup_broker.store.one(("DEL", *names))


def redis_cli(url: str) -> str:
    """Return the redis-cli command for a URL, without its password."""
    if url.startswith("memory:"):
        return "redis-cli"
    if urlsplit(url).scheme == "unix":
        return f"redis-cli -s {Address.parse(url).path}"
    address = Address.parse(url)
    messages = ["redis-cli", "-h", address.host, "-p", str(address.port)]
    messages += ["-n", str(address.db)] if address.db else []
    messages += ["--tls"] if address.scheme == "rediss" else []
    messages += ["--user", address.username] if address.username else []
    messages += ["--askpass"] if address.password else []
    return " ".join(messages)
