"""streamq: a task queue on Redis Streams consumer groups, for asyncio and trio.

Names are loaded on first use (PEP 562), so `import streamq` is cheap and a module that only
declares tasks never loads the Redis client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.consumer.batching import current_batch
    from streamq.errors import Reject, RetryLater, StreamqError
    from streamq.handlers.context import Cancellation, cancel_requested, current_cancellation, current_delivery
    from streamq.handlers.progress import Progress, report_progress, report_progress_sync
    from streamq.queue.delayed import Scheduled
    from streamq.queue.gather import as_completed, gather
    from streamq.queue.once import once
    from streamq.queue.results import Handle, Status
    from streamq.queue.store import DeadLetterBound
    from streamq.queue.workflow_start import Workflow
    from streamq.tasks.batch import batch_task
    from streamq.tasks.cron import Cron
    from streamq.tasks.exhausted import Exhausted
    from streamq.tasks.retry_policy import Backoff, Delays, Fixed, Linear
    from streamq.tasks.task import Call, Options, Task, TaskRef, task
    from streamq.wire.delivery import Delivery
    from streamq.wire.flow import group, step
    from streamq.wire.tiers import Priority, Tier
    from streamq.worker import Worker

__version__ = "0.1.0"

_HOMES = {
    "Backoff": "tasks.retry_policy",
    "Call": "tasks.task",
    "Cancellation": "handlers.context",
    "Cron": "tasks.cron",
    "DeadLetterBound": "queue.store",
    "Delays": "tasks.retry_policy",
    "Delivery": "wire.delivery",
    "Exhausted": "tasks.exhausted",
    "Fixed": "tasks.retry_policy",
    "Handle": "queue.results",
    "Linear": "tasks.retry_policy",
    "Options": "tasks.task",
    "Priority": "wire.tiers",
    "Progress": "handlers.progress",
    "RedisBroker": "broker",
    "Reject": "errors",
    "RetryLater": "errors",
    "Scheduled": "queue.delayed",
    "Status": "queue.results",
    "StreamqError": "errors",
    "Task": "tasks.task",
    "TaskRef": "tasks.task",
    "Tier": "wire.tiers",
    "Worker": "worker",
    "Workflow": "queue.workflow_start",
    "as_completed": "queue.gather",
    "batch_task": "tasks.batch",
    "cancel_requested": "handlers.context",
    "current_batch": "consumer.batching",
    "current_cancellation": "handlers.context",
    "current_delivery": "handlers.context",
    "gather": "queue.gather",
    "group": "wire.flow",
    "once": "queue.once",
    "report_progress": "handlers.progress",
    "report_progress_sync": "handlers.progress",
    "step": "wire.flow",
    "task": "tasks.task",
}

__all__ = [
    "Backoff",
    "Call",
    "Cancellation",
    "Cron",
    "DeadLetterBound",
    "Delays",
    "Delivery",
    "Exhausted",
    "Fixed",
    "Handle",
    "Linear",
    "Options",
    "Priority",
    "Progress",
    "RedisBroker",
    "Reject",
    "RetryLater",
    "Scheduled",
    "Status",
    "StreamqError",
    "Task",
    "TaskRef",
    "Tier",
    "Worker",
    "Workflow",
    "as_completed",
    "batch_task",
    "cancel_requested",
    "current_batch",
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


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
