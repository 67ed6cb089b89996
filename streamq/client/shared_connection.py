"""One connection that many callers share: it sends their requests and gives each its replies.

Theory. A caller puts a `Request` into the `SendQueue` and waits for the request's event. The
writer of the `SharedConnection` takes all requests out of the queue at once, notes them in the
order of sending and sends one buffer: that is the automatic pipelining. The reader gives each
reply to the oldest noted request. Requests that are queued together share one event. The server
answers them together in one piece anyway, and the event is most of what a call costs.

A noted request stays noted until it has all of its replies, even if its caller was cancelled:
only the order connects a reply with its caller. So any fault while replies are outstanding ends
the connection and fails every noted request. Requests that are still in the queue were certainly
not sent, and wait for the next connection.

A single caller does not wait for the writer. If no reply is outstanding and the last read
completed one request at most, `submit` sends at once, in the task of the caller. Many callers
would pay a system call each for that, so their requests are gathered in the queue.

Cost per call: one request and a part of an event; no task, no cancel scope, no timer. One task
per connection checks the reply timeout, and looks at the oldest request only. Where the event
loop has callbacks, no task reads either.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
from redis import exceptions

from streamq.client.login import reason_of
from streamq.client.resp_codec import OutcomeUnknown
from streamq.client.send_queue import Request, SendQueue
from streamq.client.sockets import SocketStream

if TYPE_CHECKING:
    from streamq.client.connection import Connection


class SharedConnection:
    """Sends the requests of a queue over one connection, until it breaks or has drained.

    Requests that it has not sent by then wait in the queue for the next connection. With
    `owns_queue` there is no next connection, and those requests fail.
    """

    def __init__(
        self, connection: Connection, queue: SendQueue, *, reply_timeout: float, owns_queue: bool = False
    ) -> None:
        self.ended = anyio.Event()
        self.completed = 0  # requests that got their replies
        self._connection = connection
        self._queue = queue
        self._reply_timeout = reply_timeout
        self._owns_queue = owns_queue
        self._sent: deque[Request] = deque()
        self._unsent: bytes | memoryview = b""  # the rest of a request sent by `submit`: the kernel's buffer was full
        self._single_caller = True  # the last read completed one request at most
        self._last_received = -math.inf  # when bytes last arrived
        self._draining = False
        self._scope = anyio.CancelScope()
        self._reason: str | None = None
        self._cause: BaseException | None = None

    def __repr__(self) -> str:
        state = "ended" if self._reason else "draining" if self._draining else "open"
        return f"<SharedConnection to {self.place} {state} outstanding={len(self._sent)}>"

    @property
    def place(self) -> str:
        """Where the server listens, for messages."""
        return self._connection.place

    @property
    def client_id(self) -> int | None:
        """The CLIENT ID of this connection, or None if the server did not say it."""
        return self._connection.client_id

    @property
    def usable(self) -> bool:
        """Whether new requests may still be sent over this connection."""
        return self._reason is None and not self._draining

    async def run(self) -> None:
        """Send requests and receive replies until the connection ends. Raises nothing but cancellation."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    if not self._connection.feed_by_callback(self._deliver_replies, self._fail):
                        tasks.start_soon(self._close_on_error, self._read)
                    tasks.start_soon(self._close_on_error, self._check_reply_timeout)
                    await self._close_on_error(self._write)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the socket. `run` does it at its end; a connection that is never run must be closed by its owner."""
        self.close("the client was closed")
        await self._connection.aclose()
        self.ended.set()

    def submit(self, data: bytes, reply_count: int, block: float = 0.0) -> Request:
        """Send packed commands that will get `reply_count` replies, or queue them. Return their request."""
        queue, stream = self._queue, self._connection.stream
        if (
            not self._single_caller
            or self._sent
            or queue.requests
            or not self.usable
            or not isinstance(stream, SocketStream)
        ):
            return queue.submit(data, reply_count, block)
        try:
            sent = stream.send_now(data)
        except Exception as error:  # noqa: BLE001 - nothing was sent: the request waits for the next connection, if any
            request = queue.submit(data, reply_count, block)
            self._fail(error)
            return request
        request = queue.unqueued(reply_count, block)
        request.since = anyio.current_time()
        self._sent.append(request)
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            queue.wake_writer()
        return request

    def drain(self) -> None:
        """Send nothing more, and end as soon as no reply is outstanding."""
        self._draining = True
        self._queue.wake_writer()
        if self._owns_queue:
            self._queue.fail_all(exceptions.ConnectionError, f"the connection to {self.place} was given up")
        if not self._sent:
            self.close("the connection was given up")

    def close(self, reason: str, cause: BaseException | None = None) -> None:
        """End now, and fail every request that waits for a reply. The first `reason` given counts."""
        if self._reason is None:
            self._reason, self._cause = reason, cause
        message = f"the connection to {self.place} was lost before the reply came: {self._reason}"
        while self._sent:
            self._sent.popleft().fail(OutcomeUnknown, message, self._cause)
        if self._owns_queue:
            message = f"the connection to {self.place} was lost before the command was sent: {self._reason}"
            self._queue.fail_all(exceptions.ConnectionError, message, self._cause)
        self._scope.cancel()

    async def _close_on_error(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run one of the loops. Its error ends the connection."""
        try:
            await loop()
        except Exception as error:  # noqa: BLE001 - each kind of stream has its own errors; callers get it as the cause
            self._fail(error)

    async def _write(self) -> None:
        queue, sent, send = self._queue, self._sent, self._connection.stream.send
        while True:
            if not self._unsent:
                await queue.wait_for_requests()
            if self._unsent:
                rest, self._unsent = self._unsent, b""
                await send(bytes(rest))
            if not self.usable:  # the cancellation may be under way: queued requests belong to the next connection
                return
            data = queue.take_all(sent, anyio.current_time())
            if data:
                await send(data)

    async def _read(self) -> None:
        while True:
            await self._connection.feed()
            self._deliver_replies(anyio.current_time())

    def _deliver_replies(self, now: float) -> None:
        """Give each complete reply to its request."""
        if self._reason is not None:
            return
        sent, gets = self._sent, self._connection.reader.gets
        self._last_received = now
        completed = 0
        reply = gets()
        while reply is not False:
            if not sent:
                self.close("the server sent a reply that nobody asked for")
                return
            request = sent[0]
            request.replies.append(reply)
            if len(request.replies) == request.reply_count:
                sent.popleft()
                completed += 1
                if not sent or sent[0].event is not request.event:
                    request.event.set()
            reply = gets()
        self.completed += completed
        self._single_caller = completed <= 1
        if self._connection.must_reconnect and not self._draining:
            self.drain()
        if self._draining and not sent:
            self.close("the connection was given up")

    def _fail(self, error: Exception) -> None:
        self.close(reason_of(error), error)

    async def _check_reply_timeout(self) -> None:
        """End the connection when the server owes a reply and has been silent for too long.

        Our own delay (a blocked event loop, a suspended process) is not the server's silence:
        its replies lie unread meanwhile. After such a delay the server gets the time again.
        """
        timeout = self._reply_timeout
        while True:
            now = anyio.current_time()
            due = now + timeout
            if self._sent:
                oldest = self._sent[0]
                due = max(oldest.since, self._last_received) + timeout + oldest.block
                if due <= now:
                    self.close(f"no reply within {timeout + oldest.block:g} s")
                    return
            await anyio.sleep_until(due)
            if anyio.current_time() > due + timeout / 4:
                self._last_received = anyio.current_time()
