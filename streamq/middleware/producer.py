"""Sends calls: through their middleware, as messages, to the server. Returns handles.

The chains of the broker and of a task are joined once for each task, and not once for each message. A call without
middleware takes the short way, `send`. `queue/sending.py` builds the messages, the store carries out the commands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from streamq.client import Command
from streamq.errors import OutcomeUnknownError
from streamq.middleware.chain import MiddlewareChain, SendNext
from streamq.middleware.enqueue_many import CombinedEnqueue, SendAll, check_handle
from streamq.queue.enqueue_requests import EnqueueReply
from streamq.queue.results import Handle
from streamq.queue.sending import RESULT_KEPT, MessageBuilder, PreparedMessage, new_task_id
from streamq.queue.store import Store
from streamq.queue.waiters import WaitsForKeys
from streamq.queue.workflow_handle import WorkflowHandle
from streamq.queue.workflow_start import PreparedWorkflow, Workflow, WorkflowSteps
from streamq.tasks.options import Durable
from streamq.tasks.task import Call, TaskRef
from streamq.wire.names import check_name
from streamq.wire.workflow import Flow

R = TypeVar("R")


class Producer:
    """What an open broker sends with. `middleware` is the broker's chain; links that are added to it later count."""

    combine: type[CombinedEnqueue] = CombinedEnqueue  # of calls that go together, each through its own middleware

    def __init__(
        self, builder: MessageBuilder, middleware: MiddlewareChain, store: Store, waiters: WaitsForKeys
    ) -> None:
        self._builder = builder
        self._middleware = middleware
        self._store = store
        self._waiters = waiters
        self._joined: dict[tuple[int, int], tuple[tuple[Any, ...], MiddlewareChain, SendNext]] = {}

    def __repr__(self) -> str:
        return f"<Producer through {self._middleware!r} to {self._store!r}>"

    # --- without middleware --------------------------------------------------------------------

    async def send(self, call: Call[Any]) -> Handle[Any]:
        """Send one call, past all middleware."""
        message = self._builder.prepare(self._store, call)
        if self._store.clock.outdated:
            await self._store.compare_clocks()
            message = self._builder.prepare(self._store, message.call)  # an iterator among its arguments is used up
        try:
            durable: Durable | None = call.task.send_options.durable
            (accepted,) = await self._enqueue((message.command,), () if durable is None else (durable,))
        except OutcomeUnknownError as error:
            error.task_id = message.call.task.send_options.task_id
            raise
        return self._handle(message, accepted)

    async def send_all(self, calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
        """Send calls in one round trip, past all middleware."""
        messages = self._builder.prepare_all(self._store, calls)
        if self._store.clock.outdated:
            await self._store.compare_clocks()
            messages = self._builder.prepare_all(self._store, [message.call for message in messages])
        if not messages:
            return []
        durable: list[Durable] = [wanted for call in calls if (wanted := call.task.send_options.durable) is not None]
        accepted = await self._enqueue([message.command for message in messages], durable)
        return [self._handle(message, one) for message, one in zip(messages, accepted, strict=True)]

    async def _enqueue(self, commands: Sequence[Command], durable: Sequence[Durable]) -> Iterator[EnqueueReply]:
        if durable:
            return await self._store.enqueue_durably(commands, durable)
        return await self._store.enqueue(commands)

    def _handle(self, message: PreparedMessage, accepted: EnqueueReply) -> Handle[Any]:
        task = message.call.task
        known = None if isinstance(task, TaskRef) else task
        keep = task.send_options.result_ttl  # 0: none, though the task keeps its results
        if keep is None:
            keep = RESULT_KEPT if known is None else known.result_ttl  # that of a name is not known
        return Handle(
            accepted.task_id or message.task_id, task.name, message.tier, accepted.entry_id, accepted.fresh, bool(keep),
            self._store, self._waiters, None, accepted.replaced, accepted.since, known,
        )  # fmt: skip

    # --- through middleware --------------------------------------------------------------------

    async def send_through(self, call: Call[Any]) -> Handle[Any]:
        """Send one call through the middleware of the broker and of its task.

        Raises ConfigurationError if that returns no handle.
        """
        return check_handle(await self._chain(call)[2](call))

    async def send_all_through(self, calls: Sequence[Call[Any]], send_all: SendAll | None = None) -> list[Handle[Any]]:
        """Send calls together, each through its own middleware. `send_all` sends them, in one round trip."""
        send_all = self.send_all if send_all is None else send_all
        if not (self._middleware.wraps_enqueues or any(call.task.middleware for call in calls)):
            return await send_all(calls)
        combined = self.combine(send_all, len(calls))
        return await combined.run([
            partial(self._chain(call)[1].around_enqueue(partial(combined.send, place)), call)
            for place, call in enumerate(calls)
        ])  # fmt: skip

    def _chain(self, call: Call[Any]) -> tuple[tuple[Any, ...], MiddlewareChain, SendNext]:
        """Return the middleware of the task, the chain of the broker joined with it, and what sends through both."""
        own = call.task.middleware
        # By identity: `task.options(...)` makes another task with the same middleware.
        key = (id(own), len(self._middleware))
        known = self._joined.get(key)
        if known is None:
            chain = self._middleware.joined(own)
            known = self._joined[key] = (own, chain, chain.around_enqueue(self.send))
        return known

    # --- workflows -----------------------------------------------------------------------------

    async def start(self, flow: Flow[R], workflow_id: str | None) -> Workflow[R]:
        """Send the first steps of a workflow, all or none. See `RedisBroker.start`."""
        steps = WorkflowSteps(flow, self._builder.make_call)
        chosen = workflow_id if workflow_id is not None else new_task_id()

        async def send_all(calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
            guarded = workflow_id is not None
            workflow = steps.prepare(self._builder, self._store, calls, chosen, guarded=guarded)
            if self._store.clock.outdated:
                await self._store.compare_clocks()
                calls = [call for call, _, _ in workflow.steps]
                workflow = steps.prepare(self._builder, self._store, calls, chosen, guarded=guarded)
            return await self._send_workflow(chosen, workflow)

        handles = await self.send_all_through(steps.calls, send_all)
        fresh = all(handle.fresh for handle in handles)
        return Workflow(chosen, self._store, fresh, tuple(handles), steps.last)

    def workflow(self, workflow_id: str) -> WorkflowHandle:
        """Return the handle of a workflow. See `RedisBroker.workflow`."""
        return WorkflowHandle(check_name("workflow_id", workflow_id), self._store)

    async def _send_workflow(self, workflow_id: str, workflow: PreparedWorkflow) -> list[Handle[Any]]:
        try:
            (accepted,) = await self._enqueue([workflow.command], workflow.durable)
        except OutcomeUnknownError as error:
            error.task_id = workflow_id
            raise
        return [
            self._handle(PreparedMessage(call, tier, task_id, ()), accepted._replace(task_id=task_id))
            for call, tier, task_id in workflow.steps
        ]
