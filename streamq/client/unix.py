"""A byte stream over a unix socket, under every backend alike.

anyio's own, under asyncio, lets a future be completed twice if the stream is closed, or its reader
cancelled, in the very turn of the loop in which data arrive; the loop logs that as an exception in a
callback. `wait_readable` and `wait_writable`, which this is made of, do not.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, SocketAttribute

_T = TypeVar("_T")


class UnixStream(ByteStream):
    """One connected unix socket. Made by `connect`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._closed = False

    def __repr__(self) -> str:
        return f"<UnixStream {'closed' if self._closed else self._socket.getpeername()}>"

    @classmethod
    async def connect(cls, path: str) -> UnixStream:
        """Return a stream to a server's socket. Raises OSError if nobody accepts there."""
        await anyio.lowlevel.checkpoint()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(path)  # at once, or not at all: its queue is full
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return what has arrived. Raises EndOfStream, ClosedResourceError or BrokenResourceError."""
        data = await self._until_done(lambda: self._socket.recv(max_bytes), anyio.wait_readable)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send all of it. Raises ClosedResourceError or BrokenResourceError."""
        left = memoryview(item)
        while left:
            sent = await self._until_done(lambda: self._socket.send(left), anyio.wait_writable)  # noqa: B023 - called here
            left = left[sent:]

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close it; who waits for it gets ClosedResourceError."""
        if not self._closed:
            self._closed = True
            anyio.notify_closing(self._socket)
            self._socket.close()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket, SocketAttribute.family: lambda: socket.AF_UNIX}

    async def _until_done(self, act: Callable[[], _T], ready: Callable[[socket.socket], Awaitable[None]]) -> _T:
        await anyio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                return act()
            except BlockingIOError:
                await ready(self._socket)
            except OSError as error:
                raise anyio.BrokenResourceError from error
