"""`@batch_task`: a task whose handler takes many messages at once. Holds no broker and no worker.

Each message is a task of its own with one argument, an item. The handler gets a list of items.
The worker collects the messages of a batch in `consumer/batching.py`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Generic, TypedDict, TypeVar, Unpack, cast, overload

from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.errors import ArgumentsError, ConfigurationError
from streamq.tasks.annotations import UNTYPED, item_of, members_of, return_annotation
from streamq.tasks.arguments import Arguments, Converter
from streamq.tasks.decorator import check_options, task
from streamq.tasks.exhausted import Exhausted
from streamq.tasks.options import OptionValues, merge
from streamq.tasks.retry_policy import BackoffLike, RetriesLike
from streamq.tasks.task import AsyncTask, RunIn, Task
from streamq.wire import bounds

T = TypeVar("T")
R = TypeVar("R")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class TaskSettings(TypedDict, total=False):
    """The options that `@batch_task` has in common with `@task`: all but `cron`."""

    name: str | None
    retries: RetriesLike
    timeout: float | None
    result_ttl: float | None
    priority: int | None
    tier: str | None
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
    """A batch has at most `size` messages, and those that come within `wait` seconds of the first."""

    size: int = 100
    wait: float = 0.1

    def __post_init__(self) -> None:
        bounds.BATCH_SIZE.check(self.size)
        object.__setattr__(self, "wait", bounds.BATCH_WAIT.check(self.wait))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BatchTask(Task[[T], R], Generic[T, R]):
    """A task whose handler takes a list of items. Each message carries one item. `@batch_task` makes it."""

    batch: Batch = Batch()


class AsyncBatchTask(BatchTask[T, R]):
    """A batch task whose function is async."""

    __slots__ = ()

    def __call__(  # type: ignore[override]  # a call takes the list, a message one item of it
        self, items: list[T], /
    ) -> Coroutine[Any, Any, Sequence[R | Exception] | None]:
        """Call the function itself, in this process."""
        return self.function(items)  # type: ignore[no-any-return]

    def options(self, **values: Unpack[OptionValues]) -> AsyncBatchTask[T, R]:
        """Return a copy of this task whose messages are sent with these options."""
        return replace(self, send_options=merge(self.send_options, values))


class SyncBatchTask(BatchTask[T, R]):
    """A batch task whose function is not async; it runs in a thread or a process."""

    __slots__ = ()

    def __call__(  # type: ignore[override]  # as above
        self, items: list[T], /
    ) -> Sequence[R | Exception] | None:
        """Call the function itself, in this process."""
        return self.function(items)  # type: ignore[no-any-return]

    def options(self, **values: Unpack[OptionValues]) -> SyncBatchTask[T, R]:
        """Return a copy of this task whose messages are sent with these options."""
        return replace(self, send_options=merge(self.send_options, values))


class ItemArguments(Arguments):
    """The one argument of a message of a batch task: an item of the handler's list."""

    @cached_property
    def names(self) -> frozenset[str]:
        """Empty: an item has no name, so every keyword argument of an enqueue is an option."""
        return frozenset()

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgumentsError unless there is one positional argument."""
        if kwargs or len(args) != 1:
            given = f"{len(args)} and {', '.join(kwargs)}" if kwargs else f"{len(args)}"
            raise ArgumentsError(
                self._name, f"a message of a batch task carries one positional argument, an item; given are {given}"
            )

    def _converter(self, hints: Mapping[str, Any]) -> Converter:
        first = next(iter(self.signature.parameters))
        try:
            annotation = item_of(hints.get(first, UNTYPED))
        except TypeError as error:
            raise ArgumentsError(self._name, f"the annotation of {first}: {error}, or use validate=False") from error
        item = inspect.Parameter("item", inspect.Parameter.POSITIONAL_ONLY, annotation=annotation)
        return Converter(self._name, inspect.Signature([item]), {})

    def _returned(self, hints: Mapping[str, Any]) -> Any:
        """Return the type of one result: `R` of `list[R | Exception] | None`; None is one if the list may be None."""
        whole = return_annotation(hints)
        nones = [None for one in members_of(whole) if one is None or one is type(None)]
        try:
            item = item_of(whole)
        except TypeError as error:
            raise ArgumentsError(self._name, f"what it returns: {error}") from error
        if item is UNTYPED:
            return None if len(nones) == len(members_of(whole)) else UNTYPED
        found = [one for one in members_of(item) if not (isinstance(one, type) and issubclass(one, Exception))]
        return typing.Union[(*found, *nones)] if found else UNTYPED


class _Decorator:
    """`@batch_task(...)`. Its overloads tell type checkers the types of item and result."""

    def __init__(self, batch: Batch, settings: TaskSettings) -> None:
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
        cron = self._settings.get("cron")
        settings: Any = {name: value for name, value in self._settings.items() if name != "cron"}
        whole: Task[Any, Any] = task(**settings)(function)
        if cron:
            raise ConfigurationError(
                f"batch task {whole.name!r} has cron={repr_of(cron)}: a schedule sends no item; "
                "give the schedule to another task that enqueues the items"
            )
        _check_signature(whole.name, function)
        values: dict[str, Any] = {part.name: getattr(whole, part.name) for part in fields(Task) if part.init}
        validate = self._settings.get("validate", True)
        values["arguments"] = ItemArguments(whole.name, function, validate=validate)
        kind = AsyncBatchTask if isinstance(whole, AsyncTask) else SyncBatchTask
        return kind(**values, batch=self._batch)


@overload
def batch_task(function: Callable[[list[T]], Coroutine[Any, Any, None]], /) -> AsyncBatchTask[T, None]: ...
@overload
def batch_task(
    function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R | Exception] | None]], /
) -> AsyncBatchTask[T, R]: ...
@overload
def batch_task(function: Callable[[list[T]], None], /) -> SyncBatchTask[T, None]: ...
@overload
def batch_task(function: Callable[[list[T]], Sequence[R | Exception] | None], /) -> SyncBatchTask[T, R]: ...
@overload
def batch_task(*, size: int = 100, wait: float = 0.1, **settings: Unpack[TaskSettings]) -> _Decorator: ...
def batch_task(
    function: Callable[..., Any] | None = None, /, *, size: int = 100, wait: float = 0.1, **settings: Any
) -> Any:
    """Make a function of a list a task that runs for up to `size` messages at once: `@batch_task(size=100)`.

    Each message carries one item: `broker.enqueue(insert, row)`. The handler runs when `size` messages are there, or
    `wait` seconds after the first. It returns None, or a list with one entry for each item, in the order of the items:
    its result, or the exception that it failed with. Each message is settled by itself. If the handler raises, all
    messages fail with that error. `settings` are the options of `@task`. `timeout` (s) limits the run of the handler,
    without the wait.

    Raises TaskNameError for a name that cannot be used, ConfigurationError for any other value.
    """
    # `cron` is refused with a reason of its own, below the name of the task.
    check_options("@batch_task", settings.keys() - {"cron"}, ("size", "wait", *TaskSettings.__annotations__))
    decorator: Any = _Decorator(Batch(size, wait), cast("TaskSettings", settings))
    return decorator if function is None else decorator(function)


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    """Raise ConfigurationError unless the function can be called with one list."""
    parameters = [*inspect.signature(function).parameters.values()]
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [one for one in parameters if one.default is one.empty and one.kind not in optional]
    first = parameters[0] if parameters else None
    if first is None or first.kind not in _POSITIONAL or any(one is not first for one in wanted):
        raise ConfigurationError(
            f"batch task {name!r} has parameters {str_of(inspect.signature(function))}: it takes one, a list of items"
        )
