"""The arguments of a worker that are more than numbers: its tasks, and the tiers that it serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError, TaskNameError
from streamq.tasks.batch import BatchTask
from streamq.tasks.task import Task
from streamq.wire.argument_types import check_items, check_type
from streamq.wire.tiers import Tier


def tasks_by_name(tasks: Iterable[Task[Any, Any]]) -> dict[str, Task[Any, Any]]:
    """Return the tasks of a worker by their names. Raises ConfigurationError or TaskNameError if that cannot be."""
    found: dict[str, Task[Any, Any]] = {}
    for task in check_items("tasks", tasks, "a list of tasks"):
        if not isinstance(task, Task):
            raise ConfigurationError(f"{repr_of(task)} is no task: decorate it with @task")
        other = found.setdefault(task.name, task)
        if other.function is not task.function:
            raise TaskNameError(
                f"two tasks are named {task.name!r}: {_place(other)} and {_place(task)}; give one @task(name=...)"
            )
    if not found:
        raise ConfigurationError("tasks is empty: a worker needs at least one task")
    return found


def check_batch(task: Task[Any, Any], concurrency: int) -> None:
    """Raise ConfigurationError if the worker can never hold all messages of one batch."""
    if isinstance(task, BatchTask) and task.batch.size > concurrency:
        raise ConfigurationError(
            f"batch task {task.name!r} has size={task.batch.size}, and the worker concurrency={concurrency}: "
            "each message takes a slot; give the worker at least that concurrency, or the task a smaller size"
        )


def _place(task: Task[Any, Any]) -> str:
    return f"{task.function.__module__}.{task.function.__qualname__}"


def served_tiers(tiers: tuple[Tier, ...], wanted: Mapping[str, int] | None) -> tuple[Tier, ...]:
    """Return the tiers that a worker serves, with its weights. Raises ConfigurationError for tiers that are none."""
    if wanted is None:
        return tiers
    check_type("tiers", wanted, Mapping, "a mapping from names of tiers to weights")
    names = {tier.name for tier in tiers}
    if not wanted or not set(wanted) <= names:
        raise ConfigurationError(
            f"tiers={repr_of(dict(wanted))}: choose from the broker's tiers, {', '.join(tier.name for tier in tiers)}"
        )
    return tuple(replace(tier, weight=wanted[tier.name]) for tier in tiers if tier.name in wanted)
