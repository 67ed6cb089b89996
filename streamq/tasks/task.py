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

from streamq.errors import ArgumentsError, ConfigurationError, TaskNameError
from streamq.tasks.arguments import Arguments
from streamq.tasks.cron import Cron
from streamq.tasks.exhausted import Exhausted
from streamq.tasks.retry_policy import DEFAULT_RETRIES, LONGEST, Backoff, BackoffLike, RetriesLike, RetryPolicy
from streamq.wire.flow import Flow

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="Task[Any, Any]")

RunIn = Literal["loop", "thread", "process"]
Durable = Literal["replica", "aof"]
DURABLE = get_args(Durable)
DedupUntil = Literal["until_started", "until_done"]
DedupMode = Literal["throttle", "debounce", "keep_last"]
DEDUP_WORDS = get_args(DedupUntil)
DEDUP_MODES = get_args(DedupMode)
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
    dedup_ttl: float | DedupUntil
    dedup_window: float | DedupUntil
    dedup_mode: DedupMode
    dedup_max_delay: float
    task_id: str
    headers: Mapping[str, Any]
    durable: Durable


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one message is to be sent. None means: as the task, or the broker, says.

    `priority` picks the tier by threshold, `tier` names it. `delay` (s) or `at` (an aware
    datetime or Unix seconds) say when it may start at the earliest, `expires` (s from now, or
    an aware datetime) when it may start at the latest. `retries`, `timeout` (s) and
    `result_ttl` (s) override those of the task. Of all enqueues with one `dedup_key` the first wins
    for `dedup_ttl` (s), or, by `dedup_window`, until it has started or is done (`dedup_ttl` bounds
    that then). With `dedup_mode` "debounce" or "keep_last" the newest wins, and may put the task off
    for `dedup_max_delay` (s). An enqueue repeated with the same `task_id` is accepted once.
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
    dedup_ttl: float | DedupUntil | None = None
    dedup_window: float | DedupUntil | None = None
    dedup_mode: DedupMode | None = None
    dedup_max_delay: float | None = None
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
        if self.dedup_key is None:
            for name in _OF_A_KEY:
                if (value := getattr(self, name)) is not None:
                    raise ConfigurationError(f"{name}={value!r} without dedup_key: give both, or the key alone")
        else:
            self._check_dedup()

    def _check_dedup(self) -> None:
        ttl, window, mode, bound = self.dedup_ttl, self.dedup_window, self.dedup_mode, self.dedup_max_delay
        for name, word, words in (("dedup_mode", mode, DEDUP_MODES), ("dedup_window", window, DEDUP_WORDS),
                                  ("dedup_ttl", ttl, DEDUP_WORDS)):  # fmt: skip
            if isinstance(word, str) and word not in words:
                more = "" if name == "dedup_mode" else ", or seconds"
                raise ConfigurationError(f"{name}={word!r} cannot be used: give one of {', '.join(words)}{more}")
        if ttl is not None and window is not None and (isinstance(ttl, str) or not isinstance(window, str)):
            raise ConfigurationError(
                f"dedup_ttl={ttl!r} and dedup_window={window!r}: give one, or a word as window and seconds as ttl"
            )
        if mode == "debounce":
            if not self.delay:
                raise ConfigurationError(f"dedup_mode='debounce' with delay={self.delay!r}: give the delay to restart")
            if ttl is not None or window is not None:
                named = "dedup_window" if ttl is None else "dedup_ttl"
                raise ConfigurationError(f"dedup_mode='debounce' with {named}: leave that out, its window is its delay")
        if mode == "keep_last" and isinstance(window, int | float):
            remedy = "give until_started or until_done"
            raise ConfigurationError(f"dedup_mode='keep_last' with dedup_window={window!r}: {remedy}")
        if bound is not None and mode not in ("debounce", "keep_last"):
            raise ConfigurationError(f"dedup_max_delay={bound!r}: only dedup_mode 'debounce' and 'keep_last' put off")

    def _check_numbers(self) -> None:
        for name in ("at", "expires"):
            moment = getattr(self, name)
            if isinstance(moment, datetime) and moment.tzinfo is None:
                raise ConfigurationError(f"{name}={moment!r} has no time zone: use datetime.now(UTC) and its like")
        for name in ("delay", "timeout", "result_ttl", "dedup_ttl", "dedup_window", "dedup_max_delay", "expires",
                     "retries"):  # fmt: skip
            value = getattr(self, name)
            value = value.total_seconds() if isinstance(value, timedelta) else value
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name}={value!r} cannot be used: give a number of at least 0")
        if isinstance(self.at, int | float) and not 0 < self.at < float("inf"):
            raise ConfigurationError(f"at={self.at!r} cannot be used: give Unix seconds or an aware datetime")


