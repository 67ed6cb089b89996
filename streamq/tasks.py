"""`@task`: a function with a name and a policy. Holds no broker and no worker.

`Task[P, R]` carries the function's own parameters, so `broker.enqueue(send, "a@b.c", n=2)` is
checked by mypy and pyright as the call would be.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, get_args, overload

from streamq.arguments import Arguments
from streamq.errors import ConfigurationError, TaskNameError
from streamq.retry import DEFAULT_RETRIES, Backoff, RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="Task[Any, Any]")

RunIn = Literal["loop", "thread", "process"]
Durable = Literal["replica", "aof"]
DURABLE = get_args(Durable)
_NAME = re.compile(r"[^\s|\ud800-\udfff]{1,200}")
_NAME_RULE = "1 to 200 characters, no white space or '|'"


class OptionValues(TypedDict, total=False):
    """The options of one enqueue; `Options` says what they mean."""

    priority: int
    tier: str
    delay: float | timedelta
    at: datetime | float
    expires: float | timedelta | datetime
    retries: int
    timeout: float
    result_ttl: float
    dedup_key: str
    dedup_ttl: float
    task_id: str
    headers: Mapping[str, Any]
    durable: Durable


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one message is to be sent. None means: as the task, or the broker, says.

    `priority` picks the tier by threshold, `tier` names it. `delay` (s) or `at` (an aware
    datetime or Unix seconds) say when it may start at the earliest, `expires` (s from now, or
    an aware datetime) when it may start at the latest. `retries`, `timeout` (s) and
    `result_ttl` (s) override those of the task. Of all enqueues with one `dedup_key` within
    `dedup_ttl` (s) the first wins. An enqueue repeated with the same `task_id` is accepted once.
    `durable` has the enqueue wait until the task outlives its server: it is on a "replica" too,
    or in the append-only file on disk ("aof").
    """

    priority: int | None = None
    tier: str | None = None
    delay: float | timedelta | None = None
    at: datetime | float | None = None
    expires: float | timedelta | datetime | None = None
    retries: int | None = None
    timeout: float | None = None
    result_ttl: float | None = None
    dedup_key: str | None = None
    dedup_ttl: float | None = None
    task_id: str | None = None
    headers: Mapping[str, Any] | None = None
    durable: Durable | None = None

    def __post_init__(self) -> None:
        self._check_together()
        self._check_numbers()
        for name, kinds, wanted in _KINDS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise ConfigurationError(f"{name}={value!r} cannot be used: give {wanted}")
        if self.durable is not None and self.durable not in DURABLE:
            raise ConfigurationError(f"durable={self.durable!r} cannot be used: give one of {', '.join(DURABLE)}")
        if self.task_id is not None and not _NAME.fullmatch(self.task_id):
            raise ConfigurationError(f"task_id={self.task_id!r} cannot be used: {_NAME_RULE}")

    def _check_together(self) -> None:
        if self.delay is not None and self.at is not None:
            raise ConfigurationError(f"delay={self.delay!r} and at={self.at!r}: give one of them")
        if self.dedup_ttl is not None and self.dedup_key is None:
            raise ConfigurationError(f"dedup_ttl={self.dedup_ttl!r} without dedup_key: give both, or the key alone")

    def _check_numbers(self) -> None:
        for name in ("at", "expires"):
            moment = getattr(self, name)
            if isinstance(moment, datetime) and moment.tzinfo is None:
                raise ConfigurationError(f"{name}={moment!r} has no time zone: use datetime.now(UTC) and its like")
        for name in ("delay", "timeout", "result_ttl", "dedup_ttl", "expires", "retries"):
            value = getattr(self, name)
            value = value.total_seconds() if isinstance(value, timedelta) else value
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name}={value!r} cannot be used: give a number of at least 0")
        if isinstance(self.at, int | float) and not 0 < self.at < float("inf"):
            raise ConfigurationError(f"at={self.at!r} cannot be used: give Unix seconds or an aware datetime")


# Checked where it is written, and not by the worker that cannot read it.
_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("priority", int, "an integer"),
    ("tier", str, "the name of a tier"),
    ("delay", int | float | timedelta, "seconds or a timedelta"),
    ("at", int | float | datetime, "Unix seconds or an aware datetime"),
    ("expires", int | float | timedelta | datetime, "seconds, a timedelta or an aware datetime"),
    ("retries", int, "an integer"),
    ("timeout", int | float, "seconds"),
    ("result_ttl", int | float, "seconds"),
    ("dedup_key", str, "a str"),
    ("dedup_ttl", int | float, "seconds"),
    ("task_id", str, "a str"),
    ("headers", Mapping, "a dict of what JSON can carry"),
)
OPTION_NAMES = frozenset(option.name for option in fields(Options))
NO_OPTIONS = Options()


