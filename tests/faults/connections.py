"""One connection through the proxy, as data: what is held in each direction, and what to wait for.

Draws nothing and decides nothing; `proxy` does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections import deque

HELD = 1 << 22  # bytes held for one direction before the proxy reads no more of it
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Flow:
    """One direction of one connection: from a source, through what is held here, to a sink."""

    __slots__ = ("cut_in", "ended", "held", "jammed", "passed", "pieces", "replies", "shut", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket, *, replies: bool) -> None:
        self.source = source
        self.sink = sink
        self.replies = replies
        self.pieces: deque[tuple[float, bytes]] = deque()  # when to pass them on
        self.held = 0  # bytes
        self.passed = 0  # bytes
        self.cut_in: int | None = None  # bytes until the connection is cut
        self.jammed = False  # the sink takes nothing more for now
        self.ended = False  # the source has no more
        self.shut = False  # and the sink knows it

    def put(self, due: float, data: bytes) -> None:
        """Hold bytes until they are due; never ahead of those before them."""
        if self.pieces:
            due = max(due, self.pieces[-1][0])
        self.pieces.append((due, data))
        self.held += len(data)

    def take(self, largest: int) -> bytes:
        """Return what goes next, at most `largest` bytes (0: no limit) and no more than until the cut."""
        data = self.pieces[0][1]
        limits = [limit for limit in (largest, self.cut_in) if limit]
        return data[: min(limits)] if limits else data

    def sent(self, size: int) -> None:
        """Note how much of what `take` gave was passed on."""
        due, data = self.pieces.popleft()
        if size < len(data):
            self.pieces.appendleft((due, data[size:]))
        self.held -= size
        self.passed += size
        if self.cut_in is not None:
            self.cut_in -= size


class Pair:
    """One connection: the client's socket, the server's, and the two directions between them."""

    __slots__ = ("client", "closed", "flows", "server", "watched")

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.closed = False
        self.watched = {client: 0, server: 0}  # the events that the selector looks for
        self.flows = (Flow(client, server, replies=False), Flow(server, client, replies=True))

    def wanted(self, end: socket.socket) -> int:
        """Return the events to look for on one side."""
        events = 0
        for flow in self.flows:
            if flow.source is end and not flow.ended and flow.held < HELD:
                events |= selectors.EVENT_READ
            if flow.sink is end and flow.jammed:
                events |= selectors.EVENT_WRITE
        return events

    def close(self, *, reset: bool) -> None:
        """End both sides; `reset` ends the client's with RST."""
        self.closed = True
        if reset:
            with contextlib.suppress(OSError):
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.client.close()
        self.server.close()
