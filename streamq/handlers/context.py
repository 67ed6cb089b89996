"""The run at hand, for its handler: its delivery, its worker's store, whether it was told to stop."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

from streamq.wire.delivery import Delivery

running: ContextVar[Delivery] = ContextVar("streamq_delivery")
# The Store of the worker that runs here. Any: this module must not load the Redis client.
queue: ContextVar[Any] = ContextVar("streamq_queue")
# The Reporter of that worker. Any, for the same reason.
reporter: ContextVar[Any] = ContextVar("streamq_reporter")


class Cancellation:
    """Whether the run of a handler in a thread was told to stop: to be looked at, or waited for.

    It is set when the run was cancelled by its sender, lost its lease, passed its timeout, or
    the worker's grace period is over; also when it has ended, for threads of the handler's own.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def __repr__(self) -> str:
        return f"<Cancellation {'requested' if self.is_set() else 'not requested'}>"

    def is_set(self) -> bool:
        """Return whether the handler is to stop."""
        return self._event.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep for so long, or until the handler is to stop; return whether it is."""
        return self._event.wait(seconds)

    def tell(self) -> None:
        """Tell the handler to stop; the worker does."""
        self._event.set()


cancellation: ContextVar[Cancellation] = ContextVar("streamq_cancellation")


def current_delivery() -> Delivery:
    """Return the delivery whose handler is running here. Raises LookupError outside a handler.

    Works in async handlers and in threads; a handler in a process of its own has none.
    """
    try:
        return running.get()
    except LookupError:
        raise LookupError("no delivery is being handled here: call this inside a task's handler") from None


def current_queue() -> Any:
    """Return the Store of the worker that runs here. Raises LookupError outside a worker's handler."""
    try:
        return queue.get()
    except LookupError:
        raise LookupError("no worker runs here: call this inside a task's handler, or give a broker") from None


def current_cancellation() -> Cancellation:
    """Return what tells the handler in this thread to stop. Raises LookupError outside such a handler.

    Async handlers have none: they are cancelled.
    """
    try:
        return cancellation.get()
    except LookupError:
        raise LookupError("no handler runs in this thread; an async one is cancelled, and needs not ask") from None


def cancel_requested() -> bool:
    """Return whether the handler in this thread is to stop; False where nobody can be told so."""
    told = cancellation.get(None)
    return told is not None and told.is_set()
