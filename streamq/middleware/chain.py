"""Middleware wraps a run: it may look, wait, refuse or change, and calls the next.

A chain is composed once per task, not once per message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from streamq.delivery import Delivery
from streamq.errors import ConfigurationError
from streamq.tasks import Task


class Context:
    """One run, as middleware sees it. `state` is theirs, for what one leaves for another."""

    __slots__ = ("args", "delivery", "kwargs", "state", "task")

    def __init__(self, task: Task[Any, Any], delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.task = task
        self.delivery = delivery
        self.args = args
        self.kwargs = kwargs
        self.state: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Context of {self.task.name} {self.delivery.task_id}>"


CallNext = Callable[[Context], Awaitable[Any]]


@runtime_checkable
class Middleware(Protocol):
    """What wraps a run: an async callable. To hold a task back it raises RetryLater."""

    async def __call__(self, context: Context, call_next: CallNext) -> Any: ...


class MiddlewareChain:
    """An ordered list of middleware; the first added is the outermost."""

    def __init__(self, *middleware: Middleware) -> None:
        self._links: list[Middleware] = []
        for link in middleware:
            self.add(link)

    def __repr__(self) -> str:
        return f"<MiddlewareChain {' > '.join(type(link).__name__ for link in self._links) or 'empty'}>"

    def __iter__(self) -> Iterator[Middleware]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def add(self, middleware: Middleware) -> Self:
        """Add the next link and return the chain. Raises ConfigurationError if it cannot be called."""
        if not callable(middleware) or isinstance(middleware, type):
            raise ConfigurationError(
                f"{middleware!r} is no middleware: give an object with 'async def __call__(self, context, call_next)'"
            )
        self._links.append(middleware)
        return self

    def around(self, handler: CallNext) -> CallNext:
        """Return the handler with every link around it."""
        for link in reversed(self._links):
            handler = _linked(link, handler)
        return handler


def _linked(link: Middleware, call_next: CallNext) -> CallNext:
    def call(context: Context) -> Awaitable[Any]:
        return link(context, call_next)

    return call