def merge(options: Options, values: Mapping[str, Any]) -> Options:
    """Return options with some of them replaced. Raises ConfigurationError for an unknown one."""
    unknown = set(values) - OPTION_NAMES
    if unknown:
        raise ConfigurationError(
            f"no such option: {', '.join(sorted(unknown))}; there are {', '.join(sorted(OPTION_NAMES))}"
        )
    return replace(options, **values)


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task known by its name only: its code lives in the worker."""

    name: str
    sending: Options = NO_OPTIONS
    middleware: ClassVar[tuple[Any, ...]] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TaskNameError(f"{self.name!r} cannot name a task: {_NAME_RULE}")

    def options(self, **values: Unpack[OptionValues]) -> TaskRef:
        """Return this task with options for the messages that are sent through it."""
        return replace(self, sending=merge(self.sending, values))

    def call(self, /, *args: Any, **kwargs: Any) -> Call[Any]:
        """Return a message to be sent with `enqueue_many`."""
        return Call(self, args, kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class Task(Generic[P, R]):
    """A function that workers run, with its name and its policy. Made by `@task`.

    `timeout` is in seconds; `result_ttl` is how long (s) results are kept, None for not at all;
    `run_in` is where it runs: in the event loop, in a thread, or in a process. `middleware`
    wraps its runs and its enqueues, inside that of broker and worker.
    """

    function: Callable[..., Any]
    name: str
    policy: RetryPolicy
    timeout: float | None
    result_ttl: float | None
    priority: int | None
    run_in: RunIn
    arguments: Arguments = field(repr=False)
    sending: Options = NO_OPTIONS
    middleware: tuple[Any, ...] = ()

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function itself, here and now."""
        return self.function(*args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.function

    @property
    def __name__(self) -> str:
        return self.name

    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return a message to be sent with `enqueue_many`."""
        return Call(self, args, kwargs)


class AsyncTask(Task[P, R]):
    """A task whose function is async."""

    __slots__ = ()

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function itself, here and now."""
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]

    def options(self, **values: Unpack[OptionValues]) -> AsyncTask[P, R]:
        """Return this task with options for the messages that are sent through it."""
        return replace(self, sending=merge(self.sending, values))


class SyncTask(Task[P, R]):
    """A task whose function is not async; it runs in a thread or a process."""

    __slots__ = ()

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, here and now."""
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]

    def options(self, **values: Unpack[OptionValues]) -> SyncTask[P, R]:
        """Return this task with options for the messages that are sent through it."""
        return replace(self, sending=merge(self.sending, values))


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A task and its arguments, to be sent."""

    task: Task[..., R] | TaskRef
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def options(self, **values: Unpack[OptionValues]) -> Call[R]:
        """Return this call with other options of its message; those not given stay."""
        task: Any = self.task
        return replace(self, task=task.options(**values))


class _Decorator:
    """`@task(...)` with options; keeps async and sync functions apart for type checkers."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> SyncTask[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        return _make(function, **self._settings)


@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def task(function: Callable[P, R], /) -> SyncTask[P, R]: ...
@overload
def task(
    *, name: str | None = None, retries: int = DEFAULT_RETRIES, timeout: float | None = None,
    result_ttl: float | None = None, priority: int | None = None, run_in: RunIn | None = None,
    backoff: Backoff | Callable[[int, BaseException], float] | None = None,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = (), validate: bool = True,
    middleware: Iterable[Any] = (),
) -> _Decorator: ...  # fmt: skip
def task(function: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """Make a function a task: `@task` or `@task(retries=5, timeout=60, ...)`.

    `name` is the function's own unless given. `retries` counts runs after the first; `backoff`
    is a `Backoff` or a function of the attempt and the exception that returns seconds;
    `give_up_on` wins over `retry_on`, and what is not retried is dead-lettered as `rejected`.
    `timeout` (s) bounds a run, `result_ttl` (s) keeps its result. `run_in` is "loop" (the
    default of async functions), "thread" (of all others) or "process" (for work that keeps a
    core busy; the function must be importable). `validate=False` leaves arguments unchecked
    against annotations where pydantic is installed. `middleware` wraps the runs and the enqueues
    of this task, inside that of the broker and of the worker.

    Raises TaskNameError for an unusable name, ConfigurationError for an unusable option.
    """
    return _Decorator(**settings) if function is None else _make(function, **settings)


def _make(
    function: Callable[..., Any], *,
    name: str | None = None, retries: int = DEFAULT_RETRIES, timeout: float | None = None,
    result_ttl: float | None = None, priority: int | None = None, run_in: RunIn | None = None,
    backoff: Backoff | Callable[[int, BaseException], float] | None = None,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = (), validate: bool = True,
    middleware: Iterable[Any] = (),
) -> Task[Any, Any]:  # fmt: skip
    if not callable(function) or isinstance(function, type | Task):
        raise ConfigurationError(f"@task is for functions, not for {function!r}")
    named = name if name is not None else getattr(function, "__name__", "")
    if not _NAME.fullmatch(named) or named == "<lambda>":
        raise TaskNameError(f"{named!r} cannot name a task: give @task(name=...) of {_NAME_RULE}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"task {named!r} is a generator function: a task returns once")
    # An object whose __call__ is async is an async function as well.
    is_async = any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None))))  # noqa: B004
    place: RunIn = run_in or ("loop" if is_async else "thread")
    if place not in ("loop", "thread", "process") or is_async != (place == "loop"):
        wanted = "'loop'" if is_async else "'thread' or 'process'"
        raise ConfigurationError(f"task {named!r} has run_in={run_in!r}: its function wants {wanted}")
    for what, value in (("timeout", timeout), ("result_ttl", result_ttl)):
        if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise ConfigurationError(f"task {named!r} has {what}={value!r}: give seconds greater than 0, or None")
    for link in middleware:  # as MiddlewareChain, which is above this module, will say of it
        if isinstance(link, type) or not (callable(link) or hasattr(link, "enqueue")):
            raise ConfigurationError(
                f"task {named!r}: {link!r} is no middleware: give an object that wraps runs or enqueues"
            )
    if priority is not None and not isinstance(priority, int):
        raise ConfigurationError(f"task {named!r} has priority={priority!r}: give an integer")
    policy = RetryPolicy(
        retries,
        backoff if backoff is not None else Backoff(),
        retry_on if isinstance(retry_on, tuple) else (retry_on,),
        give_up_on if isinstance(give_up_on, tuple) else (give_up_on,),
    )
    kind = AsyncTask if is_async else SyncTask
    return kind(
        function, named, policy, timeout, result_ttl, priority, place,
        Arguments(named, function, validate=validate), middleware=tuple(middleware),
    )  # fmt: skip
