"""What middleware is, and how a chain of it is put around a run or an enqueue.

Middleware may look, wait, refuse or change, and calls the next link. The chains of the broker, the worker and the task
are joined once per task, not once per message. The broker's chain is outermost, the task's innermost. Within a chain
the first link that was added is outermost. This module knows no limit and no circuit breaker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from inspect import CORO_CREATED, getcoroutinestate
from types import CoroutineType
from typing import Any, Protocol, Self, runtime_checkable

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.queue.results import Handle
from streamq.queue.store import Store
from streamq.tasks.task import Call, Task
from streamq.wire.argument_types import check_type
from streamq.wire.delivery import Delivery


class Context:
    """One run, as middleware sees it.

    `state` is a dict in which one middleware may leave data for another. `store` sends commands to the server of the
    queue.
    """

    __slots__ = ("args", "delivery", "kwargs", "state", "store", "task")

    def __init__(
        self, task: Task[Any, Any], delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any], store: Store
    ) -> None:
        self.task = task
        self.delivery = delivery
        self.args = args
        self.kwargs = kwargs
        self.store = store
        self.state: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Context of {self.task.name} {self.delivery.task_id}>"


CallNext = Callable[[Context], Awaitable[Any]]
SendNext = Callable[[Call[Any]], Awaitable[Handle[Any]]]


@runtime_checkable
class Middleware(Protocol):
    """Wraps a run: an async callable. It raises RetryLater to postpone the task."""

    async def __call__(self, context: Context, call_next: CallNext) -> Any: ...


@runtime_checkable
class SendMiddleware(Protocol):
    """Wraps an enqueue. It may pass on another call, or raise to refuse this one."""

    async def enqueue(self, call: Call[Any], send_next: SendNext) -> Handle[Any]: ...


@runtime_checkable
class Resident(Protocol):
    """Middleware with work of its own beside the runs, such as renewing leases.

    Each worker runs `live` from its start until its last run has ended, then it cancels `live`. One object may serve
    several workers at once. What `live` raises is logged, and it is started again.
    """

    async def live(self, store: Store) -> None: ...


class MiddlewareChain:
    """An ordered list of middleware; the first added is the outermost.

    `wraps_runs` and `wraps_enqueues` say whether any link wraps runs, or enqueues.
    """

    def __init__(self, *middleware: Middleware | SendMiddleware) -> None:
        self._links: list[Any] = []
        self.wraps_runs = False
        self.wraps_enqueues = False
        for link in middleware:
            self.add(link)

    def __repr__(self) -> str:
        return f"<MiddlewareChain {' > '.join(type(link).__name__ for link in self._links) or 'empty'}>"

    def __iter__(self) -> Iterator[Any]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def add(self, middleware: Middleware | SendMiddleware) -> Self:
        """Add the next link and return the chain. Raises ConfigurationError if the link wraps nothing."""
        if isinstance(middleware, type) or not (callable(middleware) or isinstance(middleware, SendMiddleware)):
            raise ConfigurationError(
                f"{repr_of(middleware)} is no middleware: give an object with "
                "'async def __call__(self, context, call_next)' or 'async def enqueue(self, call, send_next)'"
            )
        self._links.append(middleware)
        self.wraps_runs |= callable(middleware)
        self.wraps_enqueues |= isinstance(middleware, SendMiddleware)
        return self

    def joined(self, *inner: Iterable[Any]) -> MiddlewareChain:
        """Return one chain of this chain and others, each inside the one before."""
        return MiddlewareChain(*self, *(link for links in inner for link in links))

    def around(self, handler: CallNext) -> CallNext:
        """Return the handler inside all links that wrap runs."""
        for link in reversed(self._links):
            if callable(link):  # some wrap enqueues alone
                handler = _wrap_run(link, handler)
        return handler

    def around_enqueue(self, send: SendNext) -> SendNext:
        """Return the function that sends a call, inside all links that wrap enqueues."""
        for link in reversed(self._links):
            if isinstance(link, SendMiddleware):
                send = _wrap_enqueue(link, send)
        return send

    def residents(self) -> list[Resident]:
        """Return the links that have work of their own beside the runs."""
        return [link for link in self._links if isinstance(link, Resident)]


def as_chain(middleware: MiddlewareChain | None) -> MiddlewareChain:
    """Return the chain of an argument named `middleware`; None is an empty one. Raises ConfigurationError."""
    if middleware is None:
        return MiddlewareChain()
    wanted = "a MiddlewareChain, as in MiddlewareChain(first, second)"
    return check_type("middleware", middleware, MiddlewareChain, wanted)


def _wrap_run(link: Any, call_next: CallNext) -> CallNext:
    async def call(context: Context) -> Any:
        begun: Any = None

        def noted(context: Context) -> Awaitable[Any]:
            nonlocal begun
            begun = call_next(context)
            return begun  # type: ignore[no-any-return]

        result = await link(context, noted)
        if type(begun) is CoroutineType and begun.cr_frame is not None:  # it has not ended
            _check_awaited(begun, link, "call_next(context)")
        return result

    return call


def _wrap_enqueue(link: SendMiddleware, send_next: SendNext) -> SendNext:
    async def send(call: Call[Any]) -> Handle[Any]:
        begun: Any = None

        def noted(call: Call[Any]) -> Awaitable[Handle[Any]]:
            nonlocal begun
            begun = send_next(call)
            return begun  # type: ignore[no-any-return]

        handle = await link.enqueue(call, noted)
        if type(begun) is CoroutineType and begun.cr_frame is not None:
            _check_awaited(begun, link, "send_next(call)")
        return handle

    return send


def _check_awaited(begun: CoroutineType[Any, Any, Any], link: object, called: str) -> None:
    """Raise ConfigurationError if a link has called the next one and did not await it: nothing of that would run."""
    if getcoroutinestate(begun) == CORO_CREATED:
        begun.close()
        raise ConfigurationError(
            f"the middleware {repr_of(link)} called {called} and did not await it: write 'await {called}'"
        )
