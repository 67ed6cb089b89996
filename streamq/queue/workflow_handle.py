"""The handle of a whole workflow: how far it is, and its cancellation. `wire.workflow_record` reads what is known."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamq.diagnostics.unawaited import name_remedies
from streamq.handlers.progress import Progress
from streamq.queue.results import Handle
from streamq.queue.store import Store
from streamq.queue.waiters import WaitsForKeys
from streamq.wire.message import dumps
from streamq.wire.stored_numbers import stored_count
from streamq.wire.workflow_record import (
    RECORD_KEPT,
    SentStep,
    WorkflowRecord,
    WorkflowState,
    WorkflowStatus,
    decode_plan,
)

_NOT_SENT = dumps({
    "error_type": "Cancelled", "error": "its workflow was cancelled before it was sent", "reason": "cancelled",
    "traceback": "",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorkflowHandle:
    """A workflow, by its id. `RedisBroker.workflow` makes it; the `Workflow` that `start` returns is one, too."""

    workflow_id: str
    _store: Store = field(repr=False, compare=False)
    _waiters: WaitsForKeys = field(repr=False, compare=False)

    async def status(self) -> WorkflowStatus:
        """Return how far the workflow is, and each of its steps. One round trip.

        If it was never started, or ended so long ago that nothing is known of it, its state is UNKNOWN.
        """
        flat = await self._store.one(("HGETALL", self._key))
        record = WorkflowRecord.read(flat, self._store.keys.group)
        return WorkflowStatus(self.workflow_id, WorkflowState.UNKNOWN) if record is None else (
            record.status(self.workflow_id)
        )  # fmt: skip

    async def progress(self) -> Progress | None:
        """Return how many of its steps are done, and how many it has; None for a workflow that is not known.

        All steps are known from the start: the total does not grow. One round trip, for any number of steps.
        """
        total, done = await self._store.one(("HMGET", self._key, "total", f"done:{self._store.keys.group}"))
        return None if total is None else Progress(stored_count(done) or 0, stored_count(total))

    async def cancel(self) -> bool:
        """Cancel the whole workflow. Returns whether a step of it was cancelled, or told to stop.

        When this returns, no further step is sent. The steps that waited are withdrawn, and those that a worker has
        are told to stop, as by `Handle.cancel`. May be called again.
        """
        plan = await self._store.one(("HGET", self._key, "plan"))
        if plan is None:
            return False
        # From here on no step is sent, whatever succeeds meanwhile: it is one atomic step.
        cancelled, flat = await self._store.one(
            self._store.enqueue_commands.stop_workflow(self.workflow_id, decode_plan(plan), _NOT_SENT, kept=RECORD_KEPT)
        )
        record = WorkflowRecord.read(flat, self._store.keys.group)
        sent = [] if record is None else record.sent()
        told = [await self._handle(one).cancel() for one in sent]
        return bool(cancelled) or any(told)

    @property
    def _key(self) -> str:
        return self._store.keys.workflow(self.workflow_id)

    def _handle(self, sent: SentStep) -> Handle[object]:
        streams = [tier.stream for tier in self._store.keys.tiers]
        known = sent.step.stream in streams  # a tier that this broker does not have: it is looked for in the others
        return Handle(
            sent.task_id, sent.step.task, streams.index(sent.step.stream) if known else 0,
            sent.entry_id if known else "", False, bool(sent.step.keep), self._store, self._waiters,
            _since=sent.since,
        )  # fmt: skip


name_remedies(WorkflowHandle, "workflow")
