"""One test that uses the fixtures of the pytest plugin: its broker, its worker in the background, its `run_tasks`.

It knows nothing of pytest: `pytest_plugin` says what the test wants, `pytest_runners` opens these where the test runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import anyio

from streamq.broker import RedisBroker
from streamq.diagnostics.safe_text import repr_of
from streamq.embedded import MemoryServer
from streamq.errors import ConfigurationError
from streamq.tasks.task import Task
from streamq.testing.suite_broker import SuiteBroker
from streamq.testing.suite_clock import SuiteClock, refuse_frozen_loop
from streamq.testing.task_runs import RunTasks
from streamq.worker import Worker

_GRACE = 1.0  # seconds that runs have to end after the test
_SCANNED = 500  # keys that one step of the clean-up looks at


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tasks of one test are. `clock` can be moved, None: it cannot. `cleans`: the keys must be removed."""

    url: str
    clock: SuiteClock | None
    options: dict[str, Any]
    cleans: bool = False


@dataclass(frozen=True, slots=True)
class Suite:
    """What one test wants.

    `url` is that of its server; "memory://" is one of its own, whose clock can be moved, and which begins at `now`
    (Unix seconds; None: the time of this machine). `tasks` are known to its workers, the more certain first. The
    options are those of `RedisBroker` and `Worker`.
    """

    url: str = "memory://"
    eager: bool = False
    now: float | None = None
    tasks: tuple[Task[Any, Any], ...] = ()
    broker_options: Mapping[str, Any] = field(default_factory=dict)
    worker_options: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def server(self) -> Iterator[Place]:
        """Give out a place that nobody else has: a server in the process, or a namespace of one that others use."""
        refuse_frozen_loop()
        own, options = f"streamq-test-{uuid4().hex[:12]}", dict(self.broker_options)
        if self.url.rstrip("/") == "embedded:":  # each broker would start a server of its own
            with TemporaryDirectory(prefix="streamq-test-") as folder:
                yield Place(f"embedded://{folder}", None, options)
            return
        if self.url.rstrip("/") != "memory:":
            cleans = not {"namespace", "queue_name"} & options.keys()
            yield Place(self.url, None, options | ({"namespace": own} if cleans else {}), cleans=cleans)
            return
        clock = SuiteClock(self.now)
        MemoryServer.named(own, clock=clock.now)
        try:
            yield Place(f"memory://{own}", clock, options)
        finally:
            MemoryServer.discard(own)

    @asynccontextmanager
    async def open_broker(self) -> AsyncGenerator[SuiteBroker, None]:
        """Open the broker of an async test."""
        with self.server() as place:
            async with SuiteBroker(place.url, suite_clock=place.clock, **place.options) as broker:
                try:
                    yield self._ready(broker)
                finally:
                    if place.cleans:
                        await _remove_keys(broker)

    def _ready(self, broker: SuiteBroker) -> SuiteBroker:
        broker.run_tasks = RunTasks(broker, self.tasks, self.worker_options)
        if self.eager:
            broker.run_eagerly = broker.run_tasks.eagerly
        return broker

    def run_tasks(self, broker: Any) -> Any:
        """Return what runs the tasks of a broker. Raises ConfigurationError for what is no broker of streamq's."""
        if (own := getattr(broker, "run_tasks", None)) is not None:  # a broker of a suite, sync ones too
            return own
        return RunTasks(_checked(broker, "run_tasks"), self.tasks, self.worker_options)

    @asynccontextmanager
    async def run_worker(self, broker: Any) -> AsyncGenerator[Worker, None]:
        """Run a worker in the background. What still runs a second after the end of the block is cancelled.

        Raises what ended the worker before that.
        """
        known = {task.name: task for task in reversed([*self.tasks, *getattr(broker, "sent", {}).values()])}
        if not known:
            raise ConfigurationError(
                "the worker of this test knows no task: import one into the module of the test, or name some by "
                "@pytest.mark.streamq(tasks=[...]) or their modules by the ini option streamq_tasks"
            )
        options: dict[str, Any] = {"grace_period": _GRACE, **self.worker_options}
        worker = Worker(_checked(broker, "worker"), known.values(), **options)
        failed: list[BaseException] = []
        async with anyio.create_task_group() as group:
            ready = anyio.Event()
            group.start_soon(_run, worker, failed, ready)
            await ready.wait()
            if isinstance(broker, SuiteBroker):
                broker.served = frozenset(known)
            try:
                if not failed:
                    yield worker
            finally:
                worker.stop()
        if failed:
            if isinstance(failed[0], SystemExit):  # itself it would end the event loop of the test
                raise RuntimeError(f"the worker of this test was ended by {failed[0]!r}") from failed[0]
            raise failed[0]


class _Ready:
    """The `task_status` of a worker: sets an event once the worker reads."""

    def __init__(self, ready: anyio.Event) -> None:
        self._ready = ready

    def started(self, value: object = None) -> None:  # noqa: ARG002 - as anyio has it
        """Note that the worker reads."""
        self._ready.set()


async def _run(worker: Worker, failed: list[BaseException], ready: anyio.Event) -> None:
    """Run a worker. An error is kept: raised here it would cancel the test, which then could not say more."""
    try:
        await worker.run(task_status=_Ready(ready))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - raised by `run_worker`
        failed.append(error)
    finally:
        ready.set()


def _checked(broker: Any, fixture: str) -> RedisBroker:
    if isinstance(broker, RedisBroker):
        return broker
    raise ConfigurationError(
        f"the fixture {fixture} of streamq got {repr_of(broker)} from a fixture `broker` of your own: let that yield "
        f"an open RedisBroker, or use streamq_broker and streamq_{fixture}"
    )


async def _remove_keys(broker: SuiteBroker) -> None:
    """Remove all keys of the namespace of a test from a server that others use, too."""
    cursor: Any = 0
    with anyio.CancelScope(shield=True):
        while True:
            cursor, keys = await broker.client.command(
                "SCAN", cursor, "MATCH", f"{broker.keys.namespace}:*", "COUNT", _SCANNED
            )
            if keys:
                await broker.client.command("UNLINK", *keys)
            if not int(cursor):
                return
