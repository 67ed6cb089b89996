"""What is kept, and published, as the result of a task: the JSON that waiters read. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from streamq.diagnostics.safe_text import str_of
from streamq.errors import BrokerError, ResultTypeError, TaskFailedError
from streamq.tasks.json_type import UnfitError
from streamq.tasks.task import Task

_OK = b'{"ok":'
NOT_KEPT = "result"  # the reason of a task that succeeded and whose result cannot be kept
_FAILED = ("reason", "error_type", "error", "traceback")  # the fields of a task that did not succeed, all texts


def decode_result(task_id: str, payload: bytes, *, task: Task[..., Any] | None = None) -> Any:
    """Return the value of a kept result: of the type that `task` returns, as JSON gives it without one.

    Raises TaskFailedError if the task failed, BrokerError if it is no result, ResultTypeError if it is of another type.
    """
    value = _parsed(task_id, payload)
    if "ok" in value:
        if task is None:
            return value["ok"]
        whole = len(value) == 1 and payload.startswith(_OK)  # as a worker writes it
        try:
            return task.arguments.result_type.decode(payload[len(_OK) : -1] if whole else orjson.dumps(value["ok"]))
        except UnfitError as error:
            raise ResultTypeError(task.name, task_id, str_of(error)) from error
    raise TaskFailedError(task_id, **{name: value[name] for name in _FAILED})


def has_succeeded(task_id: str, payload: bytes) -> bool:
    """Return whether a task has succeeded, its result kept or not. Raises BrokerError if this is no result."""
    value = _parsed(task_id, payload)
    return "ok" in value or value["reason"] == NOT_KEPT


def _parsed(task_id: str, payload: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict) or not ("ok" in value or all(isinstance(value.get(name), str) for name in _FAILED)):
        raise BrokerError(f"the result of task {task_id!r} is nothing that streamq wrote: {payload[:80]!r}")
    return value
