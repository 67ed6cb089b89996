"""A connection for reads that block on the server, and the replies of cancelled reads.

Theory. Closing the socket of a blocked XREADGROUP may lose entries: in that instant the server
may have put them into our pending list, and nobody reads the reply. So the server ends a
cancelled read. CLIENT UNBLOCK over the shared connection makes it reply, with entries or with
nil, and that reply is read before the cancellation continues. UNBLOCK answers 0 if the read has
not reached the server yet, or is over already. So UNBLOCK is repeated until the reply is here.
No UNBLOCK may be under way when the next read begins: it would end that read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio
from redis import exceptions

from streamq.client.resp_codec import Command, pack_unchecked
from streamq.client.send_queue import Request, SendQueue
from streamq.client.shared_connection import SharedConnection
from streamq.errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from streamq.client.connection import Connector

_UNBLOCK_WITHIN = 1.0  # seconds that ending a cancelled read may take
_CLOSE_WITHIN = 2.0
_FIRST_PAUSE = 0.002  # seconds between one UNBLOCK and the next; doubles each time
_LONGEST_PAUSE = 0.1
_BY_CLIENT = "client unblocked via CLIENT UNBLOCK"  # in the error reply after CLIENT UNBLOCK id ERROR


class SendCommand(Protocol):
    """Sends one command over another connection: `Client.command`."""

    async def __call__(self, *command: bytes | str | float) -> Any: ...


class BlockingConnection:
    """A connection for one blocking read at a time. Made by `Client.blocking`.

    It connects at the first read, and again at the read after a failure.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        reply_timeout: float,
        send: SendCommand,
        start: Callable[[SharedConnection], None],
    ) -> None:
        self._connector = connector
        self._reply_timeout = reply_timeout
        self._send = send
        self._start = start
        self._connection: SharedConnection | None = None  # nobody else sends over it
        self._request: Request | None = None  # the read that is under way
        self._reading = anyio.ResourceGuard("reading from")
        self._unblocking = anyio.Lock()
        self._unblocked_early = False  # `unblock` was called while `read` was connecting
        self._closed = False

    def __repr__(self) -> str:
        if self._connection is None or not self._connection.usable:
            state = "idle"
        else:
            state = "connected" if self._request is None else "reading"
        return f"<BlockingConnection {self._connector.address} {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True  # a read that is connecting closes what it gets
        await self._close("the blocking connection was closed")

    async def read(self, command: Command, *, block: float, on_late_reply: Callable[[Any], None]) -> Any:
        """Send one command that blocks for `block` seconds at most, and return its reply.

        The command itself must have its BLOCK option, in milliseconds. The reply is raw, as from
        `Client.call`; None means that nothing came within `block`.

        If the caller is cancelled, the server ends the read. A reply that is not empty is passed
        to `on_late_reply` before the cancellation continues. That takes one round trip, and a
        second at most.

        None also if somebody ended the read with CLIENT UNBLOCK, whatever the option: nothing was read.

        Raises error replies. Raises OutcomeUnknown if the connection is lost, or if the server is
        silent for `block` and the reply timeout. Raises redis.exceptions.ConnectionError if the
        command was not sent.
        """
        with self._reading:
            self._unblocked_early = False
            connection = await self._connected()
            async with self._unblocking:
                if self._unblocked_early:
                    return None
                if not connection.usable:
                    raise exceptions.ConnectionError(f"the connection to {connection.place} was lost; nothing was sent")
                request = self._request = connection.submit(pack_unchecked((command,)), 1, block=block)
            try:
                await request.wait()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._pass_on_late_reply(connection, request, on_late_reply)
                raise
            finally:
                self._request = None
        (reply,) = request.result()
        if isinstance(reply, Exception):
            if _BY_CLIENT in str(reply):
                return None
            raise reply
        return reply

    async def unblock(self) -> None:
        """End the read that is under way: it returns its reply or None. Do nothing if there is no read.

        Returns when that read has its reply. Never ends a read that begins later.
        """
        connection, request = self._connection, self._request
        if connection is not None and request is not None:
            with anyio.CancelScope(shield=True):
                await self._end_read(connection, request)
        else:
            self._unblocked_early = True  # a read that is connecting returns None and sends nothing

    async def _connected(self) -> SharedConnection:
        if self._connection is not None and self._connection.usable:
            return self._connection
        await self._close("the connection was given up")
        dialled = await self._connector.connect()
        connection = SharedConnection(
            dialled, SendQueue(anyio.Event), reply_timeout=self._reply_timeout, owns_queue=True
        )
        if self._closed:
            await connection.aclose()
            raise exceptions.ConnectionError("the blocking connection was closed while it connected")
        try:
            self._start(connection)
        except BaseException:  # the client was closed: nobody else closes the socket
            await connection.aclose()
            raise
        self._connection = connection
        return connection

    async def _pass_on_late_reply(
        self, connection: SharedConnection, request: Request, on_late_reply: Callable[[Any], None]
    ) -> None:
        """End a read whose caller was cancelled, and pass its reply on. Close the connection if that fails."""
        if not request.sent:
            request.abandoned = True
            return
        await self._end_read(connection, request)
        try:
            (reply,) = request.result()
        except exceptions.ConnectionError:
            return
        if reply and not isinstance(reply, Exception):
            on_late_reply(reply)

    async def _end_read(self, connection: SharedConnection, request: Request) -> None:
        """Have the server end a read, and return when it has ended. Runs shielded."""
        with anyio.move_on_after(_UNBLOCK_WITHIN):
            async with self._unblocking:
                await self._unblock_until_finished(connection, request)
            await request.wait()
        if not request.finished:
            connection.close("a blocked read could not be ended")

    async def _unblock_until_finished(self, connection: SharedConnection, request: Request) -> None:
        pause = _FIRST_PAUSE
        client_id = connection.client_id
        while client_id is not None and not request.finished:
            answered = False
            try:
                answer = await self._send("CLIENT", "UNBLOCK", client_id)
                answered = True
            except WrongLoopError:  # the child of a fork: the read is the parent's
                connection.close("its process was forked")
                return
            except exceptions.ResponseError:
                return  # an ACL refuses it: the read ends by itself, or `_end_read` closes the connection
            except exceptions.ConnectionError:
                answer = 0
            finally:
                if not answered and not request.finished:
                    # The UNBLOCK may be carried out later and end another read: never use this id again.
                    connection.drain()
            if answer == 1:
                return
            with anyio.move_on_after(pause):
                await request.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _close(self, reason: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.completed:
                self._connector.succeeded()
            else:
                self._connector.failed()
            connection.close(reason)
            with anyio.move_on_after(_CLOSE_WITHIN, shield=True):
                await connection.ended.wait()
