"""The run that a handler is part of: its delivery, the store of its worker, and whether it was asked to stop.

The worker sets these context variables for each run. This module must not load the Redis client: modules of tasks
import it.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

from streamq.wire.delivery import Delivery

delivery_var: ContextVar[Delivery | None] = ContextVar("streamq_delivery", default=None)
store_var: ContextVar[Any] = ContextVar("streamq_queue")  # the Store of the worker; Any, for it loads the Redis client
reporter_var: ContextVar[Any] = ContextVar("streamq_reporter")  # its ProgressReporter; Any, for the same reason


class Cancellation:
    """The request to stop, for a handler in a thread: `is_set` reads it, `wait` waits for it.

    It is set when the sender cancelled the run, when the run lost its lease or exceeded its timeout, and when the grace
    period of the worker is over. It is also set when the run has ended, for threads that the handler started.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def __repr__(self) -> str:
        return f"<Cancellation {'requested' if self.is_set() else 'not requested'}>"

    def is_set(self) -> bool:
        """Return whether the handler was asked to stop."""
        return self._event.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait at most `seconds` for the request to stop (None: for ever). Return whether it is set."""
        return self._event.wait(seconds)

    def request(self) -> None:
        """Ask the handler to stop. For the worker."""
        self._event.set()


cancellation_var: ContextVar[Cancellation] = ContextVar("streamq_cancellation")


_processes_of_handlers: list[bool] = []  # not empty in a process that runs handlers


def note_process() -> None:
    """Note that this is a process of `run_in="process"`: its handlers have little of their worker."""
    _processes_of_handlers[:] = [True]


def nothing_here(text: str) -> LookupError:
    """Return the error of a call that needs its worker. In a process of handlers it says so, in place of `text`."""
    if _processes_of_handlers:
        text = (
            'a handler with run_in="process" has no worker, no batch and no request to stop, and one of a batch no '
            "delivery and no progress: pass what it needs as arguments, or run the task in a thread"
        )
    return LookupError(text)


def running_delivery() -> Delivery:
    """Return the delivery that the worker holds, for streamq alone. Raises LookupError outside a handler."""
    if (delivery := delivery_var.get()) is None:
        raise nothing_here("no delivery is being handled here: call this inside a task's handler")
    return delivery


def current_delivery() -> Delivery:
    """Return a copy of the delivery of the handler that calls this.

    For handlers in the event loop, in threads and in processes. There, it has no `state`.

    Raises LookupError outside a handler, and in the process of a batch.
    """
    return running_delivery().copy()


def current_store() -> Any:
    """Return the Store of the worker whose handler calls this. Raises LookupError outside a handler."""
    try:
        return store_var.get()
    except LookupError:
        raise nothing_here("no worker runs here: call this inside a task's handler, or give a broker") from None


def current_cancellation() -> Cancellation:
    """Return the request to stop for the handler in this thread.

    Async handlers have none: they are cancelled.

    Raises LookupError outside a handler in a thread.
    """
    try:
        return cancellation_var.get()
    except LookupError:
        raise nothing_here(
            "no handler runs in this thread; an async handler is cancelled and needs no request"
        ) from None


def cancel_requested() -> bool:
    """Return whether the handler in this thread was asked to stop. False outside a handler in a thread."""
    requested = cancellation_var.get(None)
    return requested is not None and requested.is_set()
