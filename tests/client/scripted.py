"""An in-memory server for tests: its replies come from a function, byte by byte, and it breaks on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import hiredis
from anyio.abc import ByteStream

from streamq.client import Address, Client

Handler = Callable[[list[bytes]], bytes | None]

MEMORY = Address(scheme="memory", path="scripted")


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)


def echo(command: list[bytes]) -> bytes | None:
    """Answer the handshake as a server does, and ECHO with its argument."""
    match command:
        case [b"ECHO", value]:
            return bulk(value)
        case [b"CLIENT", b"ID"]:
            return b":7\r\n"
        case [b"PING"]:
            return b"+PONG\r\n"
        case [b"NEVER", *_]:
            return None  # owes the reply for ever
        case _:
            return b"+OK\r\n"


@dataclass(frozen=True)
class Faults:
    """The faults of one connection. Bytes are counted after the handshake."""

    chunk: int = 1 << 20  # bytes that one receive returns at most
    cut_sent: int | None = None  # bytes of commands accepted before sending fails
    cut_received: int | None = None  # bytes of replies delivered before the stream ends
    stall: bool = False  # accepts nothing more after the handshake


class Scripted(ByteStream):
    """The client's end of one connection."""

    def __init__(self, handler: Handler, faults: Faults) -> None:
        self._handler = handler
        self._faults = faults
        self._requests = hiredis.Reader()
        self._replies = bytearray()
        self._changed = anyio.Event()
        self._logged_in = False
        self._accepted = 0
        self._delivered = 0
        self.closed = False
        self.commands: list[list[bytes]] = []

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self._check()
        if self._logged_in and self._faults.stall:
            await anyio.sleep_forever()
        if self._logged_in and self._faults.cut_sent is not None:
            room = self._faults.cut_sent - self._accepted
            self._accepted += len(item)
            self._requests.feed(item[: max(0, room)])
            self._answer()
            if room < len(item):
                raise anyio.BrokenResourceError
        else:
            self._requests.feed(item)
            self._answer()
        await anyio.lowlevel.cancel_shielded_checkpoint()

    def _answer(self) -> None:
        while (command := self._requests.gets()) is not False:
            self.commands.append(command)
            self.say(self._handler(command) or b"")

    def say(self, data: bytes) -> None:
        """Send `data` from the server, with or without a request."""
        self._replies += data
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        size = min(max_bytes, self._faults.chunk)
        while not self._replies:
            self._check()
            await self._changed.wait()
        if not self._logged_in:
            size = max_bytes
        elif self._faults.cut_received is not None:
            size = min(size, self._faults.cut_received - self._delivered)
            if size <= 0:
                raise anyio.EndOfStream
            self._delivered += size
        data = bytes(self._replies[:size])
        del self._replies[:size]
        if not self._logged_in and not self._replies:
            self._logged_in = True
        return data

    def _check(self) -> None:
        if self.closed:
            raise anyio.ClosedResourceError

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.closed = True
        self._notify()


class Server:
    """A Dial. Its n-th connection has the n-th of `faults`; later connections have none."""

    def __init__(self, handler: Handler = echo, faults: Sequence[Faults | Exception] = ()) -> None:
        self._handler = handler
        self._faults = list(faults)
        self.connections: list[Scripted] = []
        self.dials = 0

    async def __call__(self) -> ByteStream:
        await anyio.lowlevel.checkpoint()
        self.dials += 1
        fault = self._faults.pop(0) if self._faults else Faults()
        if isinstance(fault, Exception):
            raise fault
        connection = Scripted(self._handler, fault)
        self.connections.append(connection)
        return connection

    def client(self, **options: Any) -> Client:
        return Client(MEMORY, dial=self, jitter=lambda: 0.0, **options)
