"""The handle of a whole workflow: how far it is, and its cancellation. `wire.workflow_record` reads what is known."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamq.diagnostics.unawaited import name_remedies
from streamq.handlers.progress import Progress
from streamq.queue.lookup import CANCELLED_KEPT, Lookup, withdraw_all
from streamq.queue.store import Store
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
        tasks = [(self._lookup(one), one.task_id) for one in sent]
        keeps = [CANCELLED_KEPT if one.step.keep else None for one in sent]
        told = await withdraw_all(self._store, tasks, keeps)
        return bool(cancelled) or any(one != "unknown" for one in told)

    @property
    def _key(self) -> str:
        return self._store.keys.workflow(self.workflow_id)

    def _lookup(self, sent: SentStep) -> Lookup:
        streams = [tier.stream for tier in self._store.keys.tiers]
        if sent.step.stream not in streams:  # a tier that this broker does not have: it is looked for in the others
            return Lookup(self._store, sent.task_id)
        tier = streams.index(sent.step.stream)
        return Lookup(self._store, sent.task_id, tier=tier, entry_id=sent.entry_id, since=sent.since)


name_remedies(WorkflowHandle, "workflow")
