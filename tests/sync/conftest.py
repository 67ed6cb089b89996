"""A worker in a thread of its own, for programs without an event loop."""

from __future__ import annotations

import threading
import zlib
from contextlib import contextmanager

import anyio
import pytest

from streamq import RedisBroker, Worker
from tests.conftest import BACKENDS
from tests.servers import REAL_KINDS, available


@contextmanager
def working(url, *tasks, backend="asyncio", **options):
    """Run a worker of these tasks in a thread, and yield it when it has started."""
    started, workers, errors = threading.Event(), [], []

    async def work() -> None:
        async with RedisBroker(url) as broker, anyio.create_task_group() as group:
            workers.append(Worker(broker, tasks, grace_period=2, **options))
            await group.start(workers[0].run)
            started.set()

    def run() -> None:
        try:
            anyio.run(work, backend=backend)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            started.set()

    thread = threading.Thread(target=run, name="worker")
    thread.start()
    try:
        assert started.wait(20)
        yield workers[0]
    finally:
        for worker in workers:
            worker.stop()
        thread.join(20)
    assert not errors


@pytest.fixture
def real_server(request, shared_server):
    """An empty server that is a process, Redis or Valkey: which one is drawn by the name of the test."""
    kind = REAL_KINDS[zlib.crc32(request.node.name.encode()) % 2]
    if not available(kind):
        pytest.skip(f"no {kind}-server on PATH")
    return shared_server(kind)


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """The event loop of the worker: a test of a SyncBroker has none of its own."""
    return request.param
