"""streamq: a task queue on Redis Streams consumer groups, for asyncio and trio.

Names are loaded on first use (PEP 562), so `import streamq` is cheap and a module that only
declares tasks never loads the Redis client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.context import current_delivery
    from streamq.delivery import Delivery
    from streamq.errors import Reject, RetryLater, StreamqError
    from streamq.results import Handle, Status
    from streamq.retry import Backoff
    from streamq.store import DeadLetterBound
    from streamq.tasks import Call, Options, Task, TaskRef, task
    from streamq.tiers import Priority, Tier
    from streamq.worker import Worker

__version__ = "0.1.0"

_HOMES = {
    "Backoff": "retry",
    "Call": "tasks",
    "DeadLetterBound": "store",
    "Delivery": "delivery",
    "Handle": "results",
    "Options": "tasks",
    "Priority": "tiers",
    "RedisBroker": "broker",
    "Reject": "errors",
    "RetryLater": "errors",
    "Status": "results",
    "StreamqError": "errors",
    "Task": "tasks",
    "TaskRef": "tasks",
    "Tier": "tiers",
    "Worker": "worker",
    "current_delivery": "context",
    "task": "tasks",
}

__all__ = [
    "Backoff",
    "Call",
    "DeadLetterBound",
    "Delivery",
    "Handle",
    "Options",
    "Priority",
    "RedisBroker",
    "Reject",
    "RetryLater",
    "Status",
    "StreamqError",
    "Task",
    "TaskRef",
    "Tier",
    "Worker",
    "current_delivery",
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
