"""Connections for threads: dial, log in, exchange commands and replies, each by one thread at a time.

A `SyncConnection` blocks its thread. A `SyncConnector` makes logged-in connections, with the pauses between failures
that `connection` has. What is sent first, and why there is no connection, is said in `login`, for both.
"""

from __future__ import annotations

import random
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio
import hiredis
from redis import exceptions

from streamq.client.login import (
    FAILURES_COUNTED,
    RECONNECT_CODES,
    RefusedAddressError,
    check_handshake,
    handshake_commands,
    reason_of,
    root_cause,
    text_of,
)
from streamq.client.resp_codec import OutcomeUnknown, pack_unchecked, reply_error
from streamq.client.tls import tls_remedy
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.backoff import AbstractBackoff

    from streamq.client.address import Address
    from streamq.client.resp_codec import Command
    from streamq.client.sync_stream import SyncDial, SyncStream

_OF_STREAMS: Final = (
    OSError, EOFError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, hiredis.HiredisError,
    exceptions.RedisError,
)  # fmt: skip
_OF_DIALS: Final = (*_OF_STREAMS, ValueError)  # of a name that no resolver takes, of what is no handshake
_ASK_WITHIN: Final = 1.0  # seconds, whether a server that cannot be reached speaks TLS


class NothingSentError(exceptions.ConnectionError):
    """Raised if a connection broke before a byte of the commands was sent: another connection may send them."""


class SyncConnection:
    """A stream to a server and the parser of its replies. One thread uses it at a time."""

    def __init__(self, stream: SyncStream, place: str) -> None:
        self.place = place
        self.client_id: int | None = None  # the reply to CLIENT ID; None if the server refused it
        self.must_reconnect = False  # the server sent one of RECONNECT_CODES
        self.first_use = True
        self.idle_since = 0.0  # a time of `time.monotonic`, for the pool
        self.proven = False  # it has brought replies since its login
        self.closed = False
        self._stream = stream
        self._timeout = 0.0  # seconds
        self._reader = hiredis.Reader(replyError=self._reply_error)

    def __repr__(self) -> str:
        return f"<SyncConnection to {self.place} id={self.client_id} {'closed' if self.closed else 'open'}>"

    def _reply_error(self, text: str) -> Exception:
        if text.startswith(RECONNECT_CODES):
            self.must_reconnect = True
        return reply_error(text)

    @property
    def usable(self) -> bool:
        """Whether commands may be sent: it is open, and nothing has come that nobody asked for. Does not wait."""
        return not (self.closed or self.must_reconnect) and self._stream.is_quiet()

    def exchange(self, data: bytes, reply_count: int) -> list[Any]:
        """Send packed commands and return their raw replies in order.

        Raises NothingSentError if nothing was sent, OutcomeUnknown if the replies did not come. The connection is then
        of no more use, and neither after any other exception, such as KeyboardInterrupt.
        """
        self.send(data)
        try:
            return self.receive(reply_count)
        except _OF_STREAMS as error:  # not what a signal handler of the user's raises
            raise self._lost(error) from error

    def send(self, data: bytes) -> None:
        """Send packed commands. Raises NothingSentError, or OutcomeUnknown if a part of them was sent."""
        send = self._stream.send
        try:
            sent = send(data)
        except anyio.BrokenResourceError as error:
            raise NothingSentError(f"the connection to {self.place} was lost; nothing was sent") from error
        if sent == len(data):
            return
        if not sent:
            raise NothingSentError(f"{self.place} accepted no bytes; nothing was sent")
        left = memoryview(data)[sent:]
        while left:
            try:
                sent = send(left)
            except anyio.BrokenResourceError as error:
                raise self._lost(error) from error
            if not sent:
                raise self._lost(TimeoutError())
            left = left[sent:]

    def receive(self, reply_count: int) -> list[Any]:
        """Return the next replies. Raises TimeoutError, or another error of the stream or the parser."""
        reader, receive = self._reader, self._stream.receive
        replies: list[Any] = []
        while True:
            reader.feed(receive())
            while (reply := reader.gets()) is not False:
                replies.append(reply)
                if len(replies) == reply_count:
                    if reader.has_data():  # nobody asked for it
                        self.closed = True
                    self.proven = True
                    return replies

    def receive_some(self) -> list[Any]:
        """Wait for bytes and return the replies that are complete now, perhaps none. Raises as `receive`."""
        self._reader.feed(self._stream.receive())
        replies: list[Any] = []
        while (reply := self._reader.gets()) is not False:
            replies.append(reply)
        return replies

    def wait_for(self, count: int, wanted: Callable[[Any], bool]) -> None:
        """Read replies until `count` of them are wanted, and drop them all.

        Raises the first error reply, and OutcomeUnknown if the connection is lost.
        """
        while count > 0:
            try:
                replies = self.receive_some()
            except _OF_STREAMS as error:
                raise self._lost(error) from error
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
                count -= wanted(reply)

    def set_timeout(self, seconds: float) -> None:
        """Have the server be silent for this long at most while it owes a reply."""
        self._timeout = seconds
        self._stream.set_timeout(seconds)

    def handshake(self, commands: Sequence[Command], replies: list[Any]) -> None:
        """Send `commands` and append their replies to `replies` as they arrive."""
        try:
            self.send(pack_unchecked(commands))
        except NothingSentError as error:
            with suppress(Exception):  # a server with too many connections says so, and closes this one
                replies += self.receive_some()
            raise root_cause(error) from None
        while len(replies) < len(commands):
            replies += self.receive_some()

    def interrupt(self) -> None:
        """End the wait of another thread for replies. Raises nothing."""
        self.closed = True
        self._stream.interrupt()

    def close(self) -> None:
        """Close it. Raises nothing."""
        self.closed = True
        self._stream.close()

    def _lost(self, error: Exception) -> OutcomeUnknown:
        reason = f"no reply within {self._timeout:g} s" if isinstance(error, TimeoutError) else reason_of(error)
        return OutcomeUnknown(f"the connection to {self.place} was lost before the reply came: {reason}")


