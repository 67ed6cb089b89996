"""`@batch_task`: a task whose handler takes many messages at once. Holds no broker and no worker.

Each message is a task of its own with one argument, an item; the handler gets a list of items.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Generic, TypedDict, TypeVar, Unpack, overload

from streamq.errors import ArgumentsError, ConfigurationError, check_integer, check_number
from streamq.tasks.arguments import Arguments, Converter
from streamq.tasks.exhausted import Exhausted
from streamq.tasks.retry_policy import BackoffLike, RetriesLike
from streamq.tasks.task import AsyncTask, OptionValues, RunIn, Task, merge, task

T = TypeVar("T")
R = TypeVar("R")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Settings(TypedDict, total=False):
    """The options of `@task` that are those of `@batch_task` as well: all but `cron`."""

    name: str | None
    retries: RetriesLike
    timeout: float | None
    result_ttl: float | None
    priority: int | None
    run_in: RunIn | None
    backoff: BackoffLike | None
    max_backoff: float
    retry_on: type[BaseException] | tuple[type[BaseException], ...]
    give_up_on: type[BaseException] | tuple[type[BaseException], ...]
    validate: bool
    middleware: Iterable[Any]
    on_exhausted: Callable[[Exhausted], object] | Task[..., Any] | None


@dataclass(frozen=True, slots=True)
class Batch:
    """At most `size` messages at once, or those that came within `wait` seconds of the first."""

    size: int = 100
    wait: float = 0.1

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)
        check_number("wait", self.wait, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class BatchTask(Task[[T], R], Generic[T, R]):
    """A task whose handler takes a list of items, while each message carries one. Made by `@batch_task`."""

    batch: Batch = Batch()


class AsyncBatchTask(BatchTask[T, R]):
    """A batch task whose function is async."""

    __slots__ = ()

    def __call__(  # type: ignore[override]  # a call takes the list, a message one item of it
        self, items: list[T], /
    ) -> Coroutine[Any, Any, Sequence[R | Exception] | None]:
        """Call the function itself, here and now."""
        return self.function(items)  # type: ignore[no-any-return]

    def options(self, **values: Unpack[OptionValues]) -> AsyncBatchTask[T, R]:
        """Return this task with options for the messages that are sent through it."""
        return replace(self, sending=merge(self.sending, values))


class SyncBatchTask(BatchTask[T, R]):
    """A batch task whose function is not async; it runs in a thread or a process."""

    __slots__ = ()

    def __call__(  # type: ignore[override]  # as above
        self, items: list[T], /
    ) -> Sequence[R | Exception] | None:
        """Call the function itself, here and now."""
        return self.function(items)  # type: ignore[no-any-return]

    def options(self, **values: Unpack[OptionValues]) -> SyncBatchTask[T, R]:
        """Return this task with options for the messages that are sent through it."""
        return replace(self, sending=merge(self.sending, values))


class ItemArguments(Arguments):
    """What is known of the one argument of a message: it is an item of the handler's list."""

    @cached_property
    def names(self) -> frozenset[str]:
        """None: an item has no name, so every keyword argument of an enqueue is an option."""
        return frozenset()

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises ArgumentsError unless there is one positional argument."""
        if kwargs or len(args) != 1:
            given = f"{len(args)} and {', '.join(kwargs)}" if kwargs else f"{len(args)}"
            raise ArgumentsError(
                self._name, f"a message of a batch task carries one positional argument, an item; given are {given}"
            )

    @cached_property
    def converter(self) -> Converter | None:
        """What checks and converts an item; None without pydantic or an annotation."""
        if super().converter is None:
            return None
        return _ItemConverter(self._name, self._function, self.bind)


class _ItemConverter(Converter):
    """An item as the annotation of the list wants it."""

    def __init__(
        self, name: str, function: Callable[..., Any], bind: Callable[[Sequence[Any], Mapping[str, Any]], None]
    ) -> None:
        super().__init__(name, function)
        self._bind = bind

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the converted item, as arguments. Raises ArgumentsError if it does not fit."""
        self._bind(args, kwargs)
        (items,), _ = super().__call__(([args[0]],), {})  # a list of one is what the annotation speaks of
        return tuple(items), {}


class _Decorator:
    """`@batch_task(...)`; finds the types of item and result for type checkers."""

    def __init__(self, batch: Batch, settings: Settings) -> None:
        self._batch = batch
        self._settings = settings

    @overload
    def __call__(self, function: Callable[[list[T]], Coroutine[Any, Any, None]]) -> AsyncBatchTask[T, None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R | Exception] | None]]
    ) -> AsyncBatchTask[T, R]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], None]) -> SyncBatchTask[T, None]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], Sequence[R | Exception] | None]) -> SyncBatchTask[T, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        whole: Task[Any, Any] = task(**self._settings)(function)
        if whole.cron:
            raise ConfigurationError(
                f"batch task {whole.name!r} has cron={whole.cron!r}: what a schedule sends carries no item; "
                "have a task of its own send some"
            )
        _check_signature(whole.name, function)
        values: dict[str, Any] = {part.name: getattr(whole, part.name) for part in fields(Task)}
        validate = self._settings.get("validate", True)
        values["arguments"] = ItemArguments(whole.name, function, validate=validate)
        kind = AsyncBatchTask if isinstance(whole, AsyncTask) else SyncBatchTask
        return kind(**values, batch=self._batch)


def batch_task(*, size: int = 100, wait: float = 0.1, **settings: Unpack[Settings]) -> _Decorator:
    """Make a function of a list a task that runs for up to `size` messages at once.

    Each message carries one item: `broker.enqueue(insert, row)`. The handler runs once `size` are
    there, or `wait` seconds after the first came. It returns None, or for each item, in their order,
    its result or the exception it failed with; each is settled by itself. If it raises, all fail
    with that. `settings` are the options of `@task`; `timeout` (s) bounds the handler, not the wait.

    Raises TaskNameError for an unusable name, ConfigurationError for an unusable option.
    """
    return _Decorator(Batch(size, wait), settings)


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    """Raise ConfigurationError unless the function can be called with one list."""
    parameters = [*inspect.signature(function).parameters.values()]
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [one for one in parameters if one.default is one.empty and one.kind not in optional]
    first = parameters[0] if parameters else None
    if first is None or first.kind not in _POSITIONAL or any(one is not first for one in wanted):
        raise ConfigurationError(
            f"batch task {name!r} has parameters {inspect.signature(function)}: it takes one, a list of items"
        )
