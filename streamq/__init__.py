"""streamq: a task queue on Redis Streams consumer groups, for asyncio and trio.

Names are loaded on first use (PEP 562), so `import streamq` is cheap and a module that only
declares tasks never loads the Redis client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.lazy_names import load_on_first_use

if TYPE_CHECKING:
    from streamq.broker import RedisBroker, current_broker
    from streamq.consumer.batching import current_batch
    from streamq.consumer.events import Event, Listener, Reclaimed, Recovered, Settled, Started, Superseded, Trouble
    from streamq.errors import Reject, Retry, RetryLater, StreamqError
    from streamq.handlers.context import Cancellation, cancel_requested, current_cancellation, current_delivery
    from streamq.handlers.inbox import Inbox
    from streamq.handlers.progress import Progress, report_progress, report_progress_sync
    from streamq.queue.delayed import Scheduled
    from streamq.queue.gather import as_completed, gather
    from streamq.queue.once import once
    from streamq.queue.results import Handle, Status
    from streamq.queue.workflow_handle import WorkflowHandle
    from streamq.queue.workflow_start import Workflow
    from streamq.sync.broker import SyncBroker
    from streamq.sync.handle import SyncHandle, SyncWorkflow, SyncWorkflowHandle
    from streamq.tasks.batch import batch_task
    from streamq.tasks.cron import Cron
    from streamq.tasks.decorator import task
    from streamq.tasks.exhausted import Exhausted
    from streamq.tasks.options import Options
    from streamq.tasks.outcome import Ack, DeadLetter, Outcome, Postpone, Reason, Release, RetryOutcome, Skip
    from streamq.tasks.retry_policy import Backoff, Delays, Fixed, Linear
    from streamq.tasks.task import Call, Task, TaskRef
    from streamq.wire.dead_letter_fields import DeadLetterBound, Failure
    from streamq.wire.delivery import Delivery
    from streamq.wire.signing import SigningKeys
    from streamq.wire.tiers import Priority, Tier
    from streamq.wire.workflow import group, step
    from streamq.wire.workflow_record import StepState, StepStatus, WorkflowState, WorkflowStatus
    from streamq.worker import Health, Worker

__version__ = "0.1.0"

_HOMES = {
    "Ack": "tasks.outcome",
    "Backoff": "tasks.retry_policy",
    "Call": "tasks.task",
    "Cancellation": "handlers.context",
    "Cron": "tasks.cron",
    "DeadLetter": "tasks.outcome",
    "DeadLetterBound": "wire.dead_letter_fields",
    "Delays": "tasks.retry_policy",
    "Delivery": "wire.delivery",
    "Event": "consumer.events",
    "Exhausted": "tasks.exhausted",
    "Failure": "wire.dead_letter_fields",
    "Fixed": "tasks.retry_policy",
    "Handle": "queue.results",
    "Health": "worker",
    "Inbox": "handlers.inbox",
    "Linear": "tasks.retry_policy",
    "Listener": "consumer.events",
    "Options": "tasks.options",
    "Outcome": "tasks.outcome",
    "Postpone": "tasks.outcome",
    "Priority": "wire.tiers",
    "Progress": "handlers.progress",
    "Reason": "tasks.outcome",
    "Reclaimed": "consumer.events",
    "Recovered": "consumer.events",
    "RedisBroker": "broker",
    "Reject": "errors",
    "Release": "tasks.outcome",
    "Retry": "errors",
    "RetryLater": "errors",
    "RetryOutcome": "tasks.outcome",
    "Scheduled": "queue.delayed",
    "Settled": "consumer.events",
    "SigningKeys": "wire.signing",
    "Skip": "tasks.outcome",
    "Started": "consumer.events",
    "Status": "queue.results",
    "StepState": "wire.workflow_record",
    "StepStatus": "wire.workflow_record",
    "StreamqError": "errors",
    "Superseded": "consumer.events",
    "SyncBroker": "sync.broker",
    "SyncHandle": "sync.handle",
    "SyncWorkflow": "sync.handle",
    "SyncWorkflowHandle": "sync.handle",
    "Task": "tasks.task",
    "TaskRef": "tasks.task",
    "Tier": "wire.tiers",
    "Trouble": "consumer.events",
    "Worker": "worker",
    "Workflow": "queue.workflow_start",
    "WorkflowHandle": "queue.workflow_handle",
    "WorkflowState": "wire.workflow_record",
    "WorkflowStatus": "wire.workflow_record",
    "as_completed": "queue.gather",
    "batch_task": "tasks.batch",
    "cancel_requested": "handlers.context",
    "current_batch": "consumer.batching",
    "current_broker": "broker",
    "current_cancellation": "handlers.context",
    "current_delivery": "handlers.context",
    "gather": "queue.gather",
    "group": "wire.workflow",
    "once": "queue.once",
    "report_progress": "handlers.progress",
    "report_progress_sync": "handlers.progress",
    "step": "wire.workflow",
    "task": "tasks.decorator",
}

__all__ = [
    "Ack",
    "Backoff",
    "Call",
    "Cancellation",
    "Cron",
    "DeadLetter",
    "DeadLetterBound",
    "Delays",
    "Delivery",
    "Event",
    "Exhausted",
    "Failure",
    "Fixed",
    "Handle",
    "Health",
    "Inbox",
    "Linear",
    "Listener",
    "Options",
    "Outcome",
    "Postpone",
    "Priority",
    "Progress",
    "Reason",
    "Reclaimed",
    "Recovered",
    "RedisBroker",
    "Reject",
    "Release",
    "Retry",
    "RetryLater",
    "RetryOutcome",
    "Scheduled",
    "Settled",
    "SigningKeys",
    "Skip",
    "Started",
    "Status",
    "StepState",
    "StepStatus",
    "StreamqError",
    "Superseded",
    "SyncBroker",
    "SyncHandle",
    "SyncWorkflow",
    "SyncWorkflowHandle",
    "Task",
    "TaskRef",
    "Tier",
    "Trouble",
    "Worker",
    "Workflow",
    "WorkflowHandle",
    "WorkflowState",
    "WorkflowStatus",
    "as_completed",
    "batch_task",
    "cancel_requested",
    "current_batch",
    "current_broker",
    "current_cancellation",
    "current_delivery",
    "gather",
    "group",
    "once",
    "report_progress",
    "report_progress_sync",
    "step",
    "task",
]

if not TYPE_CHECKING:  # for a type checker a name that is not above is an error
    __getattr__, __dir__ = load_on_first_use(globals(), _HOMES)
