"""What a run leaves behind: open cancel scopes and task groups.

Theory. Runs share the anyio task of their runner. A cancel scope that a run entered and did not leave would go on
around the next run, and cancel that one. It is left open by an async generator that yields inside of a scope and is
abandoned half way, by an exit stack that nobody closes, or by hand. Context variables are compared by the runner.

Cost. Both backends keep the scopes inside of a scope in a set. `RunScope.inner` is that set of the run's scope: it is
empty after each good run, so one look tells. Everything else happens only where something was left. anyio has no public
name for the set: where a backend keeps none, nothing is noticed. `tests/consumer/test_left_behind.py` shows that the
installed versions do.

A generator that is abandoned with a scope open must be closed in the task that opened it. The event loop would do it in
another one; under trio the end of a nursery then wakes the wrong task, and the loop hangs. So the finalizer of the loop
is preceded by one of ours, which keeps such a generator until its run ends. Python's collector may come while another
task runs: so the run of each generator is noted when it begins.
"""

# ruff: noqa: SLF001 - no backend has public names for the scopes inside of a scope
from __future__ import annotations

import sys
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from math import inf
from types import MethodType
from typing import Any, overload

import anyio
import anyio.lowlevel

from streamq.consumer.warning_filters import filters
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.errors import LeftOpenError
from streamq.errors.readable import readable

log = SafeLog("streamq")

CLOSE_WITHIN = 5.0  # seconds for what a run left open to end
_LOOK_EVERY = 0.01  # seconds between two looks whether it has ended
MISNESTED = (
    RuntimeError,
    AssertionError,
    BaseExceptionGroup,
)  # what the exit of a scope raises while one inside of it is open
_MISNESTING = ("Cancel scope stack corrupted", "Attempted to exit a cancel scope that isn't the current")
_Generator = AsyncGenerator[Any, Any]
_runs: dict[int, RunScope] = {}  # by the id of the task that makes the run
# By the id of the generator: its weak references end before its finalizer is called. That of one that has ended stays
# until a new generator has its id, so there are as many as there were generators at a time.
_begun_in: dict[int, RunScope] = {}


