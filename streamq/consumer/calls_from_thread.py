"""What a handler in a thread calls in the event loop (`anyio.from_thread.run`, `run_sync`), and what that leaves open.

Theory. anyio makes such a call in an anyio task of its own. If that ends with a cancel scope or a task group open, trio
ends the whole program (the task belongs to the system, and its stack of nurseries is not empty), and asyncio takes it
for a success whose child tasks run on. So the call runs in a scope, which is closed as that of a run in the loop is.

The thread finds its event loop in a token that anyio keeps for it. We put another one in its place, with the same loop,
whose calls run so. anyio has no public name for that place: where it has none, nothing is guarded.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.lowlevel import EventLoopToken, current_token

from streamq.consumer.closed_call import call_closed
from streamq.consumer.thread_start import Raised, returned
from streamq.handlers.context import delivery_var

# Its `current_token` is that of this thread. Not by way of `anyio.from_thread`, which few tasks need.
THREAD: Any = getattr(sys.modules.get("anyio._core._eventloop"), "threadlocals", None)


def closing_token() -> EventLoopToken:
    """Return the token of this event loop, with calls that leave nothing open. For a thread: see `calls_closed`."""
    token = current_token()
    backend: Any = _Backend(token.backend_class)
    return EventLoopToken(backend, token.native_token)


@contextmanager
def calls_closed(token: EventLoopToken) -> Iterator[None]:
    """Have the calls of this thread go by this token."""
    before = getattr(THREAD, "current_token", None)
    if before is not None:
        THREAD.current_token = token
    try:
        yield
    finally:  # asyncio's threads live on, and have others to serve
        if before is not None:
            THREAD.current_token = before


class _Backend:
    """A backend of anyio, with calls that leave nothing open."""

    __slots__ = ("_backend",)

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __repr__(self) -> str:
        return f"<{self._backend!r}, closing>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run_async_from_thread(self, function: Callable[..., Awaitable[Any]], args: Any, token: Any) -> Any:
        """Call a function in the event loop, as anyio does."""
        delivery = delivery_var.get()
        name = "" if delivery is None else delivery.task
        return returned(self._backend.run_async_from_thread(_run, (name, function, args), token))

    def run_sync_from_thread(self, function: Callable[..., Any], args: Any, token: Any) -> Any:
        """Call a function in the event loop, in a task of its own: a scope that it leaves open is in no other task."""

        async def call() -> Any:
            return function(*args)

        return self.run_async_from_thread(call, (), token)


async def _run(name: str, function: Callable[..., Awaitable[Any]], args: Any) -> Any:
    try:
        return await call_closed(name, function, args)
    except SystemExit as error:
        return Raised(error)  # raised in the thread: in a task it would end the loop of asyncio
