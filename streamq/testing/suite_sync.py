"""What a test that is not async gets: a `SyncBroker`, and `run_tasks` and a worker that block.

The tasks run in an event loop of asyncio: for `run_tasks` in one that lasts for the call, for the worker in a thread.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

from streamq.handlers.context import delivery_var
from streamq.sync.broker import SyncBroker
from streamq.sync.handle import SyncHandle, SyncWorkflow
from streamq.tasks.task import Call, Task
from streamq.testing.suite import Place, Suite
from streamq.testing.suite_broker import SuiteBroker, note_sent
from streamq.testing.task_runs import EndedTask, RunTasks, raise_errors
from streamq.worker import Worker

_SCANNED = 500  # keys that one step of the clean-up looks at


class SyncSuiteBroker(SyncBroker):
    """The broker of a test that is not async: as `SuiteBroker`."""

    def __init__(self, suite: Suite, place: Place) -> None:
        super().__init__(place.url, **place.options)
        self.sent: dict[str, Task[Any, Any]] = {}
        self.served: frozenset[str] | None = None
        self.run_tasks = SyncRunTasks(suite, place, self)
        self.run_eagerly: Callable[[], object] | None = self.run_tasks.eagerly if suite.eager else None
        note_sent(self._broker, self, place.clock)

    def _ran(self) -> None:
        if self.run_eagerly is not None and delivery_var.get() is None:
            self.run_eagerly()

    def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> SyncHandle[Any]:
        """Send one task, as `SyncBroker` does; in eager mode, run it."""
        handle: SyncHandle[Any] = super().enqueue(task, *args, **kwargs)
        self._ran()
        return handle

    def enqueue_many(self, calls: Iterable[Call[Any]]) -> list[SyncHandle[Any]]:
        """Send many tasks, as `SyncBroker` does; in eager mode, run them."""
        handles = super().enqueue_many(calls)
        self._ran()
        return handles

    def start(self, flow: Any, /, *, workflow_id: str | None = None) -> SyncWorkflow[Any]:
        """Start a workflow, as `SyncBroker` does; in eager mode, run it."""
        workflow: SyncWorkflow[Any] = super().start(flow, workflow_id=workflow_id)
        self._ran()
        return workflow


@dataclass(slots=True)
class SyncRunTasks:
    """Runs the tasks of the queue, in a test that is not async: `run_tasks()`. As `RunTasks`, and it blocks."""

    suite: Suite
    place: Place
    broker: SyncSuiteBroker
    _ended: tuple[EndedTask, ...] = ()

    def __call__(
        self, *, during: float | timedelta | None = None, check: bool = True, timeout: float | None = 30.0
    ) -> list[EndedTask]:
        """Run what waits, and what comes of it, until nothing is left. As `RunTasks`; see there."""
        self._run(during, timeout)
        ended, self._ended = [*self._ended], ()
        if check:
            raise_errors(ended)
        return ended

    def eagerly(self) -> None:
        """Run what waits, for the eager mode: the next call returns what became of it."""
        self._run(None, None)

    def _run(self, during: float | timedelta | None, timeout: float | None) -> None:
        self._ended += (*anyio.run(partial(self._run_all, during, timeout)),)

    async def _run_all(self, during: float | timedelta | None, limit: float | None) -> list[EndedTask]:
        async with opened(self.place, self.broker) as broker:
            run_tasks = RunTasks(broker, self.suite.tasks, self.suite.worker_options)
            return await run_tasks(during=during, check=False, timeout=limit)


@asynccontextmanager
async def opened(place: Place, sync: SyncSuiteBroker) -> AsyncGenerator[SuiteBroker, None]:
    """Open the broker of a worker for the queue of a `SyncBroker`."""
    async with SuiteBroker(place.url, suite_clock=place.clock, **place.options) as broker:
        broker.sent, broker.served = sync.sent, sync.served
        yield broker


@contextmanager
def open_sync_broker(suite: Suite) -> Iterator[SyncSuiteBroker]:
    """Open the broker of a test that is not async."""
    with suite.server() as place, SyncSuiteBroker(suite, place) as broker:
        try:
            yield broker
        finally:
            if place.cleans:
                _remove_keys(broker)


@contextmanager
def run_worker_in_thread(suite: Suite, broker: SyncSuiteBroker) -> Iterator[Worker]:
    """Run a worker in the event loop of another thread, as `Suite.run_worker` does."""

    @asynccontextmanager
    async def running() -> AsyncGenerator[Worker, None]:
        async with opened(broker.run_tasks.place, broker) as own, suite.run_worker(own) as worker:
            broker.served = own.served
            yield worker

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running()) as worker:
        yield worker


def _remove_keys(broker: SyncBroker) -> None:
    """Remove all keys of the namespace of a test from a server that others use, too."""
    client: Any = broker.client
    cursor: Any = 0
    while True:
        cursor, keys = client.scan(cursor, match=f"{broker.keys.namespace}:*", count=_SCANNED)
        if keys:
            client.unlink(*keys)
        if not int(cursor):
            return
