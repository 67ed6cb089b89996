"""`@task`: makes a function a task, and checks what was given to it.

The checks are here, at the declaration, so that a mistake is found when the module is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, overload

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ArgumentsError, ConfigurationError, TaskNameError
from streamq.tasks.arguments import Arguments
from streamq.tasks.cron import Cron
from streamq.tasks.exhausted import Exhausted
from streamq.tasks.function import check_function, check_importable, function_of, is_async, name_of
from streamq.tasks.retry_policy import DEFAULT_RETRIES, LONGEST, Backoff, BackoffLike, RetriesLike, RetryPolicy
from streamq.tasks.task import AsyncTask, RunIn, SyncTask, Task
from streamq.wire import bounds
from streamq.wire.argument_types import check_items, check_type
from streamq.wire.names import check_name

P = ParamSpec("P")
R = TypeVar("R")

_A_CRON = "a cron expression, a Cron, or a list of them"
# Options that a task of `on_exhausted` cannot have: the script that writes the dead letter does not keep them.
_NOT_ON_EXHAUSTED = ("at", "expires", "task_id", "durable", "dedup_key")


class _Decorator:
    """`@task(...)` with options. Its overloads tell type checkers async functions from sync ones."""

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
    *, name: str | None = None, retries: RetriesLike = DEFAULT_RETRIES, timeout: float | timedelta | None = None,
    result_ttl: float | timedelta | None = None, priority: int | None = None, tier: str | None = None,
    run_in: RunIn | None = None,
    backoff: BackoffLike | None = None, max_backoff: float | timedelta = LONGEST,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = (), validate: bool = True,
    middleware: Iterable[Any] = (), on_exhausted: Callable[[Exhausted], object] | Task[..., Any] | None = None,
    cron: str | Cron | Iterable[str | Cron] = (),
) -> _Decorator: ...  # fmt: skip
def task(function: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """Make a function a task: `@task` or `@task(retries=5, timeout=60, ...)`.

    - `name` is what messages call the task; by default the name of the function.
    - `retries` is how many runs there are after the first. `backoff` is the delay before each: a `Backoff`, `Linear`,
      `Fixed` or `Delays`, seconds, a list of seconds, or a function of the attempt and the exception that returns
      seconds. Both can be a mapping from exception classes. No delay is longer than `max_backoff` (s).
    - `retry_on` and `give_up_on` are exception classes; `give_up_on` wins. An error that is not retried dead-letters
      the task as `rejected`.
    - `on_exhausted` is called with an `Exhausted` when the task is dead-lettered. If it is a task, it is sent in the
      same atomic step.
    - `timeout` (s) limits a run. `result_ttl` (s) is how long the result is kept.
    - `priority` and `tier` apply to messages that name neither. `tier` goes before `priority`, and is checked when the
      task is sent: the broker must have a tier of that name.
    - `run_in` is "loop" (the default of async functions), "thread" (the default of all others) or "process" (for work
      that keeps a core busy; the function must be importable).
    - `validate=False` turns off the check of arguments against annotations, where pydantic is installed.
    - `middleware` wraps the runs and the enqueues of this task, inside the middleware of broker and worker.
    - `cron` is a cron expression, a `Cron`, or several: the task is sent at each tick.

    Raises TaskNameError for a name that cannot be used, ConfigurationError for any other value.
    """
    check_options("@task", settings, _make.__kwdefaults__ or {})
    return _Decorator(**settings) if function is None else _make(function, **settings)


def check_options(decorator: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigurationError, which names them, for options that a decorator does not have."""
    if unknown := ", ".join(sorted({*given} - {*known})):
        raise ConfigurationError(f"{decorator} has no option {unknown}: it has {', '.join(known)}")


