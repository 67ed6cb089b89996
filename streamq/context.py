"""The delivery that is being handled, at hand for its handler."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from streamq.delivery import Delivery

running: ContextVar[Delivery] = ContextVar("streamq_delivery")
# The Store of the worker that runs here. Any: this module must not load the Redis client.
queue: ContextVar[Any] = ContextVar("streamq_queue")


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
