"""The error of a call that a broker without an event loop cannot carry out."""

from __future__ import annotations

from streamq.errors.base import StreamqError


class SyncCallError(StreamqError, RuntimeError):
    """Raised if a SyncBroker is called in a running event loop, or if middleware waits for one.

    Nothing was sent. The remedy is in the message: `RedisBroker` in the event loop, or a thread for the SyncBroker.
    """
