"""A pair of in-memory byte streams, and a signal that wakes a reader from any thread.

Owns the bytes between the two ends of a `memory://` connection. Knows nothing of Redis. Each end
is read in one event loop, but another thread may write to it (a PUBLISH, or the entry that a
blocked client waits for). So nothing here may depend on running in the loop of its reader.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint, current_token

if TYPE_CHECKING:
    from collections.abc import Callable


class _NativeLoop(Protocol):
    """The call that event loops accept from another thread, under its two names."""

    call_soon_threadsafe: Callable[..., Any]  # asyncio
    run_sync_soon: Callable[..., Any]  # trio


class Signal:
    """An event that a wait resets, and that any thread may set without blocking.

    `anyio.from_thread.run_sync` waits for the other loop. Two loops that wake each other would
    wait for ever. So this uses the thread-safe scheduler of the loop itself.
    """

    __slots__ = ("_event", "_is_set", "_loop", "_thread")

    def __init__(self) -> None:
        self._is_set = False
        self._event: anyio.Event | None = None
        self._thread = 0
        self._loop: _NativeLoop | None = None

    def set(self) -> None:
        """Wake the task that waits. Without one, the next wait returns at once."""
        self._is_set = True
        event = self._event
        if event is None:
            return
        if threading.get_ident() == self._thread:
            event.set()
            return
        loop = cast("_NativeLoop", self._loop)
        schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        with contextlib.suppress(RuntimeError):  # the other loop has ended, and the waiting task with it
            schedule(event.set)

    async def wait(self) -> None:
        """Wait until `set` is called. Return at once if it was called since the last wait. For one task."""
        # The order matters: another thread that calls `set` either sees the event, or its flag is seen here.
        self._thread = threading.get_ident()
        self._loop = cast("_NativeLoop", current_token().native_token)
        self._event = anyio.Event()
        try:
            if not self._is_set:
                await self._event.wait()
        finally:
            self._event = None
            self._is_set = False


class ByteQueue:
    """One direction of a pipe: a queue of byte chunks without a limit."""

    __slots__ = ("chunks", "closed", "on_close", "signal")

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        self.signal = Signal()

    def write(self, data: bytes) -> None:
        """Append a chunk, from any thread. A chunk written after `close` is dropped."""
        if data and not self.closed:
            self.chunks.append(data)
            self.signal.set()

    def close(self) -> None:
        """End this direction. The reader gets the bytes that are left, then the end of the stream."""
        if self.closed:
            return
        self.closed = True
        if self.on_close is not None:
            self.on_close()
        self.signal.set()

    async def read(self, max_bytes: int) -> bytes:
        """Return the next bytes, at most `max_bytes`. Raises EndOfStream at the end."""
        while not self.chunks:
            if self.closed:
                raise anyio.EndOfStream
            await self.signal.wait()
        chunk = self.chunks.popleft()
        if len(chunk) > max_bytes:
            self.chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        return chunk


class MemoryStream(ByteStream):
    """One end of a pipe. Raises the same errors as anyio's socket streams, on the same occasions."""

    def __init__(self, incoming: ByteQueue, outgoing: ByteQueue) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self._closed = False
        self._receiving = anyio.ResourceGuard("reading from")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self.incoming.closed else "open"
        return f"<MemoryStream {state}>"

    async def receive(self, max_bytes: int = 65536) -> bytes:
        with self._receiving:
            if self.incoming.chunks:
                await checkpoint()
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                return await self.incoming.read(max_bytes)
            except anyio.EndOfStream:
                if self._closed:
                    raise anyio.ClosedResourceError from None
                raise

    async def send(self, item: bytes) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self.outgoing.closed or self.incoming.closed:
            raise anyio.BrokenResourceError
        self.outgoing.write(bytes(item))
        await checkpoint()

    async def send_eof(self) -> None:
        self.outgoing.close()
        await checkpoint()

    def close(self) -> None:
        """Close both directions at once, from any thread."""
        self._closed = True
        self.outgoing.close()
        self.incoming.close()

    async def aclose(self) -> None:
        self.close()
        await checkpoint()


def pipe() -> tuple[MemoryStream, MemoryStream]:
    """Return the two ends of a connection: (client's, server's)."""
    to_server, to_client = ByteQueue(), ByteQueue()
    return MemoryStream(to_client, to_server), MemoryStream(to_server, to_client)