class SyncConnector:
    """Makes logged-in connections to one address for any number of threads, with pauses between failures.

    The pauses are those of `backoff`, times `jitter()`.
    """

    def __init__(
        self, address: Address, dial: SyncDial, *, timeout: float, backoff: AbstractBackoff, client_name: str | None,
        jitter: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self.address = address
        self.timeout = timeout
        self._dial = dial
        self._backoff = backoff
        self._jitter = jitter
        self._client_name = client_name
        self._failures = 0
        self._not_before = 0.0
        self._reached = False

    def __repr__(self) -> str:
        return f"<SyncConnector to {self.address}>"

    def failed(self) -> None:
        """Note a failure: the next dial waits. Also called for a connection that broke before its first reply."""
        delay = self._backoff.compute(self._failures) * self._jitter()
        self._failures = min(self._failures + 1, FAILURES_COUNTED)
        self._not_before = time.monotonic() + delay

    def succeeded(self) -> None:
        """Note that a connection brought replies: the next dial does not wait."""
        self._failures = 0
        self._not_before = 0.0

    def connect(self, until: float) -> SyncConnection:
        """Wait for the pause, then dial once and log in, until a time of `time.monotonic` at the latest.

        Raises AuthenticationError, BusyLoadingError, RefusedAddressError or redis.exceptions.ConnectionError, as
        `Connector.connect`.
        """
        pause = min(self._not_before, until) - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        try:
            return self._connect(max(0.001, min(self.timeout, until - time.monotonic())))
        except exceptions.ConnectionError:
            self.failed()
            raise

    def _connect(self, limit: float) -> SyncConnection:
        place, begun = self.address.place, time.monotonic()
        whole, limit = limit, limit - self._kept_back(limit)
        replies: list[Any] = []
        connection: SyncConnection | None = None
        try:
            connection = SyncConnection(self._dial(limit), place)
            connection.set_timeout(max(0.001, begun + limit - time.monotonic()))
            commands = handshake_commands(self.address, self._client_name)
            connection.handshake(commands, replies)
            check_handshake(self.address, commands, replies)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, exceptions.ConnectionError | ConfigurationError) or not isinstance(error, _OF_DIALS):
                raise
            raise self._failure(error, connection, replies, whole) from (
                None if isinstance(error, TimeoutError) else error
            )
        client_id = replies[-2]
        connection.client_id = client_id if isinstance(client_id, int) else None
        connection.must_reconnect = False
        self._reached = True
        return connection

    def _kept_back(self, limit: float) -> float:
        """Return the part of `limit` in which `_remedy` can ask: a server without TLS may answer nothing to TLS."""
        asks = self.address.scheme == "rediss" and not self._reached
        return min(_ASK_WITHIN, limit / 5) if asks else 0.0

    def _failure(
        self, error: Exception, connection: SyncConnection | None, replies: Sequence[Any], limit: float
    ) -> exceptions.ConnectionError:
        """Return the error of a connection that could not be made, with the remedy if it is known."""
        place = self.address.place
        server_error = next((str(reply) for reply in replies if isinstance(reply, Exception)), "")
        remedy = "" if server_error else self._remedy(error, connection, replies)
        if isinstance(error, TimeoutError):
            return exceptions.ConnectionError(f"no connection to {place} within {limit:g} s{remedy}")
        if isinstance(error, hiredis.ProtocolError) and not (self._reached or server_error or remedy):
            return RefusedAddressError(
                f"{place} does not answer as a Redis or Valkey server does ({error}): give the address of one"
            )
        reason = server_error or text_of(root_cause(error)) + remedy
        return exceptions.ConnectionError(f"no connection to {place}: {reason}")

    def _remedy(self, error: Exception, connection: SyncConnection | None, replies: Sequence[Any]) -> str:
        """Return what to do about an error of TLS, or if one side alone speaks it; else nothing."""
        unreached = (
            connection is None and isinstance(error, OSError) and not isinstance(error, ssl.SSLError | TimeoutError)
        )
        remedy = ""
        if not (self._reached or replies or unreached or isinstance(error, ssl.SSLCertVerificationError)):
            with suppress(Exception):
                remedy = self._dial.mismatch(self._kept_back(self.timeout) or min(self.timeout, _ASK_WITHIN))
        if not remedy and self.address.scheme == "rediss" and not isinstance(error, TimeoutError):
            silent = connection is not None and not replies and not self._reached
            remedy = tls_remedy(root_cause(error), self.address, after_handshake=silent)
        return f"; {remedy}" if remedy else ""
