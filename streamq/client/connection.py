"""Connecting: dial, log in (see `login`), and pause between failures.

A `Connection` is a byte stream to a server and the parser of its replies. It does not know which
request a reply belongs to. A `Connector` makes connections to one address, one after the other.
"""

from __future__ import annotations

import random
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio
import hiredis
from redis import exceptions

from streamq.client.dial import KnowsOtherProtocol
from streamq.client.login import (
    FAILURES_COUNTED,
    RECONNECT_CODES,
    RefusedAddressError,
    check_handshake,
    handshake_commands,
    root_cause,
    text_of,
)
from streamq.client.resp_codec import Command, pack_unchecked, reply_error
from streamq.client.sockets import SocketStream
from streamq.client.tls import tls_remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import ByteStream
    from redis.backoff import AbstractBackoff

    from streamq.client.address import Address
    from streamq.client.dial import Dial

_CHUNK: Final = 1 << 16  # bytes that one read takes at most
_CLOSE_WITHIN: Final = 2.0  # seconds
_ASK_WITHIN: Final = 1.0  # seconds, whether a server that cannot be reached speaks TLS


class Connection:
    """A byte stream to a server and the parser of its replies."""

    def __init__(self, stream: ByteStream, place: str) -> None:
        self.stream = stream
        self.place = place
        self.reader = hiredis.Reader(replyError=self._reply_error)
        self.client_id: int | None = None  # the reply to CLIENT ID; None if the server refused it
        self.must_reconnect = False  # the server sent one of RECONNECT_CODES

    def __repr__(self) -> str:
        return f"<Connection to {self.place} id={self.client_id}>"

    def _reply_error(self, text: str) -> Exception:
        if text.startswith(RECONNECT_CODES):
            self.must_reconnect = True
        return reply_error(text)

    async def feed(self) -> None:
        """Wait for bytes and feed them to the parser. Raises what the stream raises."""
        self.reader.feed(await self.stream.receive(_CHUNK))

    def feed_by_callback(self, on_replies: Callable[[float], None], on_end: Callable[[Exception], None]) -> bool:
        """Feed the parser from a callback of the event loop from now on, without a task.

        `on_replies` is called with the loop's time, in seconds, whenever the parser was fed.
        `on_end` is called once, with the error that ended the stream. Returns False, and does
        nothing, where this is not possible: a task must call `feed` there.
        """
        if not isinstance(self.stream, SocketStream):
            return False

        def on_data(data: bytes, now: float) -> None:
            try:
                self.reader.feed(data)
                on_replies(now)
            except Exception as error:  # noqa: BLE001 - no error may reach the event loop: it ends the connection
                on_end(error)

        return self.stream.receive_by_callback(on_data, on_end)

    async def aclose(self) -> None:
        """Close the stream at once, in whatever state it is. Raises nothing."""
        with suppress(Exception), anyio.move_on_after(_CLOSE_WITHIN, shield=True):
            await anyio.aclose_forcefully(self.stream)

    async def handshake(self, commands: Sequence[Command], replies: list[Any]) -> None:
        """Send `commands` and append their replies to `replies` as they arrive."""
        try:
            await self.stream.send(pack_unchecked(commands))
        except (OSError, anyio.BrokenResourceError):
            with suppress(Exception):  # a server with too many connections says so, and closes this one
                await self.feed()
                replies.append(self.reader.gets())
            raise
        while len(replies) < len(commands):
            await self.feed()
            while len(replies) < len(commands) and (reply := self.reader.gets()) is not False:
                replies.append(reply)


