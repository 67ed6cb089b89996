"""Byte streams over TCP and unix sockets of our own, under every backend alike.

They can do what anyio's cannot: send at once what the kernel takes, from wherever the caller stands; and, where
the event loop has callbacks, hand over what arrives without a task that waits for it. Besides, anyio's unix
streams under asyncio complete a future twice if one is closed, or its reader cancelled, in the very turn of
the loop in which data arrive; `wait_readable` and `wait_writable`, which these are made of, do not.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, SocketAttribute

from streamq.client.readiness import on_readable

_CHUNK = 1 << 16  # bytes that one read takes at most
_STAGGER = 0.25  # seconds until the next address of a host is tried beside the last (RFC 8305, section 5)
_KEEPALIVE_IDLE = 30  # seconds of silence before the kernel probes the peer
_KEEPALIVE_INTERVAL = 10
_KEEPALIVE_PROBES = 3


class SocketStream(ByteStream):
    """One connected socket. Made by `to_path` and `to_host`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._closed = False
        self._end_following: Callable[[], None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "following" if self._end_following is not None else "open"
        return f"<SocketStream {state} fd={self._socket.fileno()}>"

    @classmethod
    async def to_path(cls, path: str) -> SocketStream:
        """Return a stream to a server's unix socket. Raises OSError if nobody accepts there."""
        await anyio.lowlevel.checkpoint()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(path)  # at once, or not at all: its queue is full
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @classmethod
    async def to_host(cls, host: str, port: int) -> SocketStream:
        """Return a stream to a TCP port, at whichever of the host's addresses answers first.

        Raises OSError if none does, or if the host has no address.
        """
        sock = await _first_of(await _addresses(host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        return cls(sock)

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        """Return what has arrived. Raises EndOfStream, ClosedResourceError or BrokenResourceError."""
        while True:
            self._check()
            await anyio.wait_readable(self._socket)
            self._check()
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
        """Send all of it; no checkpoint if the kernel takes it at once.

        Raises ClosedResourceError or BrokenResourceError.
        """
        left = memoryview(item)
        while left := left[self.send_now(left) :]:
            await anyio.wait_writable(self._socket)

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what the kernel takes at once, and return how many bytes that was. Raises as `send`."""
        self._check()
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise anyio.BrokenResourceError from error

    def follow(self, arrived: Callable[[bytes, float], None], ended: Callable[[Exception], None]) -> bool:
        """From now on have `arrived` called with what arrives and the loop's time (s); once with the end, `ended`.

        Returns False, and does nothing, where the event loop has no callbacks: have a task `receive` there.
        """
        self._check()

        def readable(now: float) -> None:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                broken = anyio.BrokenResourceError()
                broken.__cause__ = error
                self._unfollow()
                ended(broken)
                return
            if data:
                arrived(data, now)
            else:
                self._unfollow()
                ended(anyio.EndOfStream())

        self._end_following = on_readable(self._socket, readable)
        return self._end_following is not None

    def _unfollow(self) -> None:
        if self._end_following is not None:
            self._end_following()
            self._end_following = None

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close it; who waits for it gets ClosedResourceError."""
        if not self._closed:
            self._closed = True
            self._unfollow()
            anyio.notify_closing(self._socket)
            self._socket.close()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket, SocketAttribute.family: lambda: self._socket.family}

    def _check(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError


_Address = tuple[int, Any]  # family, and what the kernel calls it


async def _addresses(host: str, port: int) -> list[_Address]:
    """Return where a host may be, the two families by turns (RFC 8305, section 4). Raises OSError if it is unknown."""
    found: Sequence[tuple[Any, ...]]
    try:  # a number needs no thread, and nobody to ask
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    order: dict[int, list[_Address]] = {}
    for family, _, _, _, address in found:
        order.setdefault(int(family), []).append((int(family), address))
    turns = max(map(len, order.values()), default=0)
    return [some[turn] for turn in range(turns) for some in order.values() if turn < len(some)]


async def _first_of(addresses: list[_Address]) -> socket.socket:
    """Return a socket that is connected to one of these: the next is tried when the last fails, or takes its time."""
    won: list[socket.socket] = []
    failures: list[OSError] = []

    async def attempt(address: _Address, ended: anyio.Event) -> None:
        try:
            sock = await _connected(address)
        except OSError as error:
            failures.append(error)
        else:
            won.append(sock)
            group.cancel_scope.cancel()
        finally:
            ended.set()

    try:
        async with anyio.create_task_group() as group:
            for address in addresses:
                ended = anyio.Event()
                group.start_soon(attempt, address, ended)
                with anyio.move_on_after(_STAGGER):
                    await ended.wait()
    except BaseException:
        for sock in won:
            sock.close()
        raise
    for sock in won[1:]:
        sock.close()
    if not won:
        raise failures[0]
    return won[0]


async def _connected(address: _Address) -> socket.socket:
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


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that vanished."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _KEEPALIVE_IDLE),
            ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
            ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ):
            option = getattr(socket, name, None)  # not every platform has each of them
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
