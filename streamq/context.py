"""The delivery that is being handled, at hand for its handler."""

from __future__ import annotations

from contextvars import ContextVar

from streamq.delivery import Delivery

running: ContextVar[Delivery] = ContextVar("streamq_delivery")


def current_delivery() -> Delivery:
    """Return the delivery whose handler is running here. Raises LookupError outside a handler.

    Works in async handlers and in threads; a handler in a process of its own has none.
    """
    try:
        return running.get()
    except LookupError:
        raise LookupError("no delivery is being handled here: call this inside a task's handler") from None
