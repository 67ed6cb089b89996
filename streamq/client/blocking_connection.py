"""A connection for reads that block on the server, and the rescue of what they were about to return.

Theory. A blocked XREADGROUP that is ended by closing its socket may strand entries: the
server may have put them into our pending list in that very instant, and nobody ever reads
the reply. So a cancelled read is ended by the server: CLIENT UNBLOCK over the shared
connection makes it reply, with entries or with nil, and that reply is read before the
cancellation goes on. UNBLOCK answers 0 when the read has not reached the server yet, or is
over already; it is therefore repeated until the reply is here. No UNBLOCK may be under way
when the next read begins, or it would end that one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import anyio
from redis import exceptions

from streamq.client.codec import Command, pack_greeting
from streamq.client.shared_connection import Link, Outbox, Slot

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from streamq.client.client import Client

_RESCUE_WITHIN = 3.0  # seconds that the end of a cancelled read may take
_CLOSE_WITHIN = 2.0
_FIRST_PAUSE = 0.002  # seconds between one UNBLOCK and the next; doubles
_LONGEST_PAUSE = 0.1


class BlockingConnection:
    """A dedicated connection, made by `Client.blocking`; one read at a time.

    It dials at the first read and again at the read after a failure.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._connector = client.connector()
        self._link: Link | None = None
        self._slot: Slot | None = None
        self._reading = anyio.ResourceGuard("reading from")
        self._unblocking = anyio.Lock()
        self._ended_early = False  # unblock came while read was dialing

    def __repr__(self) -> str:
        link = self._link
        state = "idle" if link is None or not link.usable else "reading" if self._slot is not None else "connected"
        return f"<BlockingConnection {self._client.address} {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._give_up("the blocking connection was closed")

    async def read(self, command: Command, *, block: float, on_stranded: Callable[[Any], None]) -> Any:
        """Send one command that blocks at most `block` seconds on the server; return its reply.

        BLOCK itself, in milliseconds, is in the command already. The reply is raw, as from
        `Client.call`; None says that nothing came.

        If the caller is cancelled, the read is ended on the server and a reply that is not
        empty is handed to `on_stranded`, before the cancellation goes on. That takes a round
        trip, and 3 seconds at most.

        Raises error replies; OutcomeUnknown if the connection is lost, or the server silent
        for `block` and the reply timeout; redis.exceptions.ConnectionError if the command
        was not sent.
        """
        with self._reading:
            self._ended_early = False
            link = await self._connected()
            async with self._unblocking:
                if self._ended_early:
                    return None
                if not link.usable:
                    raise exceptions.ConnectionError(f"the connection to {link.wire.place} was lost; nothing was sent")
                slot = self._slot = link.submit(pack_greeting((command,)), 1, patience=block)
            try:
                await slot.wait()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._rescue(link, slot, on_stranded)
                raise
            finally:
                self._slot = None
        (reply,) = slot.result()
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def unblock(self) -> None:
        """End the read in flight: it returns what it has, or None. Without a read, do nothing.

        Returns when that read has its reply. A read that begins later is never hit.
        """
        link, slot = self._link, self._slot
        if link is not None and slot is not None:
            with anyio.CancelScope(shield=True):
                await self._end_read(link, slot)
        else:
            self._ended_early = True  # a read that is dialing returns None instead of starting

    async def _connected(self) -> Link:
        if self._link is not None and self._link.usable:
            return self._link
        await self._give_up("the connection was given up")
        wire = await self._connector.connect()
        link = Link(wire, Outbox(anyio.Event), reply_timeout=self._client.reply_timeout, last=True)
        self._client.start(link)
        self._link = link
        return link

    async def _rescue(self, link: Link, slot: Slot, on_stranded: Callable[[Any], None]) -> None:
        """Get the reply of a read whose caller is cancelled; close the connection if that fails."""
        if not slot.sent:
            slot.abandoned = True
            return
        await self._end_read(link, slot)
        try:
            (reply,) = slot.result()
        except exceptions.ConnectionError:
            return
        if reply and not isinstance(reply, Exception):
            on_stranded(reply)

    async def _end_read(self, link: Link, slot: Slot) -> None:
        """Have the server end the read of `slot`; return when it is done. Runs shielded."""
        with anyio.move_on_after(_RESCUE_WITHIN):
            async with self._unblocking:
                await self._unblock_until_done(link, slot)
            await slot.wait()
        if not slot.settled:
            link.close("a blocked read could not be ended")

    async def _unblock_until_done(self, link: Link, slot: Slot) -> None:
        pause = _FIRST_PAUSE
        identity = link.wire.client_id
        while identity is not None and not slot.settled:
            answered = False
            try:
                answer = await self._client.command("CLIENT", "UNBLOCK", identity)
                answered = True
            except exceptions.ResponseError:
                return  # not allowed here: the read ends by itself, or is cut off
            except exceptions.ConnectionError:
                answer = 0
            finally:
                if not answered and not slot.settled:
                    # It may still be carried out, then against a later read: never use the id again.
                    link.retire()
            if answer == 1:
                return
            with anyio.move_on_after(pause):
                await slot.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _give_up(self, reason: str) -> None:
        link, self._link = self._link, None
        if link is not None:
            if link.completed:
                self._connector.succeeded()
            else:
                self._connector.failed()
            link.close(reason)
            with anyio.move_on_after(_CLOSE_WITHIN, shield=True):
                await link.ended.wait()
