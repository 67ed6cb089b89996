"""Requests of many callers that wait to be sent, and the wait of each caller for its replies.

A `Request` is one caller's commands and the replies to them. A `SendQueue` holds the requests
that no connection has sent yet. It outlives connections: what one connection did not send, the
next one does. This module does no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
from redis import exceptions

QUEUE_LIMIT = 1 << 20  # bytes that may wait to be sent; beyond them callers wait for room
_BYTES_PER_EVENT = 1 << 14  # bytes of commands that share an event: what a Redis server reads at once

EventFactory = Callable[[], anyio.Event]


class Request:
    """Commands of one caller, and its place in the order of replies.

    `data` holds the packed commands until they are sent. Several requests share `event`, so it
    may be set before this request is finished: use `wait`.
    """

    __slots__ = ("_failure", "abandoned", "block", "data", "event", "replies", "reply_count", "since")

    def __init__(self, event: anyio.Event, data: bytes, reply_count: int, block: float = 0.0) -> None:
        self.event = event
        self.data = data
        self.reply_count = reply_count
        self.block = block  # seconds that the server may be silent beyond the reply timeout
        self.replies: list[Any] = []
        self.since = 0.0  # in the queue: when the wait for a connection began; sent: when it was sent
        self.abandoned = False  # its caller was cancelled
        self._failure: tuple[type[Exception], str, BaseException | None] | None = None

    @property
    def sent(self) -> bool:
        """Whether the bytes have left the queue. From then on they may reach the server."""
        return not self.data

    @property
    def finished(self) -> bool:
        """Whether all replies are here, or the request has failed."""
        return len(self.replies) == self.reply_count or self._failure is not None

    async def wait(self) -> None:
        """Wait until the request is finished."""
        while not self.finished:
            await self.event.wait()

    def fail(self, kind: type[Exception], message: str, cause: BaseException | None = None) -> None:
        """End the request with an error. Its caller gets an exception object of its own."""
        self._failure = (kind, message, cause)
        self.event.set()

    def result(self) -> list[Any]:
        """Return the replies in order. Raises the error of a request that failed."""
        if self._failure is None:
            return self.replies
        kind, message, cause = self._failure
        raise kind(message) from cause


class SendQueue:
    """Requests that wait to be sent, in order."""

    def __init__(self, new_event: EventFactory, limit: int = QUEUE_LIMIT) -> None:
        self._new_event = new_event
        self._limit = limit
        self._shared_event: anyio.Event | None = None
        self._shared_bytes = 0  # bytes that may still join the shared event
        self._filled: anyio.Event | None = None
        self._room: anyio.Event | None = None
        self.requests: deque[Request] = deque()
        self.size = 0  # bytes
        self.full = False

    def __repr__(self) -> str:
        return f"<SendQueue requests={len(self.requests)} bytes={self.size}>"

    def unqueued(self, reply_count: int, block: float) -> Request:
        """Return a request that is not in the queue: its caller sends the commands at once."""
        return Request(self._new_event(), b"", reply_count, block)

    def submit(self, data: bytes, reply_count: int, block: float = 0.0) -> Request:
        """Queue packed commands that will get `reply_count` replies, and return their request."""
        size = len(data)
        event = self._shared_event
        if event is None or self._shared_bytes < size:
            event = self._shared_event = self._new_event()
            self._shared_bytes = _BYTES_PER_EVENT
        self._shared_bytes -= size
        request = Request(event, data, reply_count, block)
        self.requests.append(request)
        self.size += size
        if self.size >= self._limit:
            self.full = True
        if self._filled is not None:
            self.wake_writer()
        return request

    def take_all(self, sent: deque[Request], now: float) -> bytes:
        """Empty the queue: move each request that still has a caller to `sent`, and return their bytes."""
        parts = []
        for request in self.requests:
            if not request.abandoned:
                parts.append(request.data)
                request.data = b""
                request.since = now
                sent.append(request)
        self._clear()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fail_all(self, kind: type[Exception], message: str, cause: BaseException | None = None) -> None:
        """Fail every request in the queue. None of them was sent."""
        for request in self.requests:
            request.fail(kind, message, cause)
        self._clear()

    def expire(self, now: float, limit: float, message: str, cause: BaseException | None) -> None:
        """Fail the requests that have waited `limit` seconds for a connection."""
        waiting = [request for request in self.requests if not request.abandoned]
        self._clear()
        event = self._new_event()  # requests that expire may share the old one with requests that stay
        for request in waiting:
            request.since = request.since or now
            if request.since + limit <= now:
                request.fail(exceptions.ConnectionError, message, cause)
            else:
                request.event.set()
                request.event = event
                self.requests.append(request)
                self.size += len(request.data)
        self.full = self.size >= self._limit

    def _clear(self) -> None:
        self.requests.clear()
        self.size = 0
        self.full = False
        self._shared_event = None
        if self._room is not None:
            self._room.set()
            self._room = None

    def wake_writer(self) -> None:
        """End the wait of `wait_for_requests`."""
        if self._filled is not None:
            self._filled.set()
            self._filled = None

    async def wait_for_requests(self) -> None:
        """Wait until a request is queued, or until `wake_writer` is called."""
        if not self.requests:
            self._filled = self._new_event()
            await self._filled.wait()

    async def wait_for_room(self) -> None:
        """Wait until the queue is not full."""
        while self.full:
            if self._room is None:
                self._room = self._new_event()
            await self._room.wait()
