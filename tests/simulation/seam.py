"""The byte seam: the client's end of each connection, where all that can befall bytes befalls them.

A `Cable` is a byte stream as the client sees it. It can be cut, at once or after so many more
bytes of either direction; hold what is sent, or what is answered, and let it go later; be slow;
and hand bytes on in small pieces. Its draws are its own: in which order connections are
served changes nothing for the others.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ByteStream

if TYPE_CHECKING:
    from streamq.embedded.memory_stream import MemoryStream
    from tests.simulation.process import Process


class Gate:
    """Open, or closed by as many as want it closed."""

    def __init__(self) -> None:
        self._closed = 0
        self._opened = anyio.Event()

    @property
    def open(self) -> bool:
        return not self._closed

    def close(self) -> None:
        self._closed += 1

    def unclose(self) -> None:
        """Open it, unless others want it closed."""
        self._closed -= 1
        if not self._closed:
            self._opened.set()
            self._opened = anyio.Event()

    def force(self) -> None:
        """Wake whoever waits: what they wait for may have ended."""
        self._opened.set()
        self._opened = anyio.Event()

    async def wait(self) -> None:
        await self._opened.wait()


class Conditions:
    """What holds for the connections of one process."""

    def __init__(self) -> None:
        self.sending = Gate()
        self.replies = Gate()
        self.dialling = Gate()  # closed: refused
        self.latency = 0.0
        self.split = 0
        self.cut_sending: int | None = None  # the next connection that has sent so many bytes is cut
        self.cut_replying: int | None = None


class Cable(ByteStream):
    """The client's end of one connection."""

    def __init__(self, stream: MemoryStream, process: Process, conditions: Conditions, dice: random.Random) -> None:
        self._stream = stream
        self._process = process
        self._conditions = conditions
        self._dice = dice
        self._kept: list[bytes] = []  # sent while sending was held, oldest first
        process.cables.append(self)

    def cut(self) -> None:
        """End the connection, as seen from both sides; what is held never arrives."""
        self._kept.clear()
        self._stream.close()
        if self in self._process.cables:
            self._process.cables.remove(self)
        self._conditions.replies.force()

    @property
    def gone(self) -> bool:
        return self not in self._process.cables

    def let_go(self) -> None:
        """Hand on what was held."""
        kept, self._kept = self._kept, []
        for data in kept:
            self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        if not self.gone and not self._stream.outgoing.closed:
            self._stream.outgoing.write(data)

    async def send(self, item: bytes) -> None:
        conditions = self._conditions
        if self.gone or self._stream.incoming.closed:
            await anyio.lowlevel.checkpoint()
            raise anyio.BrokenResourceError
        if conditions.latency:
            await anyio.sleep(self._dice.uniform(0.0, conditions.latency))
        if conditions.cut_sending is not None:
            if len(item) > conditions.cut_sending:
                item, conditions.cut_sending = item[: conditions.cut_sending], None
                self._hand_on(item)
                await anyio.lowlevel.checkpoint()
                self.cut()
                raise anyio.BrokenResourceError
            conditions.cut_sending -= len(item)
        if not conditions.sending.open or self._kept:
            self._kept.append(bytes(item))
            await anyio.lowlevel.checkpoint()
            return
        if split := conditions.split:  # which may be over before the last part is sent
            while len(item) > split:
                size = self._dice.randint(1, split)
                self._hand_on(item[:size])
                item = item[size:]
                await anyio.lowlevel.checkpoint()
        self._hand_on(item)  # and go on at once, as a socket that has room: a turn of the loop is what a history costs

    async def receive(self, max_bytes: int = 65536) -> bytes:
        conditions = self._conditions
        if conditions.split:
            max_bytes = self._dice.randint(1, conditions.split)
        data = await self._stream.receive(max_bytes)
        if conditions.latency:
            await anyio.sleep(self._dice.uniform(0.0, conditions.latency))
        while not conditions.replies.open and not self.gone:
            await conditions.replies.wait()
        if self.gone:
            raise anyio.EndOfStream
        if conditions.cut_replying is not None:
            if len(data) > conditions.cut_replying:
                data, conditions.cut_replying = data[: conditions.cut_replying], None
                self.cut()
                if not data:
                    raise anyio.EndOfStream
            else:
                conditions.cut_replying -= len(data)
        return data

    async def send_eof(self) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self.cut()
        await anyio.lowlevel.checkpoint()
