"""Connecting: dial, log in, choose the database, and pause between failures.

A `Connection` is a byte stream to a server and the parser of its replies. It does not know which
request a reply belongs to. A `Connector` makes connections to one address, one after the other.
"""

from __future__ import annotations

import os
import random
import shlex
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio
import hiredis
from redis import exceptions

from streamq.client.dial import KnowsOtherProtocol
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
_FAILURES_COUNTED: Final = 64  # redis-py's backoff raises 2 to this power, which must stay a float

# After an error with one of these codes the connection is of no more use: the server became a
# replica, or it has forgotten our login.
_RECONNECT_CODES: Final = ("READONLY", "UNBLOCKED", "NOAUTH")


class RefusedAddressError(exceptions.ConnectionError):
    """Raised if the server has no such database, or is no Redis or Valkey server: to wait is no use."""


class RefusedDatabaseError(RefusedAddressError):
    """Raised if the user may not choose the database of the address: it lacks the right to SELECT."""


class Connection:
    """A byte stream to a server and the parser of its replies."""

    def __init__(self, stream: ByteStream, place: str) -> None:
        self.stream = stream
        self.place = place
        self.reader = hiredis.Reader(replyError=self._reply_error)
        self.client_id: int | None = None  # the reply to CLIENT ID; None if the server refused it
        self.must_reconnect = False  # the server sent one of _RECONNECT_CODES

    def __repr__(self) -> str:
        return f"<Connection to {self.place} id={self.client_id}>"

    def _reply_error(self, text: str) -> Exception:
        if text.startswith(_RECONNECT_CODES):
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
        self._failures = min(self._failures + 1, _FAILURES_COUNTED)
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
                commands = self._handshake_commands()
                await connection.handshake(commands, replies)
            self._check_handshake(commands, replies)
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
            reason = server_error or _text(_root_cause(error)) + remedy
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
            remedy = tls_remedy(_root_cause(error), self.address, after_handshake=silent)
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

    def _handshake_commands(self) -> list[Command]:
        address = self.address
        commands: list[Command] = []
        if address.username is not None:
            commands.append(("AUTH", address.username, address.password or ""))
        elif address.password is not None:
            commands.append(("AUTH", address.password))
        if address.db:
            commands.append(("SELECT", address.db))
        if self._client_name:
            commands.append(("CLIENT", "SETNAME", self._client_name))
        if address.username is None:  # a right to it cannot be given before Redis 7.2, which has no such command
            commands.append(("CLIENT", "SETINFO", "LIB-NAME", "streamq"))
        commands.append(("CLIENT", "ID"))
        commands.append(("PING",))  # refused while the server loads its data, unlike the others
        return commands

    def _check_handshake(self, commands: Sequence[Command], replies: Sequence[Any]) -> None:
        """Raise for the first error reply that makes the connection unusable."""
        place = self.address.place
        for command, reply in zip(commands, replies, strict=True):
            if not isinstance(reply, Exception):
                continue
            name = command[0]
            if isinstance(reply, exceptions.BusyLoadingError | exceptions.MasterDownError):
                raise exceptions.BusyLoadingError(f"{place} is not ready: {reply}")
            if name == "AUTH":
                who = f"user {self.address.username!r}" if self.address.username else "the password"
                raise _login_refused(self.address, f"refuses {who}", reply)
            if isinstance(reply, exceptions.AuthenticationError):
                raise _login_refused(self.address, "requires a login", reply)
            # MISCONF: the server cannot write to its disk. It refuses PING like a write, but still serves reads.
            harmless = isinstance(reply, exceptions.NoPermissionError) or str(reply).startswith("MISCONF")
            refused = name == "PING" and not harmless
            if name == "SELECT" and isinstance(reply, exceptions.NoPermissionError):
                raise _database_refused(self.address, reply)
            if name == "SELECT":
                raise RefusedAddressError(
                    f"{place} refuses database {self.address.db}: {str(reply).strip().rstrip('.')}; give one that it "
                    "has, or none, at the end of the URL (redis-cli CONFIG GET databases)"
                )
            if refused or isinstance(reply, exceptions.ConnectionError):
                raise exceptions.ConnectionError(f"no connection to {place}: {reply}")


def _database_refused(address: Address, reply: Exception) -> RefusedDatabaseError:
    """Return the error of a user that lacks the right to SELECT, with the right, and what gives it."""
    user, why = address.username or "default", str(reply).strip().rstrip(".").removeprefix("NOPERM ")
    return RefusedDatabaseError(
        f"the user {user!r} may not choose database {address.db} of {address.place} (NOPERM {why}): it lacks the right "
        f"+select; {shlex.join(('redis-cli', 'ACL', 'SETUSER', user, '+select'))}, or rules by 'streamq acl' with "
        f"--url redis://localhost/{address.db}"
    )


def _login_refused(address: Address, what: str, reply: Exception) -> exceptions.AuthenticationError:
    """Return the error of a login, with what to write: in the scheme of the address, for its place."""
    begin, end = f"{address.scheme}://", f"@{address.place}"
    if "without any password configured" in str(reply) or "no password is set" in str(reply):
        return exceptions.AuthenticationError(
            f"{address.place} {what}: it has no password; leave the password out of the URL: {begin}{address.place}"
        )
    return exceptions.AuthenticationError(
        f"{address.place} {what}: {str(reply).rstrip('.')}; write the user and the password into the URL: "
        f"{begin}user:password{end}, or {begin}:password{end} if the server has one password for all (requirepass)"
    )


async def _close(connection: Connection | None) -> None:
    if connection is not None:
        await connection.aclose()


def _root_cause(error: BaseException) -> BaseException:
    """Return the error below anyio's 'All connection attempts failed'."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[-1]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return error


def _text(error: BaseException) -> str:
    match error:
        case anyio.EndOfStream():
            return "the server closed the connection"
        case ssl.SSLCertVerificationError(verify_message=str(why)):
            return f"the certificate of the server cannot be verified: {why.rstrip('.')}"
        case ssl.SSLError() | socket.gaierror():
            return error.strerror or str(error)
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number)  # error.strerror has the text of asyncio or trio
        case _:
            return str(error) or type(error).__name__
