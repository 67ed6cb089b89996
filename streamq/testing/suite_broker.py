"""The broker of a test: remembers which tasks were sent, so that a worker can run them, and may run them at once.

All else is `RedisBroker`'s: messages are checked, encoded, sent and settled as anywhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from streamq.broker import RedisBroker
from streamq.errors import ConfigurationError
from streamq.handlers.context import delivery_var
from streamq.queue.results import Handle
from streamq.queue.sending import MessageBuilder
from streamq.queue.workflow_start import Workflow
from streamq.tasks.task import Call, Task
from streamq.testing.suite_clock import KnownServerClock, SuiteClock


class SuiteBroker(RedisBroker):
    """The broker of one test. `options` are those of `RedisBroker`.

    `suite_clock` is the clock of its server, None if that has a clock of its own. `sent` are the tasks that were sent,
    by their names. `served`: the names that the worker in the background knows; None without one. `run_eagerly` is
    called after each enqueue that no handler made.
    """

    def __init__(self, url: str, *, suite_clock: SuiteClock | None = None, **options: Any) -> None:
        if suite_clock is not None:
            options["clock"] = suite_clock.clock
        super().__init__(url, **options)
        self.suite_clock = suite_clock
        self.sent: dict[str, Task[Any, Any]] = {}
        self.served: frozenset[str] | None = None
        self.run_tasks: Any = None  # what runs its tasks
        self.run_eagerly: Callable[[], Awaitable[object]] | None = None
        note_sent(self, self, suite_clock)

    async def _ran(self) -> None:
        if self.run_eagerly is not None and delivery_var.get() is None:
            await self.run_eagerly()

    async def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Send one task, as `RedisBroker` does; in eager mode, run it."""
        handle: Handle[Any] = await super().enqueue(task, *args, **kwargs)
        await self._ran()
        return handle

    async def enqueue_many(self, calls: Iterable[Call[Any]]) -> list[Handle[Any]]:
        """Send many tasks, as `RedisBroker` does; in eager mode, run them."""
        handles = await super().enqueue_many(calls)
        await self._ran()
        return handles

    async def start(self, flow: Any, /, *, workflow_id: str | None = None) -> Workflow[Any]:
        """Start a workflow, as `RedisBroker` does; in eager mode, run it."""
        workflow: Workflow[Any] = await super().start(flow, workflow_id=workflow_id)
        await self._ran()
        return workflow


class NotesSent(Protocol):
    """A broker of a test, which is told each task that it sends."""

    sent: dict[str, Task[Any, Any]]
    served: frozenset[str] | None


def note_sent(broker: RedisBroker, owner: NotesSent, suite_clock: SuiteClock | None) -> None:
    """Have a broker that is not open yet note what it sends in `owner`, and tell the time by the clock of its server.

    What the worker in the background does not know is refused as it is sent, with a ConfigurationError.
    """

    def note(task: Task[Any, Any]) -> None:
        if owner.served is not None and task.name not in owner.served:
            raise ConfigurationError(
                f"the worker of this test does not know task {task.name!r}: import it into the module of the test, or "
                "name it by @pytest.mark.streamq(tasks=[...]) or its module by the ini option streamq_tasks"
            )
        owner.sent.setdefault(task.name, task)

    if suite_clock is not None:
        broker.server_clock = KnownServerClock(suite_clock.clock)
    broker._builder = builder = _NotingBuilder(  # noqa: SLF001 - made for this
        broker.keys, broker.tiers, max_payload=broker.max_payload, now=broker.server_clock.now_to_send
    )
    builder.note = note


class _NotingBuilder(MessageBuilder):
    """Builds messages, and calls `note` with the task of each."""

    note: Callable[[Task[Any, Any]], object]

    def _check_call(self, call: Call[Any], **how: Any) -> Any:
        if isinstance(call.task, Task):
            self.note(call.task)
        return super()._check_call(call, **how)