def _make(
    function: Callable[..., Any], *,
    name: str | None = None, retries: RetriesLike = DEFAULT_RETRIES, timeout: float | timedelta | None = None,
    result_ttl: float | timedelta | None = None, priority: int | None = None, tier: str | None = None,
    run_in: RunIn | None = None,
    backoff: BackoffLike | None = None, max_backoff: float | timedelta = LONGEST,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = (), validate: bool = True,
    middleware: Iterable[Any] = (), on_exhausted: Callable[[Exhausted], object] | Task[..., Any] | None = None,
    cron: str | Cron | Iterable[str | Cron] = (),
) -> Task[Any, Any]:  # fmt: skip
    function = function_of(function)
    named = name_of(function) if name is None else name
    check_name("task", named, what="@task(name=...)", error=TaskNameError)
    check_function(function, named)
    in_loop = is_async(function)
    place: RunIn = run_in or ("loop" if in_loop else "thread")
    if place not in ("loop", "thread", "process") or in_loop != (place == "loop"):
        raise ConfigurationError(f"task {named!r} has run_in={repr_of(run_in)}, {_wanted(place, in_loop=in_loop)}")
    if place == "process":
        check_importable(function, named)
    limit = None if timeout is None else bounds.TASK_TIMEOUT.check(timeout, f"task {named!r}: timeout")
    keep = None if result_ttl is None else bounds.TASK_RESULT_TTL.check(result_ttl, f"task {named!r}: result_ttl")
    if priority is not None:
        bounds.PRIORITY.check(priority, f"task {named!r}: priority")
    if tier is not None:
        check_name("tier", tier, what=f"task {named!r}: tier")
    policy = RetryPolicy(
        retries,
        backoff if backoff is not None else Backoff(),
        retry_on if isinstance(retry_on, tuple) else (retry_on,),
        give_up_on if isinstance(give_up_on, tuple) else (give_up_on,),
        bounds.MAX_BACKOFF.check(max_backoff, f"task {named!r}: max_backoff"),
    )
    check_type(f"task {named!r}: validate", validate, bool, "True or False")
    links = check_items(f"task {named!r}: middleware", middleware, "a list of middleware")
    _check_middleware(named, links)
    _check_on_exhausted(named, on_exhausted)
    kind = AsyncTask if in_loop else SyncTask
    arguments = Arguments(named, function, validate=validate)
    return kind(
        function, named, policy, limit, keep, priority, place, arguments, middleware=links, on_exhausted=on_exhausted,
        cron=_crons(named, cron, arguments), tier=tier,
    )  # fmt: skip


def _wanted(place: str, *, in_loop: bool) -> str:
    """Return why a function does not run in this place, and what to write."""
    match place:
        case "thread" | "process":
            return f"but its function is async: write 'def' instead of 'async def', or leave run_in={place!r} out"
        case "loop":
            return "but its function is not async: write 'async def', or run_in='thread' or 'process'"
        case _:
            return "which is no place to run: " + (
                "leave it out, as its function is async" if in_loop else "give 'thread' or 'process'"
            )


def _check_middleware(name: str, links: Iterable[Any]) -> None:
    """Raise ConfigurationError as MiddlewareChain would: it is in a folder above this one."""
    for link in links:
        if isinstance(link, type) or not (callable(link) or hasattr(link, "enqueue")):
            raise ConfigurationError(
                f"task {name!r}: {repr_of(link)} is no middleware: give an object that wraps runs or enqueues"
            )


def _crons(name: str, given: str | Cron | Iterable[str | Cron], arguments: Arguments) -> tuple[Cron, ...]:
    found = (given,) if isinstance(given, str | Cron) else check_items(f"task {name!r}: cron", given, _A_CRON)
    for one in found:
        if not isinstance(one, str | Cron):
            raise ConfigurationError(f"task {name!r} has cron={repr_of(one)}: give a cron expression, or a Cron")
    crons = tuple(Cron(one) if isinstance(one, str) else one for one in found)
    for one in crons:
        try:
            arguments.bind(one.args, one.kwargs)
        except ArgumentsError as error:
            sent = (
                f"args={repr_of(one.args)}, kwargs={repr_of(one.kwargs)}" if one.args or one.kwargs else "no arguments"
            )
            raise ConfigurationError(
                f"task {name!r} has cron={one.expression!r}, whose ticks give it {sent}: "
                f"{error.reason}; write Cron({one.expression!r}, args=(...)), or kwargs={{...}}"
            ) from None
    return crons


def _check_on_exhausted(name: str, then: Any) -> None:
    """Raise ConfigurationError unless `then` can be called, or sent, when the task is dead-lettered."""
    if then is not None and (not callable(then) or isinstance(then, type)):
        raise ConfigurationError(
            f"task {name!r} has on_exhausted={repr_of(then)}: give a function of one argument, an Exhausted, or a task"
        )
    if not isinstance(then, Task):
        return
    try:
        then.arguments.bind([{}], {})
    except ArgumentsError as error:
        raise ConfigurationError(f"task {name!r}: on_exhausted is given one argument, a dict: {error}") from None
    if refused := [option for option in _NOT_ON_EXHAUSTED if getattr(then.send_options, option) is not None]:
        raise ConfigurationError(
            f"task {name!r}: on_exhausted has {', '.join(refused)}, which cannot be kept in the step of the dead letter"
        )
