"""Opening byte streams to a server: TCP, TLS and unix sockets.

This module knows nothing of Redis. Another kind of transport is another `Dial`: `memory://`
passes one that returns the end of an in-memory pipe.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import anyio
from anyio.streams.tls import TLSStream

from streamq.client.sockets import SocketStream
from streamq.client.tls import NO_TLS, SPEAKS_TLS, tls_context
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from streamq.client.address import Address


NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")  # what OpenSSL says of an answer that is no TLS


class Dial(Protocol):
    """Opens one byte stream to the server. Called once for each connection."""

    async def __call__(self) -> ByteStream:
        """Return a new stream. Raises OSError or an anyio stream error if that fails."""
        ...


@runtime_checkable
class KnowsOtherProtocol(Protocol):
    """A Dial that can find out whether the server speaks TLS where it was expected not to, or the other way round."""

    async def mismatch(self) -> str:
        """Return the remedy if that is so, else an empty text. Raises as a Dial does."""
        ...


def dial_to(address: Address) -> Dial:
    """Return the Dial that opens streams to `address`.

    Raises ConfigurationError if its certificates cannot be loaded. Raises ConfigurationError
    for a `memory` address: the client needs a Dial of its own for it.
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

    async def __call__(self) -> ByteStream:
        return await SocketStream.to_path(self._path)


class _TcpDial:
    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    async def __call__(self) -> ByteStream:
        return await SocketStream.to_host(self._host, self._port)

    async def mismatch(self) -> str:
        """Return the remedy if the server speaks TLS, else an empty text. It sees no more than the start of TLS."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = await SocketStream.to_host(self._host, self._port)
        try:
            await TLSStream.wrap(stream, hostname=self._host, ssl_context=context, standard_compatible=False)
        except ssl.SSLError as error:
            if error.reason in NOT_TLS:
                return ""
        finally:
            await anyio.aclose_forcefully(stream)
        return SPEAKS_TLS


class _TlsDial:
    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host = host
        self._port = port
        self._context = context

    async def __call__(self) -> ByteStream:
        stream = await SocketStream.to_host(self._host, self._port)
        try:
            return await TLSStream.wrap(
                stream, hostname=self._host, ssl_context=self._context, standard_compatible=False
            )
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise

    async def mismatch(self) -> str:
        """Return the remedy if the server does not speak TLS, else an empty text. It sees a PING."""
        stream = await SocketStream.to_host(self._host, self._port)
        try:
            await stream.send(b"PING\r\n")
            plain = await stream.receive(1) in (b"+", b"-")  # the first byte of any answer of Redis here
        finally:
            await anyio.aclose_forcefully(stream)
        return NO_TLS if plain else ""
