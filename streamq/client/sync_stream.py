"""Byte streams that block their thread: TCP, TLS and unix sockets. For programs without an event loop.

This module knows nothing of Redis. It raises the errors of anyio's streams, as `sockets` does, so that both clients
say the same of the same failure. `memory://` passes another `SyncDial`.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from streamq.client.dial import NOT_TLS
from streamq.client.owner import close_after_fork
from streamq.client.sockets import enable_keepalive
from streamq.client.tls import NO_TLS, SPEAKS_TLS, tls_context
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from streamq.client.address import Address

_CHUNK: Final = 1 << 14  # bytes that one read takes at most
_HAS_KERNEL_TIMEOUTS: Final = sys.platform == "linux"  # SO_RCVTIMEO and SO_SNDTIMEO, as a `struct timeval`


class SyncStream(Protocol):
    """A byte stream whose reads and writes block the thread."""

    def send(self, data: bytes | memoryview) -> int:
        """Send some bytes and return their number. Raises BrokenResourceError: nothing was sent."""
        ...

    def receive(self) -> bytes:
        """Return the next bytes. Raises TimeoutError, EndOfStream or BrokenResourceError."""
        ...

    def set_timeout(self, seconds: float) -> None:
        """Have later calls of `send` and `receive` wait this long at most."""
        ...

    def is_quiet(self) -> bool:
        """Return whether it is open and nothing has come that nobody asked for. Does not wait."""
        ...

    def interrupt(self) -> None:
        """End the wait of another thread in `receive`: it gets EndOfStream."""
        ...

    def close(self) -> None:
        """Close it. Raises nothing. May be called again."""
        ...


class SyncDial(Protocol):
    """Opens one stream to the server, within `limit` seconds. Raises OSError, TimeoutError among them."""

    def __call__(self, limit: float) -> SyncStream: ...

    def mismatch(self, limit: float) -> str:
        """Return the remedy if one side alone speaks TLS, else an empty text. Raises as a call does."""
        ...


class SyncSocket:
    """A stream over one connected socket, in plain or with TLS. Closed in the child of a fork."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._encrypted = isinstance(sock, ssl.SSLSocket)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        close_after_fork(self)

    def __repr__(self) -> str:
        return f"<SyncSocket fd={self._socket.fileno()}>"

    def send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except (TimeoutError, BlockingIOError):
            return 0
        except OSError as error:
            raise anyio.BrokenResourceError from error

    def receive(self) -> bytes:
        try:
            data = self._socket.recv(_CHUNK)
        except TimeoutError:
            raise
        except BlockingIOError:
            raise TimeoutError from None
        except OSError as error:
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    def set_timeout(self, seconds: float) -> None:
        if self._encrypted or not _HAS_KERNEL_TIMEOUTS:  # TLS must be able to read while it writes
            self._socket.settimeout(seconds)
            return
        # The kernel's: Python's own costs a `poll` for each read and write.
        until = struct.pack("@ll", int(seconds), max(1, int(seconds % 1 * 1e6)))
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, until)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, until)

    def is_quiet(self) -> bool:
        try:
            if not self._poll.poll(0):
                return True
            return self._encrypted and self._only_protocol()
        except OSError:
            return False

    def _only_protocol(self) -> bool:
        """Return whether what has come is of TLS alone, such as a session ticket."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            return True
        finally:
            self._socket.settimeout(timeout)
        return False

    def interrupt(self) -> None:
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not that of TLS, which may write

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()

    close_in_child = close


def sync_dial_to(address: Address) -> SyncDial:
    """Return the dial that opens streams to `address`.

    Raises ConfigurationError if its certificates cannot be loaded, and for a `memory` address.
    """
    match address.scheme:
        case "unix":
            return _UnixDial(address.path)
        case "redis":
            return _TcpDial(address.host, address.port)
        case "rediss":
            return _TlsDial(address.host, address.port, tls_context(address))
        case "memory":
            raise ConfigurationError(f"{address} has no network address; pass a dial of your own to the client")


class _UnixDial:
    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, limit: float) -> SyncStream:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(limit)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        return SyncSocket(sock)

    def mismatch(self, limit: float) -> str:  # noqa: ARG002 - as the others
        return ""


class _TcpDial:
    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    def __call__(self, limit: float) -> SyncStream:
        return SyncSocket(_connect(self._host, self._port, limit))

    def mismatch(self, limit: float) -> str:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with _connect(self._host, self._port, limit) as sock:
            try:
                context.wrap_socket(sock, server_hostname=self._host).close()
            except ssl.SSLError as error:
                if error.reason in NOT_TLS:
                    return ""
        return SPEAKS_TLS


class _TlsDial:
    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host = host
        self._port = port
        self._context = context

    def __call__(self, limit: float) -> SyncStream:
        begun = time.monotonic()
        sock = _connect(self._host, self._port, limit)
        try:
            sock.settimeout(max(0.001, begun + limit - time.monotonic()))
            return SyncSocket(self._context.wrap_socket(sock, server_hostname=self._host, suppress_ragged_eofs=True))
        except BaseException:
            sock.close()
            raise

    def mismatch(self, limit: float) -> str:
        with _connect(self._host, self._port, limit) as sock:
            sock.sendall(b"PING\r\n")
            plain = sock.recv(1) in (b"+", b"-")  # the first byte of any answer of Redis here
        return NO_TLS if plain else ""


def _connect(host: str, port: int, limit: float) -> socket.socket:
    """Return a socket connected to the first address of a host that accepts, each in a fair part of `limit` (s)."""
    until = time.monotonic() + limit
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"the name {host!r} cannot be looked up: {error}") from error
    failure: OSError = OSError(f"the name {host!r} has no address")
    for place, (family, kind, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.001, (until - time.monotonic()) / (len(found) - place)))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable_keepalive(sock)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            sock.settimeout(max(0.001, until - time.monotonic()))
            return sock
    raise failure
