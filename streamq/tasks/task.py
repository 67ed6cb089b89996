"""A task: a function with a name and a policy. It holds no broker and no worker.

`Task[P, R]` carries the parameters of its function, so mypy and pyright check `broker.enqueue(send, "a@b.c", n=2)` as
they would check the call. `TaskRef` is a task by its name alone, `Call` a task with its arguments.
`decorator.py` makes tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any, ClassVar, Generic, Literal, ParamSpec, Self, TypeVar, Unpack

from streamq.errors import ConfigurationError, TaskNameError
from streamq.tasks.arguments import Arguments
from streamq.tasks.cron import Cron
from streamq.tasks.exhausted import Exhausted
from streamq.tasks.function import annotations_of, code_of, found_by_name
from streamq.tasks.options import NO_OPTIONS, Options, OptionValues, merge
from streamq.tasks.retry_policy import RetryPolicy
from streamq.wire.argument_types import check_items
from streamq.wire.names import check_name
from streamq.wire.workflow import Flow

P = ParamSpec("P")
R = TypeVar("R")

RunIn = Literal["loop", "thread", "process"]


@dataclass(frozen=True, slots=True, repr=False)
class TaskRef:
    """A task by its name alone: its code is in the worker. Raises TaskNameError for a name that cannot be used."""

    name: str
    send_options: Options = NO_OPTIONS
    middleware: ClassVar[tuple[Any, ...]] = ()
    by_name: ClassVar[bool] = True

    def __repr__(self) -> str:
        return f"<TaskRef {self.name!r}>"

    def __post_init__(self) -> None:
        check_name("task", self.name, what="name", error=TaskNameError)

    def options(self, **values: Unpack[OptionValues]) -> TaskRef:
        """Return a copy of this task whose messages are sent with these options."""
        return replace(self, send_options=merge(self.send_options, values))

    def call(self, /, *args: Any, **kwargs: Any) -> Call[Any]:
        """Return the task with its arguments, for `enqueue_many`, `start` and `schedule`."""
        return Call(self, args, kwargs)


class _HasAttributes:
    """Gives tasks, whose fields are slots, attributes that their class has, too: `__doc__`, `__module__`."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Task(_HasAttributes, Generic[P, R]):
    """A function that workers run, with its name and its policy. `@task` makes it.

    `timeout` (s) limits a run. `result_ttl` (s) is how long a result is kept, None: no result is kept. `run_in` is
    where the function runs: in the event loop, in a thread or in a process. `middleware` wraps the runs and the
    enqueues of this task, inside the middleware of broker and worker. When the task is dead-lettered, `on_exhausted`
    is called, or sent if it is a task. `cron` are the schedules that send it. `tier` is the name of the tier of
    messages that name neither a tier nor a priority.
    """

    function: Callable[..., Any]
    name: str
    policy: RetryPolicy
    timeout: float | None
    result_ttl: float | None
    priority: int | None
    run_in: RunIn
    arguments: Arguments
    send_options: Options = NO_OPTIONS
    middleware: tuple[Any, ...] = ()
    cron: tuple[Cron, ...] = ()
    on_exhausted: Callable[[Exhausted], object] | Task[..., Any] | None = None
    tier: str | None = None
    placed: tuple[str | None, int | None] = field(init=False)  # the tier and the priority of a message

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function itself, in this process."""
        return self.function(*args, **kwargs)

    # --- what its function shows -----------------------------------------------------------

    def __post_init__(self) -> None:
        """Show what the class has, too, as the function has it."""
        shown = vars(self)
        shown["__qualname__"] = getattr(self.function, "__qualname__", self.name)
        shown["__module__"] = getattr(self.function, "__module__", None)
        shown["__doc__"] = getattr(self.function, "__doc__", None)
        shown["__annotations__"] = annotations_of(self.function)
        options = self.send_options
        tier = self.tier if options.tier is None and options.priority is None else options.tier
        placed = tier, self.priority if options.priority is None else options.priority
        object.__setattr__(self, "placed", placed)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.function

    @property
    def __name__(self) -> str:
        found = getattr(self.function, "__name__", None)
        return found if isinstance(found, str) else self.name

    @property
    def __code__(self) -> CodeType:
        return code_of(self.function)

    @property
    def __defaults__(self) -> tuple[Any, ...] | None:
        return getattr(self.function, "__defaults__", None)

    @property
    def __kwdefaults__(self) -> dict[str, Any] | None:
        return getattr(self.function, "__kwdefaults__", None)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle the task by the name of its function. Raises TypeError if it is not found there."""
        qualname: str = vars(self)["__qualname__"]
        found = found_by_name(self.__module__, qualname)
        if found is self:
            return qualname
        if isinstance(found, Task) and found.function is self.function:
            return _with_options, (found, self.send_options)
        raise TypeError(
            f"task {self.name!r} cannot be pickled: it is not found as {self.__module__}.{qualname}; "
            "define it at the top of a module, under the name of its function"
        )

    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return the task with its arguments, for `enqueue_many`, `start` and `schedule`."""
        return Call(self, args, kwargs)


def _with_options(task: Task[P, R], options: Options) -> Task[P, R]:
    return replace(task, send_options=options)


class AsyncTask(Task[P, R]):
    """A task whose function is async."""

    __slots__ = ()

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function itself, in this process."""
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]

    def options(self, **values: Unpack[OptionValues]) -> AsyncTask[P, R]:
        """Return a copy of this task whose messages are sent with these options."""
        return replace(self, send_options=merge(self.send_options, values))


class SyncTask(Task[P, R]):
    """A task whose function is not async; it runs in a thread or a process."""

    __slots__ = ()

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, in this process."""
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]

    def options(self, **values: Unpack[OptionValues]) -> SyncTask[P, R]:
        """Return a copy of this task whose messages are sent with these options."""
        return replace(self, send_options=merge(self.send_options, values))


@dataclass(frozen=True, slots=True)
class Call(Flow[R]):
    """A task with its arguments. `enqueue_many` sends it, and `then` makes it the first step of a workflow."""

    task: Task[..., R] | TaskRef
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def options(self, **values: Unpack[OptionValues]) -> Call[R]:
        """Return a copy of this call with these options replaced. Options that are not named stay."""
        task: Any = self.task
        return replace(self, task=task.options(**values))


def check_calls(calls: Iterable[Any]) -> tuple[Call[Any], ...]:
    """Return the calls as a tuple. Raises ConfigurationError, with the remedy, for anything else."""
    given = check_items("calls", calls, "a list of calls, made with task.call(...)")
    for place, call in enumerate(given):
        if not isinstance(call, Call):
            raise ConfigurationError(f"calls[{place}] is no call: {_remedy(call)}")
    return given


def _remedy(call: Any) -> str:
    match call:
        case Task() | TaskRef():
            return f"{call.name} has no arguments yet: write {call.name}.call(...)"
        case str():
            return "it is a text: write TaskRef(name).call(...) for a task of that name"
        case Flow():
            return f"it is a {type(call).__name__}: start a workflow with broker.start(...)"
        case _:
            return f"it is of type {type(call).__name__}: give what task.call(...) returns"
