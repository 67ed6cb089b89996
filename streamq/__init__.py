"""streamq: a task queue on Redis Streams consumer groups, for asyncio and trio.

Names are loaded on first use (PEP 562), so `import streamq` is cheap and a module that only
declares tasks never loads the Redis client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamq.batch_tasks import batch_task
    from streamq.batches import current_batch
    from streamq.broker import RedisBroker
    from streamq.context import Cancellation, cancel_requested, current_cancellation, current_delivery
    from streamq.cron import Cron
    from streamq.delayed import Scheduled
    from streamq.delivery import Delivery
    from streamq.errors import Reject, RetryLater, StreamqError
    from streamq.exhausted import Exhausted
    from streamq.gathering import as_completed, gather
    from streamq.idempotency import once
    from streamq.progress import Progress, report_progress, report_progress_sync
    from streamq.results import Handle, Status
    from streamq.retry import Backoff, Delays, Fixed, Linear
    from streamq.starting import Workflow
    from streamq.store import DeadLetterBound
    from streamq.tasks import Call, Options, Task, TaskRef, task
    from streamq.tiers import Priority, Tier
    from streamq.worker import Worker
    from streamq.workflows import group, step

__version__ = "0.1.0"

_HOMES = {
    "Backoff": "retry",
    "Call": "tasks",
    "Cancellation": "context",
    "Cron": "cron",
    "DeadLetterBound": "store",
    "Delays": "retry",
    "Delivery": "delivery",
    "Exhausted": "exhausted",
    "Fixed": "retry",
    "Handle": "results",
    "Linear": "retry",
    "Options": "tasks",
    "Priority": "tiers",
    "Progress": "progress",
    "RedisBroker": "broker",
    "Reject": "errors",
    "RetryLater": "errors",
    "Scheduled": "delayed",
    "Status": "results",
    "StreamqError": "errors",
    "Task": "tasks",
    "TaskRef": "tasks",
    "Tier": "tiers",
    "Worker": "worker",
    "Workflow": "starting",
    "as_completed": "gathering",
    "batch_task": "batch_tasks",
    "cancel_requested": "context",
    "current_batch": "batches",
    "current_cancellation": "context",
    "current_delivery": "context",
    "gather": "gathering",
    "group": "workflows",
    "once": "idempotency",
    "report_progress": "progress",
    "report_progress_sync": "progress",
    "step": "workflows",
    "task": "tasks",
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
