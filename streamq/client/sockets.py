"""Our own byte streams over TCP and unix sockets, the same under every backend.

They can do two things that anyio's streams cannot. They send without waiting as many bytes as
the kernel takes. And where the event loop has callbacks, they receive without a task that waits.

There is a third reason: anyio's unix streams under asyncio complete a future twice if a stream is
closed, or its reader is cancelled, in the same turn of the loop in which data arrive. anyio's
`wait_readable` and `wait_writable`, which these streams use, do not.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, SocketAttribute

from streamq.client.owner import close_after_fork
from streamq.client.readable_callback import on_readable
from streamq.client.resolver import look_up

_CHUNK = 1 << 16  # bytes that one read takes at most
_NEXT_ADDRESS_AFTER = 0.25  # seconds until the next address of a host is tried in parallel (RFC 8305, section 5)
_KEEPALIVE_IDLE = 30  # seconds of silence before the kernel probes the peer
_KEEPALIVE_INTERVAL = 10
_KEEPALIVE_PROBES = 3


class SocketStream(ByteStream):
    """A byte stream over one connected socket. Made by `to_path` and `to_host`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._closed = False
        self._stop_callbacks: Callable[[], None] | None = None
        close_after_fork(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "callback" if self._stop_callbacks is not None else "open"
        return f"<SocketStream {state} fd={self._socket.fileno()}>"

    @classmethod
    async def to_path(cls, path: str) -> SocketStream:
        """Return a stream to the unix socket of a server. Raises OSError if no server accepts there."""
        await anyio.lowlevel.checkpoint()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(path)  # succeeds at once, or fails because the queue of the listener is full
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @classmethod
    async def to_host(cls, host: str, port: int) -> SocketStream:
        """Return a stream to a TCP port, at the first address of the host that accepts.

        Raises OSError if no address accepts, or if the host has none.
        """
        sock = await _connect_to_first(await _addresses(host, port))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:  # the peer may be gone again
            sock.close()
            raise
        enable_keepalive(sock)
        return cls(sock)

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        """Wait for bytes and return them. Raises EndOfStream, ClosedResourceError or BrokenResourceError."""
        while True:
            self._check_open()
            await anyio.wait_readable(self._socket)
            self._check_open()
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if not data:
                raise anyio.EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        """Send all bytes. There is no checkpoint if the kernel takes them at once.

        Raises ClosedResourceError or BrokenResourceError.
        """
        left = memoryview(item)
        while left := left[self.send_now(left) :]:
            await anyio.wait_writable(self._socket)

    def send_now(self, data: bytes | memoryview) -> int:
        """Send as many bytes as the kernel takes at once, and return their number. Raises as `send`."""
        self._check_open()
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise anyio.BrokenResourceError from error

    def receive_by_callback(self, on_data: Callable[[bytes, float], None], on_end: Callable[[Exception], None]) -> bool:
        """Receive by a callback of the event loop from now on, without a task.

        `on_data` is called with the bytes and the loop's time in seconds, `on_end` once with the
        error that ends the stream. Returns False, and does nothing, where the event loop has no
        callbacks: a task must call `receive` there.
        """
        self._check_open()

        def readable(now: float) -> None:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                broken = anyio.BrokenResourceError()
                broken.__cause__ = error
                self._end_callbacks()
                on_end(broken)
                return
            if data:
                on_data(data, now)
            else:
                self._end_callbacks()
                on_end(anyio.EndOfStream())

        self._stop_callbacks = on_readable(self._socket, readable)
        return self._stop_callbacks is not None

    def _end_callbacks(self) -> None:
        if self._stop_callbacks is not None:
            self._stop_callbacks()
            self._stop_callbacks = None

    def close_in_child(self) -> None:
        """Close this copy of the socket, in the child of a fork. Its peer, and the parent, notice nothing.

        The selector of the event loop is shared with the parent, so it is not told: a closed descriptor cannot be
        taken out of it.
        """
        self._closed = True
        self._stop_callbacks = None
        self._socket.close()

    async def send_eof(self) -> None:
        """Tell the other end that no more bytes will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close the socket. A task that waits for it gets ClosedResourceError."""
        if not self._closed:
            self._closed = True
            self._end_callbacks()
            anyio.notify_closing(self._socket)
            self._socket.close()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket, SocketAttribute.family: lambda: self._socket.family}

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError


_Endpoint = tuple[int, Any]  # address family, and the address as the kernel has it


async def _addresses(host: str, port: int) -> list[_Endpoint]:
    """Return the addresses of a host, both families by turns (RFC 8305, section 4). Raises OSError if it has none."""
    found = await look_up(host, port)
    order: dict[int, list[_Endpoint]] = {}
    for family, _, _, _, address in found:
        order.setdefault(int(family), []).append((int(family), address))
    turns = max(map(len, order.values()), default=0)
    return [family[turn] for turn in range(turns) for family in order.values() if turn < len(family)]


async def _connect_to_first(addresses: list[_Endpoint]) -> socket.socket:
    """Return a socket connected to one of the addresses. The next one is tried after a failure, or after a delay."""
    connected: list[socket.socket] = []
    failures: list[OSError] = []

    async def attempt(address: _Endpoint, ended: anyio.Event) -> None:
        try:
            sock = await _connect(address)
        except OSError as error:
            failures.append(error)
        else:
            connected.append(sock)
            group.cancel_scope.cancel()
        finally:
            ended.set()

    try:
        async with anyio.create_task_group() as group:
            for address in addresses:
                ended = anyio.Event()
                group.start_soon(attempt, address, ended)
                with anyio.move_on_after(_NEXT_ADDRESS_AFTER):
                    await ended.wait()
    except BaseException:
        for sock in connected:
            sock.close()
        raise
    for sock in connected[1:]:
        sock.close()
    if not connected:
        raise failures[0]
    return connected[0]


async def _connect(address: _Endpoint) -> socket.socket:
    family, place = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect(place)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        sock.close()
        raise
    return sock


def enable_keepalive(sock: socket.socket) -> None:
    """Let the kernel probe a silent peer, so that a vanished one is noticed."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _KEEPALIVE_IDLE),
            ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
            ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ):
            option = getattr(socket, name, None)  # not every platform has all of them
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