class RunScope:
    """The cancel scope that a function of the user runs in, after it was entered, and what was left open in it."""

    _must_cancel = False
    __slots__ = ("_closing", "_entered", "_watched", "abandoned", "inner", "left_open", "requests", "scope", "task")

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self.abandoned: list[_Generator] = []  # generators that the run dropped while scopes were open
        self._closing = False
        self._watched = False
        self.left_open = False  # something was left open in it: no other run may begin in it
        self._entered = _Asyncio.of(scope) or _Trio.of(scope)
        self.inner: Collection[object] = frozenset() if self._entered is None else self._entered.inner
        # How many requests to cancel the task of the run are open: `asyncio.current_task().cancel()` in a handler.
        self.requests: Callable[[], int] = int if self._entered is None else self._entered.requests
        # asyncio before Python 3.13 ends the next wait of a task although `uncancel()` took the request back. It tells
        # by `_must_cancel` of the task, False where there is none.
        self.task: Any = RunScope if self._entered is None else self._entered.task

    def asked_to_end(self) -> bool:
        """Will the next wait of this task raise a cancellation that the run has left, or is a request open?"""
        return bool(self.requests() or self.task._must_cancel)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the generators that are abandoned in this task, until this is left."""
        task = anyio.get_current_task().id
        _runs[task] = self
        self._watched = True
        try:
            yield
        finally:
            self._watched = False
            del _runs[task]

    @overload
    async def close(self, name: str, error: BaseException) -> BaseException: ...
    @overload
    async def close(self, name: str, error: None = None) -> LeftOpenError | None: ...
    async def close(self, name: str, error: BaseException | None = None) -> BaseException | None:
        """Close what the run of the task `name`, which raised `error` or nothing, left open.

        Return the error of the run: LeftOpenError if it left something open and had no error of its own.
        """
        left = len(self.inner) + self._nurseries()
        if _is_misnesting(error):  # the exit of an outer scope has already dropped what was open
            left += 1
        if not (left or self.abandoned):
            return error
        generators = tuple(_place(generator) for generator in self.abandoned)
        self.scope.deadline = anyio.current_time() + CLOSE_WITHIN
        self._closing = True
        await self._close_abandoned()
        if self._entered is not None and (self.inner or self._nurseries()):
            await self._leave_scopes(self._entered)
        self._closing = False
        self.scope.deadline = inf
        if not (left or (generators and isinstance(error, MISNESTED))):
            return error
        self.left_open = True
        where = f", in the async generator {', '.join(generators)}: use contextlib.aclosing" if generators else ""
        opened = LeftOpenError(name, where)
        if error is None:
            return opened
        cancelled = anyio.get_cancelled_exc_class()
        goes_on = anyio.current_effective_deadline() != -inf
        if _is_misnesting(error) or (goes_on and isinstance(error, (*MISNESTED, cancelled))):
            opened.__cause__ = error
            return opened
        log.warning("%s, and raised %s", opened, repr_of(error), event="left_behind")
        return error

    def keep(self, generator: _Generator) -> bool:
        """Keep an abandoned generator that may hold something open; return whether it was kept.

        Under trio a nursery may be open and no scope: one around it was left first, and has dropped those inside of it.
        """
        kept = self._watched and (bool(self.inner) or self._closing or filters.replaced or self._nurseries() > 0)
        if kept:
            self.abandoned.append(generator)
        return kept

    def coroutine(self) -> Any:
        """Return the coroutine of its task, None if that is not known."""
        return None if self._entered is None else self._entered.coroutine()

    async def raise_left_open(self, name: str) -> None:
        """Close what the run of the task `name` left open. Raises LeftOpenError if it was more than a generator."""
        if (error := await self.close(name)) is not None:
            raise error

    def _nurseries(self) -> int:
        return 0 if self._entered is None else self._entered.nurseries()

    async def _close_abandoned(self) -> None:
        while self.abandoned:  # closing one may abandon another
            await _close_generator(self.abandoned.pop())

    async def _leave_scopes(self, entered: _Asyncio | _Trio) -> None:
        """Cancel the scopes that are still open, wait for the tasks in them, and exit them, the innermost first."""
        entered.cancel()
        ends = anyio.current_time() + CLOSE_WITHIN
        with suppress(anyio.get_cancelled_exc_class()):
            while entered.tasks_run() and anyio.current_time() < ends:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(_LOOK_EVERY)
                await self._close_abandoned()  # Python's collector came meanwhile
        entered.exit()


async def take_requests(run: RunScope) -> None:
    """Have a request to cancel this task, which the run has left, raised here: so that it ends no task group."""
    if run.asked_to_end():
        await anyio.lowlevel.checkpoint()


def _is_misnesting(error: BaseException | None) -> bool:
    """Is this what a backend raises if a scope is left while one inside of it is open?"""
    return isinstance(error, RuntimeError) and str_of(error).startswith(_MISNESTING)


async def _close_generator(generator: _Generator) -> None:
    try:
        await generator.aclose()
    except BaseException as raised:
        error = readable(raised)
        unexpected = error.split(GeneratorExit)[1] if isinstance(error, BaseExceptionGroup) else error
        if isinstance(unexpected, KeyboardInterrupt):
            raise
        if unexpected is not None:  # a cancellation comes again
            log.warning(
                "the abandoned async generator %s raised as it was closed: %s",
                _place(generator),
                repr_of(error),
                event="left_behind",
            )


def _place(generator: Any) -> str:
    code = generator.ag_code
    return f"{generator.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


class _Asyncio:
    """The scopes inside of one scope, as anyio keeps them under asyncio."""

    __slots__ = ("_scope", "inner", "requests", "task")

    def __init__(self, scope: Any, inner: Collection[object]) -> None:
        self._scope = scope
        self.inner = inner
        self.requests: Callable[[], int] = getattr(scope._host_task, "cancelling", int)  # int(): 0, it was not entered
        self.task = scope._host_task if hasattr(scope._host_task, "_must_cancel") else RunScope

    @classmethod
    def of(cls, scope: Any) -> _Asyncio | None:
        inner = getattr(scope, "_child_scopes", None)
        return cls(scope, inner) if isinstance(inner, set) and hasattr(scope, "_host_task") else None

    def coroutine(self) -> Any:
        return self._scope._host_task.get_coro()

    def nurseries(self) -> int:
        """Return 0: task groups are known by their scopes."""
        return 0

    def cancel(self) -> None:
        for scope in self._chain()[:1]:
            scope.cancel()

    def tasks_run(self) -> bool:
        """Do tasks run in the scopes, beside the one that opened them?"""
        host, waiting = self._scope._host_task, list(self.inner)
        while waiting:
            scope: Any = waiting.pop()
            if any(task is not host and not task.done() for task in scope._tasks):
                return True
            waiting += scope._child_scopes
        return False

    def exit(self) -> None:
        for scope in reversed(self._chain()):
            with suppress(RuntimeError):
                scope.__exit__(None, None, None)

    def _chain(self) -> list[Any]:
        """Return the scopes that the task of the run has entered, the innermost last."""
        host, at, found = self._scope._host_task, self._scope, []
        while at := next((scope for scope in at._child_scopes if scope._host_task is host), None):
            found.append(at)
        return found


class _Trio:
    """The scopes and nurseries inside of one scope, as trio keeps them."""

    __slots__ = ("_before", "_status", "_task", "inner", "requests", "task")

    def __init__(self, task: Any, status: Any, inner: Collection[object]) -> None:
        self._task = task
        self._status = status
        self._before = len(task.child_nurseries)
        self.inner = inner
        self.requests: Callable[[], int] = int  # 0: trio cancels scopes alone
        self.task = RunScope

    @classmethod
    def of(cls, scope: Any) -> _Trio | None:
        status = getattr(getattr(scope, "_CancelScope__original", None), "_cancel_status", None)
        inner = getattr(status, "_children", None)
        if not isinstance(inner, set):
            return None
        # Imported by name: streamq depends on no backend.
        return cls(import_module("trio").lowlevel.current_task(), status, inner)

    def coroutine(self) -> Any:
        return self._task.coro

    def nurseries(self) -> int:
        """Return how many nurseries the run left open."""
        return len(self._task.child_nurseries) - self._before

    def cancel(self) -> None:
        for scope in self._chain()[-1:]:
            scope.cancel()
        for nursery in self._task.child_nurseries[self._before :]:
            nursery.cancel_scope.cancel()

    def tasks_run(self) -> bool:
        """Do tasks run in the nurseries?"""
        return any(nursery.child_tasks for nursery in self._task.child_nurseries[self._before :])

    def exit(self) -> None:
        for nursery in reversed(self._task._child_nurseries[self._before :]):
            nursery._closed = True
        del self._task._child_nurseries[self._before :]
        for scope in self._chain():
            with suppress(RuntimeError):
                scope.__exit__(None, None, None)

    def _chain(self) -> list[Any]:
        """Return the scopes that the task of the run has entered, the innermost first."""
        at, found = self._task._cancel_status, []
        while at is not None and at is not self._status:
            found.append(at._scope)
            at = at.parent
        return found if at is self._status else []


# --- generators -------------------------------------------------------------------------------------


class _Hooks(threading.local):
    """How many workers in this thread want our finalizer, and which finalizer it precedes."""

    def __init__(self) -> None:
        self.wanted = 0
        self.before: Callable[[_Generator], None] | None = None
        self.begin_before: Callable[[_Generator], None] | None = None


_hooks = _Hooks()


@contextmanager
def abandoned_generators_kept() -> Iterator[None]:
    """Keep generators that a run abandons while scopes are open. They are closed when the run ends."""
    current = sys.get_asyncgen_hooks()
    if current.finalizer is not _finalize:
        _hooks.wanted, _hooks.begin_before, _hooks.before = 0, current.firstiter, current.finalizer
        sys.set_asyncgen_hooks(firstiter=_begin, finalizer=_finalize)
    _hooks.wanted += 1
    try:
        yield
    finally:
        _hooks.wanted -= 1
        if not _hooks.wanted:  # also if a handler has left others
            sys.set_asyncgen_hooks(firstiter=_hooks.begin_before, finalizer=_hooks.before)


def _begin(generator: _Generator) -> None:
    """Note the run that is in this task as that of a generator."""
    run = None
    with suppress(Exception):  # outside of the event loop there is no task
        run = _runs.get(anyio.get_current_task().id)
    if run is not None:
        _begun_in[id(generator)] = run
    else:
        _begun_in.pop(id(generator), None)
    if _hooks.begin_before is not None:
        _hooks.begin_before(generator)


def _finalize(generator: _Generator) -> None:
    """Keep a generator for its run, or have the event loop close it."""
    run = _begun_in.pop(id(generator), None)
    if (run is None or not run.keep(generator)) and _hooks.before is not None:
        _hooks.before(generator)


HOOKS = (_begin, _finalize)  # what `sys.get_asyncgen_hooks` returns while a worker runs


def restore_hooks() -> None:
    """Put our hooks back after others have replaced them: a run, or the event loop, which sets its own as it goes on.

    A loop goes on after a stop with each `run_until_complete`, which is how pytest-asyncio runs fixtures and tests.
    """
    if not _hooks.wanted:
        return
    found, loop = sys.get_asyncgen_hooks(), anyio.lowlevel.current_token().native_token
    if all(type(hook) is MethodType and getattr(hook, "__self__", None) is loop for hook in found):
        _hooks.begin_before, _hooks.before = found.firstiter, found.finalizer
    else:
        log.warning(
            "the hooks of async generators (sys.set_asyncgen_hooks) were changed, by a handler or by a library that it "
            "uses, and are put back",
            event="left_behind",
        )
    sys.set_asyncgen_hooks(*HOOKS)
