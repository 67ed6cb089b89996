"""What is kept, and published, as the result of a task: the JSON that waiters read. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from streamq.errors import BrokerError, TaskFailedError

_FAILED = ("reason", "error_type", "error", "traceback")  # the fields of a task that did not succeed, all texts


def decode_result(task_id: str, payload: bytes) -> Any:
    """Return the value of a kept result. Raises TaskFailedError if the task failed, BrokerError if it is no result."""
    value = _parsed(task_id, payload)
    if "ok" in value:
        return value["ok"]
    raise TaskFailedError(task_id, **{name: value[name] for name in _FAILED})


def has_succeeded(task_id: str, payload: bytes) -> bool:
    """Return whether this is the result of a task that succeeded. Raises BrokerError if it is no result."""
    return "ok" in _parsed(task_id, payload)


def _parsed(task_id: str, payload: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict) or not ("ok" in value or all(isinstance(value.get(name), str) for name in _FAILED)):
        raise BrokerError(f"the result of task {task_id!r} is nothing that streamq wrote: {payload[:80]!r}")
    return value
