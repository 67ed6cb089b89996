"""Opening a connection: dial, log in, choose the database, and do that no faster than polite.

A `Wire` is a byte stream whose server has accepted us, with the parser of its replies; what
is sent over it is the business of others. A `Connector` makes wires, one after the other.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio
import hiredis
from redis import exceptions

from streamq.client.codec import Command, pack_greeting, reply_error
from streamq.client.sockets import SocketStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import ByteStream
    from redis.backoff import AbstractBackoff

    from streamq.client.address import Address
    from streamq.client.dial import Dial

_CHUNK: Final = 1 << 16  # bytes asked of the stream at once
_CLOSE_WITHIN: Final = 2.0  # seconds
_FAILURES_COUNTED: Final = 64  # redis-py's backoff is a power of it, which soon is no float any more

# After these the server behind the connection is no longer the one we want: it became a
# replica, or it has forgotten who we are.
_DISTRUST: Final = ("READONLY", "UNBLOCKED", "NOAUTH")


class Wire:
    """A byte stream to a server and the parser of its replies."""

    def __init__(self, stream: ByteStream, place: str) -> None:
        self.stream = stream
        self.place = place
        self.reader = hiredis.Reader(replyError=self._reply_error)
        self.client_id: int | None = None  # as CLIENT ID said; None where the server does not tell
        self.distrusted = False

    def __repr__(self) -> str:
        return f"<Wire to {self.place} id={self.client_id}>"

    def _reply_error(self, text: str) -> Exception:
        if text.startswith(_DISTRUST):
            self.distrusted = True
        return reply_error(text)

    async def feed(self) -> None:
        """Wait for bytes and give them to the parser; raises what the stream raises."""
        self.reader.feed(await self.stream.receive(_CHUNK))

    def follow(self, arrived: Callable[[float], None], ended: Callable[[Exception], None]) -> bool:
        """From now on feed the parser without a task: `arrived` hears the loop's time (s) then, `ended` of the end.

        Returns False where that cannot be: have a task `feed` there.
        """
        if not isinstance(self.stream, SocketStream):
            return False

        def take(data: bytes, now: float) -> None:
            try:
                self.reader.feed(data)
                arrived(now)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must end the wire and not the event loop
                ended(error)

        return self.stream.follow(take, ended)

    async def aclose(self) -> None:
        """Close the stream at once, whatever state it is in; raises nothing."""
        with suppress(Exception), anyio.move_on_after(_CLOSE_WITHIN, shield=True):
            await anyio.aclose_forcefully(self.stream)

    async def greet(self, commands: Sequence[Command], replies: list[Any]) -> None:
        """Send `commands` and append their replies to `replies` as they arrive."""
        await self.stream.send(pack_greeting(commands))
        while len(replies) < len(commands):
            await self.feed()
            while len(replies) < len(commands) and (reply := self.reader.gets()) is not False:
                replies.append(reply)


class Connector:
    """Makes greeted wires to one address, with capped backoff and full jitter between failures."""

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
        self.waiting = False
        self._dial = dial
        self._backoff = backoff
        self._jitter = jitter
        self._client_name = client_name
        self._failures = 0
        self._not_before = 0.0

    def failed(self) -> None:
        """Note a failure: the next dial waits. Called for wires that broke at once, too."""
        delay = self._backoff.compute(self._failures) * self._jitter()
        self._failures = min(self._failures + 1, _FAILURES_COUNTED)
        self._not_before = anyio.current_time() + delay

    def succeeded(self) -> None:
        """Note that a connection served somebody: the next dial need not wait."""
        self._failures = 0
        self._not_before = 0.0

    async def connect(self) -> Wire:
        """Wait as the backoff says, then dial once and log in.

        Raises AuthenticationError if the server refuses the user or the password,
        BusyLoadingError if it is not ready yet (LOADING, MASTERDOWN), and
        redis.exceptions.ConnectionError for everything else, timeout included.
        """
        await self._pace()
        try:
            return await self._connect()
        except exceptions.ConnectionError:
            self.failed()
            raise

    async def _pace(self) -> None:
        if anyio.current_time() < self._not_before:
            self.waiting = True
            try:
                await anyio.sleep_until(self._not_before)
            finally:
                self.waiting = False

    async def _connect(self) -> Wire:
        place = self.address.place
        replies: list[Any] = []
        wire: Wire | None = None
        try:
            with anyio.fail_after(self.timeout):
                wire = Wire(await self._dial(), place)
                commands = self._greeting()
                await wire.greet(commands, replies)
            self._judge(commands, replies)
        except TimeoutError:
            await _discard(wire)
            raise exceptions.ConnectionError(f"no connection to {place} within {self.timeout:g} s") from None
        except exceptions.ConnectionError:
            await _discard(wire)
            raise
        except Exception as error:
            await _discard(wire)
            said = next((str(reply) for reply in replies if isinstance(reply, Exception)), "")
            reason = said or _innermost(error)
            raise exceptions.ConnectionError(f"no connection to {place}: {reason}") from error
        except BaseException:
            await _discard(wire)
            raise
        identity = replies[-2]
        wire.client_id = identity if isinstance(identity, int) else None
        wire.distrusted = False
        return wire

    def _greeting(self) -> list[Command]:
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
        commands.append(("CLIENT", "SETINFO", "LIB-NAME", "streamq"))
        commands.append(("CLIENT", "ID"))
        commands.append(("PING",))  # refused while the server loads, unlike all of the above
        return commands

    def _judge(self, commands: Sequence[Command], replies: Sequence[Any]) -> None:
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
                raise exceptions.AuthenticationError(f"{place} refuses {who}: {reply}")
            if isinstance(reply, exceptions.AuthenticationError):
                raise exceptions.AuthenticationError(
                    f"{place} wants a password: {reply}; write it into the URL, redis://:password@host"
                )
            # MISCONF: it cannot write to its disk and refuses PING like a write; reading goes on.
            welcome = isinstance(reply, exceptions.NoPermissionError) or str(reply).startswith("MISCONF")
            refused = name == "PING" and not welcome
            if name == "SELECT":
                raise exceptions.ConnectionError(f"{place} refuses database {self.address.db}: {reply}")
            if refused or isinstance(reply, exceptions.ConnectionError):
                raise exceptions.ConnectionError(f"no connection to {place}: {reply}")


async def _discard(wire: Wire | None) -> None:
    if wire is not None:
        await wire.aclose()


def _innermost(error: BaseException) -> str:
    """Say what really happened below anyio's 'All connection attempts failed'."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[-1]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    match error:
        case anyio.EndOfStream():
            return "the server closed the connection"
        case ssl.SSLError() | socket.gaierror():
            return error.strerror or str(error)
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number)  # error.strerror is what asyncio or trio make of it
        case _:
            return str(error) or type(error).__name__
