"""A server for tests behind pairs of sockets, as the client's own streams use them. It breaks on demand."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import hiredis

from streamq.client import Client
from streamq.client.sockets import SocketStream
from tests.client.scripted import MEMORY, echo

_BUFFER = 4096  # bytes that the kernel buffers: a larger send is partial


@dataclass(frozen=True)
class Cut:
    """After how many bytes one connection ends, counted from the first. None: it does not end."""

    received: int | None = None  # bytes of commands that are read
    replied: int | None = None  # bytes of replies that are sent
    pause: int = 0  # turns of the loop before each reply


class PairServer:
    """A Dial. Its connections are served in `group`."""

    def __init__(self, group: anyio.abc.TaskGroup, cuts: Sequence[Cut] = ()) -> None:
        self._group = group
        self._cuts = list(cuts)
        self.dials = 0
        self.reads: list[int] = []  # number of commands in each read

    async def __call__(self) -> SocketStream:
        ours, theirs = socket.socketpair()
        for one in (ours, theirs):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.dials += 1
        cut = self._cuts.pop(0) if self._cuts else Cut()
        self._group.start_soon(self._serve, SocketStream(theirs), cut)
        return SocketStream(ours)

    def client(self) -> Client:
        return Client(MEMORY, dial=self, jitter=lambda: 0.0)

    async def _serve(self, stream: SocketStream, cut: Cut) -> None:
        requests = hiredis.Reader()
        received = replied = 0
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while cut.received is None or received < cut.received:
                    data = await stream.receive(_BUFFER if cut.received is None else cut.received - received)
                    received += len(data)
                    requests.feed(data)
                    reply, count = b"", 0
                    while (command := requests.gets()) is not False:
                        reply += echo(command) or b""
                        count += 1
                    self.reads.append(count)
                    for _ in range(cut.pause):
                        await anyio.lowlevel.checkpoint()
                    await stream.send(reply[: None if cut.replied is None else max(0, cut.replied - replied)])
                    replied += len(reply)
                    if cut.replied is not None and replied >= cut.replied:
                        return