_OF_A_KEY = ("dedup_ttl", "dedup_window", "dedup_mode", "dedup_max_delay")
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
    ("dedup_ttl", int | float | str, "seconds, 'until_started' or 'until_done'"),
    ("dedup_window", int | float | str, "seconds, 'until_started' or 'until_done'"),
    ("dedup_mode", str, "one of throttle, debounce, keep_last"),
    ("dedup_max_delay", int | float, "seconds"),
    ("task_id", str, "a str"),
    ("headers", Mapping, "a dict of what JSON can carry"),
)
OPTION_NAMES = frozenset(option.name for option in fields(Options))
_NOT_AT_DEATH = ("at", "expires", "task_id", "durable", "dedup_key")
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
    by_name: ClassVar[bool] = True

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
    wraps its runs and its enqueues, inside that of broker and worker. `on_exhausted` is called, or
    sent if it is a task, when the task is dead. `cron` is when it runs without being sent.
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
    cron: tuple[Cron, ...] = ()
    on_exhausted: Callable[[Exhausted], object] | Task[..., Any] | None = None

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
class Call(Flow[R]):
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
    *, name: str | None = None, retries: RetriesLike = DEFAULT_RETRIES, timeout: float | None = None,
    result_ttl: float | None = None, priority: int | None = None, run_in: RunIn | None = None,
    backoff: BackoffLike | None = None, max_backoff: float = LONGEST,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = (), validate: bool = True,
    middleware: Iterable[Any] = (), on_exhausted: Callable[[Exhausted], object] | Task[..., Any] | None = None,
    cron: str | Cron | Iterable[str | Cron] = (),
) -> _Decorator: ...  # fmt: skip
def task(function: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """Make a function a task: `@task` or `@task(retries=5, timeout=60, ...)`.

    `name` is the function's own unless given. `retries` counts runs after the first; `backoff`
    is a schedule (`Backoff`, `Linear`, `Fixed`, `Delays`), seconds, a list of them, or a function of
    the attempt and the exception that returns seconds. Both may be a mapping from exception classes.
    No delay is longer than `max_backoff` (s). `give_up_on` wins over `retry_on`, and what is not
    retried is dead-lettered as `rejected`. `on_exhausted` is called with an `Exhausted` once the task
    is dead; a task in its place is sent in the same step.
    `timeout` (s) bounds a run, `result_ttl` (s) keeps its result. `run_in` is "loop" (the
    default of async functions), "thread" (of all others) or "process" (for work that keeps a
    core busy; the function must be importable). `validate=False` leaves arguments unchecked
    against annotations where pydantic is installed. `middleware` wraps the runs and the enqueues
    of this task, inside that of the broker and of the worker. `cron` is when it runs without being
    sent: a cron expression, a `Cron`, or several.

    Raises TaskNameError for an unusable name, ConfigurationError for an unusable option.
    """
    return _Decorator(**settings) if function is None else _make(function, **settings)


def _make(
    function: Callable[..., Any], *,
    name: str | None = None, retries: RetriesLike = DEFAULT_RETRIES, timeout: float | None = None,
    result_ttl: float | None = None, priority: int | None = None, run_in: RunIn | None = None,
    backoff: BackoffLike | None = None, max_backoff: float = LONGEST,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = (), validate: bool = True,
    middleware: Iterable[Any] = (), on_exhausted: Callable[[Exhausted], object] | Task[..., Any] | None = None,
    cron: str | Cron | Iterable[str | Cron] = (),
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
        max_backoff,
    )
    _check_exhausted(named, on_exhausted)
    kind = AsyncTask if is_async else SyncTask
    return kind(
        function, named, policy, timeout, result_ttl, priority, place,
        Arguments(named, function, validate=validate), middleware=tuple(middleware), on_exhausted=on_exhausted,
        cron=_crons(named, cron),
    )  # fmt: skip


def _crons(name: str, given: str | Cron | Iterable[str | Cron]) -> tuple[Cron, ...]:
    found = (given,) if isinstance(given, str | Cron) else tuple(given)
    for one in found:
        if not isinstance(one, str | Cron):
            raise ConfigurationError(f"task {name!r} has cron={one!r}: give a cron expression, or a Cron")
    return tuple(Cron(one) if isinstance(one, str) else one for one in found)


def _check_exhausted(name: str, then: Any) -> None:
    """Raise ConfigurationError unless this can be called, or sent, when a task is dead."""
    if then is not None and (not callable(then) or isinstance(then, type)):
        raise ConfigurationError(
            f"task {name!r} has on_exhausted={then!r}: give a function of one argument, an Exhausted, or a task"
        )
    if not isinstance(then, Task):
        return
    try:
        then.arguments.bind([{}], {})
    except ArgumentsError as error:
        raise ConfigurationError(f"task {name!r}: on_exhausted is given one argument, a dict: {error}") from None
    if refused := [option for option in _NOT_AT_DEATH if getattr(then.sending, option) is not None]:
        raise ConfigurationError(
            f"task {name!r}: on_exhausted has {', '.join(refused)}, which cannot be kept in the step of the dead letter"
        )