class Connector:
    """Makes logged-in connections to one address, with capped backoff and full jitter between failures."""

    def __init__(
        self,
        address: Address,
        dial: Dial,
        *,
        timeout: float,
        backoff: AbstractBackoff,
        client_name: str | None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.backing_off = False
        self._dial = dial
        self._backoff = backoff
        self._jitter = jitter
        self._client_name = client_name
        self._failures = 0
        self._not_before = 0.0
        self._reached = False

    def failed(self) -> None:
        """Note a failure: the next dial waits. Also called for a connection that broke before its first reply."""
        delay = self._backoff.compute(self._failures) * self._jitter()
        self._failures = min(self._failures + 1, FAILURES_COUNTED)
        self._not_before = anyio.current_time() + delay

    def succeeded(self) -> None:
        """Note that a connection brought replies: the next dial does not wait."""
        self._failures = 0
        self._not_before = 0.0

    async def connect(self) -> Connection:
        """Wait for the backoff, then dial once and log in.

        Raises AuthenticationError if the server refuses the user or the password,
        BusyLoadingError if it is not ready yet (LOADING, MASTERDOWN), RefusedAddressError
        if it is no such server or has no such database, and
        redis.exceptions.ConnectionError for every other failure, the connect timeout included.
        """
        await self._wait_for_backoff()
        try:
            return await self._connect()
        except exceptions.ConnectionError:
            self.failed()
            raise

    async def _wait_for_backoff(self) -> None:
        if anyio.current_time() < self._not_before:
            self.backing_off = True
            try:
                await anyio.sleep_until(self._not_before)
            finally:
                self.backing_off = False

    async def _connect(self) -> Connection:
        place = self.address.place
        replies: list[Any] = []
        connection: Connection | None = None
        try:
            with anyio.fail_after(self.timeout - self._kept_back()):
                connection = Connection(await self._dial(), place)
                commands = handshake_commands(self.address, self._client_name)
                await connection.handshake(commands, replies)
            check_handshake(self.address, commands, replies)
        except TimeoutError as error:
            await _close(connection)
            remedy = await self._remedy(error, connection, replies)
            raise exceptions.ConnectionError(f"no connection to {place} within {self.timeout:g} s{remedy}") from None
        except exceptions.ConnectionError:
            await _close(connection)
            raise
        except Exception as error:
            await _close(connection)
            server_error = next((str(reply) for reply in replies if isinstance(reply, Exception)), "")
            remedy = "" if server_error else await self._remedy(error, connection, replies)
            if isinstance(error, hiredis.ProtocolError) and not (self._reached or server_error or remedy):
                raise RefusedAddressError(
                    f"{place} does not answer as a Redis or Valkey server does ({error}): give the address of one"
                ) from error
            reason = server_error or text_of(root_cause(error)) + remedy
            raise exceptions.ConnectionError(f"no connection to {place}: {reason}") from error
        except BaseException:
            await _close(connection)
            raise
        client_id = replies[-2]
        connection.client_id = client_id if isinstance(client_id, int) else None
        connection.must_reconnect = False
        self._reached = True
        return connection

    def _kept_back(self) -> float:
        """Return the part of `timeout` in which `_mismatch` can ask: who waits for the connection waits no longer.

        A server without TLS may wait for more of what TLS sends, so that its silence is all there is.
        """
        asks = self.address.scheme == "rediss" and not self._reached
        return min(_ASK_WITHIN, self.timeout / 5) if asks else 0.0

    async def _remedy(self, error: Exception, connection: Connection | None, replies: Sequence[Any]) -> str:
        """Return what to do about an error of TLS, or if one side alone speaks it; else nothing."""
        remedy = await self._mismatch(error, connection, replies)
        if not remedy and self.address.scheme == "rediss" and not isinstance(error, TimeoutError):
            silent = connection is not None and not replies and not self._reached
            remedy = tls_remedy(root_cause(error), self.address, after_handshake=silent)
        return f"; {remedy}" if remedy else ""

    async def _mismatch(self, error: Exception, connection: Connection | None, replies: Sequence[Any]) -> str:
        """Return the remedy if the server speaks TLS and the URL does not, or the other way round; else nothing.

        It is asked for that only where it was never reached, and said nothing that explains it.
        """
        unreached = (
            connection is None and isinstance(error, OSError) and not isinstance(error, ssl.SSLError | TimeoutError)
        )
        if (
            self._reached or replies or unreached or isinstance(error, ssl.SSLCertVerificationError)
            or not isinstance(self._dial, KnowsOtherProtocol)
        ):  # fmt: skip
            return ""
        remedy = ""
        with suppress(Exception), anyio.move_on_after(self._kept_back() or min(self.timeout, _ASK_WITHIN)):
            remedy = await self._dial.mismatch()
        return remedy


async def _close(connection: Connection | None) -> None:
    if connection is not None:
        await connection.aclose()
