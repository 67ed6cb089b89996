"""What a wait for a result raises."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from streamq.errors.base import StreamqError

_NAMED = 5  # ids in the text of the error; `missing` has all


class ResultTimeoutError(StreamqError, TimeoutError):
    """Raised if a task did not end within the `timeout` (s) of the waiter. The task runs on.

    `missing` are the ids of all tasks that did not end in time, `task_id` is the first of them.
    """

    def __init__(self, task_id: str, timeout: float | timedelta, *, missing: Sequence[str] = (), of: int = 1) -> None:
        self.task_id = task_id
        self.timeout = timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        self.missing = tuple(missing) or (task_id,)
        if of == 1:
            super().__init__(f"no result of task {task_id!r} within {timeout:g} s")
            return
        more = len(self.missing) - _NAMED
        names = ", ".join(map(repr, self.missing[:_NAMED])) + (f" and {more} more" if more > 0 else "")
        super().__init__(f"{len(self.missing)} of {of} tasks gave no result within {timeout:g} s: {names}")


class ResultNotKeptError(StreamqError):
    """Raised if a program waits for the result of a task that keeps none."""

    def __init__(self, task: str) -> None:
        self.task = task
        super().__init__(
            f"task {task!r} keeps no result: declare it with @task(result_ttl=seconds) "
            "or enqueue it with options(result_ttl=seconds)"
        )


class ResultTypeError(StreamqError, TypeError):
    """Raised if a kept result is not of the type that its task returns, by the annotation here: `reason` says why."""

    def __init__(self, task: str, task_id: str, reason: str) -> None:
        self.task = task
        self.task_id = task_id
        self.reason = reason
        super().__init__(
            f"the result of task {task!r} {task_id!r} is not what its annotation says: {reason}; if the worker runs "
            "another version of it, broker.handle(task_id) gives the JSON as it is"
        )


class TaskFailedError(StreamqError):
    """Raised by a wait for a result if the task was dead-lettered or cancelled.

    `reason` is the reason of the dead letter, or `cancelled`, `upstream` (an earlier step of its workflow failed) or
    `result` (the result is no JSON). `error_type`, `error` and `traceback` are those of its last run. The traceback is
    also a note of this error, so a program that prints the error shows where the task failed.
    """

    def __init__(self, task_id: str, *, reason: str, error_type: str, error: str, traceback: str) -> None:
        self.task_id = task_id
        self.reason = reason
        self.error_type = error_type
        self.error = error
        self.traceback = traceback
        super().__init__(f"task {task_id!r} failed ({reason}): {error_type}: {error}")
        if traceback:
            self.add_note("In the worker:\n" + traceback.rstrip("\n"))
