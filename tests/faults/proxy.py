"""A TCP proxy between client and server that fails them on demand.

It runs in a thread of its own, so a scenario drives it with plain calls; each returns when it is
in force. It moves bytes and knows nothing of what they mean. Black-holed bytes are held and not
dropped, since TCP repeats what was lost: after `heal` they arrive, late, and even if the client
that sent them has long gone. What it draws comes from its seed.
"""

from __future__ import annotations

import contextlib
import queue
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from tests.faults.connections import RESET, Flow, Pair

Target = str | tuple[str, int]  # the path of a unix socket, or host and port

_CHUNK = 1 << 16


@dataclass(slots=True)
class _Faults:
    """What is in force. Seconds, bytes, and probabilities from 0 to 1."""

    delay: float = 0.0
    jitter: float = 0.0
    largest: int = 0  # of a piece; 0: whatever arrived together
    hold_requests: bool = False
    hold_replies: bool = False
    loses: float = 0.0


class Proxy:
    """Carries connections from 127.0.0.1 and a port of its own to `target`, until told to fail them.

    `counts` says how many connections there were, were cut, were refused, and how many lost a reply.
    """

    def __init__(self, target: Target, *, seed: int = 0) -> None:
        self.target = target
        self.counts = {"connections": 0, "cut": 0, "refused": 0, "lost replies": 0}
        self._random = random.Random(seed)
        self._faults = _Faults()
        self._pairs: list[Pair] = []
        self._orders: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        # Keeps the port ours while connections are refused.
        self._place = _bound(0)
        self.port: int = self._place.getsockname()[1]
        self._listener: socket.socket | None = None
        self._listen()
        self._thread = threading.Thread(target=self._serve, name=f"proxy {self.port}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Proxy {self.url} to {self.target} {len(self._pairs)} connections {self._faults}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address for a Redis client."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._do(lambda: len(self._pairs))

    # --- faults --------------------------------------------------------------------------------

    def cut(self, *, count: int | None = None) -> int:
        """End connections at once, all or `count` drawn ones, by FIN or by RST; return how many."""
        return self._do(lambda: self._cut(self._drawn(count)))

    def cut_after(self, size: int, *, replies: bool = True, count: int | None = None) -> int:
        """Cut connections that are open now when so many more bytes have passed: in the middle of a reply.

        `replies` counts what the server says, otherwise what the client says. Returns how many.
        """

        def order() -> int:
            pairs = self._drawn(count)
            for pair in pairs:
                pair.flows[replies].cut_in = max(1, size)
            return len(pairs)

        return self._do(order)

    def delay(self, seconds: float, *, jitter: float = 0.0) -> None:
        """Pass everything on later: by `seconds` and a drawn part of `jitter`."""
        self._do(lambda: self._set(delay=seconds, jitter=jitter))

    def split(self, largest: int) -> None:
        """Pass everything on in pieces of 1 to `largest` bytes."""
        self._do(lambda: self._set(largest=largest))

    def blackhole(self, *, requests: bool = True, replies: bool = True) -> None:
        """Pass nothing on, either way or in one direction; what is held arrives after `heal`."""
        self._do(lambda: self._set(hold_requests=requests, hold_replies=replies))

    def lose_replies(self, chance: float = 1.0) -> None:
        """Let commands run and drop the reply, then end the connection: with this chance each time.

        The first reply of a connection passes, or nobody could log in.
        """
        self._do(lambda: self._set(loses=chance))

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay. `accept` ends it."""
        self._do(self._unlisten)

    def accept(self) -> None:
        """Welcome new connections again."""
        self._do(self._listen)

    def retarget(self, target: Target) -> None:
        """Carry new connections to another server."""
        self.target = target

    def heal(self) -> None:
        """End all faults. What was held flows on."""

        def order() -> None:
            self._faults = _Faults()
            for pair in self._pairs:
                for flow in pair.flows:
                    flow.cut_in = None
            self._listen()

        self._do(order)

    def close(self) -> None:
        """End everything: the listener, the connections and the thread."""
        if self._thread.is_alive():
            self._do(self._stop)
            self._thread.join()

    # --- orders, carried out in the thread --------------------------------------------------------

    def _do(self, order: Callable[[], Any]) -> Any:
        """Have the thread carry out an order; return what it returns."""
        if not self._thread.is_alive():
            raise RuntimeError(f"{self.url} is closed")
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._orders.put((order, answer))
        self._wake.send(b".")
        return answer.get(timeout=10)

    def _set(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self._faults, name, value)

    def _drawn(self, count: int | None) -> list[Pair]:
        return list(self._pairs) if count is None else self._random.sample(self._pairs, min(count, len(self._pairs)))

    def _cut(self, pairs: list[Pair]) -> int:
        for pair in pairs:
            self.counts["cut"] += 1
            self._drop(pair, reset=self._random.random() < 0.5)
        return len(pairs)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(128)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _stop(self) -> None:
        self._closing = True

    # --- the thread -------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._closing:
            for key, events in self._selector.select(self._pause()):
                if key.fileobj is self._woken:
                    self._obey()
                elif key.data is None:  # the listener; or one that an order has just closed
                    if key.fileobj is self._listener:
                        self._accept()
                elif not key.data.closed:
                    self._ready(key.data, key.fileobj, events)
            for pair in list(self._pairs):
                self._pass_on(pair)
        self._unlisten()
        for pair in list(self._pairs):
            self._drop(pair)
        self._selector.close()
        for end in (self._place, self._wake, self._woken):
            end.close()

    def _obey(self) -> None:
        self._woken.recv(_CHUNK)
        while not self._orders.empty():
            order, answer = self._orders.get()
            answer.put(order())

    def _accept(self) -> None:
        if self._listener is None:
            return
        client, _ = self._listener.accept()
        try:
            server = _connected(self.target)
        except OSError:
            self.counts["refused"] += 1
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.counts["connections"] += 1
        pair = Pair(client, server)
        self._pairs.append(pair)
        for end in (client, server):
            end.setblocking(False)
        self._watch(pair)

    def _ready(self, pair: Pair, end: Any, events: int) -> None:
        for flow in pair.flows:
            if flow.sink is end and events & selectors.EVENT_WRITE:
                flow.jammed = False
            if flow.source is end and events & selectors.EVENT_READ and not flow.ended:
                self._receive(pair, flow)

    def _receive(self, pair: Pair, flow: Flow) -> None:
        try:
            data = flow.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            flow.ended = True
            return
        if flow.replies and flow.passed and self._random.random() < self._faults.loses:
            self.counts["lost replies"] += 1
            self._drop(pair, reset=self._random.random() < 0.5)
            return
        flow.put(time.monotonic() + self._lateness(), data)

    def _lateness(self) -> float:
        faults = self._faults
        return faults.delay + faults.jitter * self._random.random() if faults.delay or faults.jitter else 0.0

    def _holds(self, flow: Flow) -> bool:
        return self._faults.hold_replies if flow.replies else self._faults.hold_requests

    def _pass_on(self, pair: Pair) -> None:
        """Pass on what is due, at most one piece each way; end what has ended."""
        now = time.monotonic()
        for flow in pair.flows:
            if self._holds(flow):
                continue
            if flow.pieces and not flow.jammed and flow.pieces[0][0] <= now and not self._send(pair, flow):
                return
            if flow.ended and not flow.pieces and not flow.shut:
                flow.shut = True
                with contextlib.suppress(OSError):
                    flow.sink.shutdown(socket.SHUT_WR)
        if all(flow.shut for flow in pair.flows):
            self._drop(pair)
            return
        self._watch(pair)

    def _send(self, pair: Pair, flow: Flow) -> bool:
        """Pass one piece on; False if that was the end of the connection."""
        largest = self._random.randint(1, self._faults.largest) if self._faults.largest else 0
        try:
            flow.sent(flow.sink.send(flow.take(largest)))
        except BlockingIOError:
            flow.jammed = True
        except OSError:
            self._drop(pair)
            return False
        if flow.cut_in is not None and flow.cut_in <= 0:
            self._cut([pair])
            return False
        return True

    def _watch(self, pair: Pair) -> None:
        """Have the selector look for what is wanted of both sides; a side may want nothing."""
        for end, before in pair.watched.items():
            events = pair.wanted(end)
            if events == before:
                continue
            if before:
                self._selector.unregister(end)
            if events:
                self._selector.register(end, events, pair)
            pair.watched[end] = events

    def _pause(self) -> float | None:
        """Return how long to wait for events: until the next piece is due."""
        flows = [flow for pair in self._pairs for flow in pair.flows]
        dues = [flow.pieces[0][0] for flow in flows if flow.pieces and not flow.jammed and not self._holds(flow)]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _drop(self, pair: Pair, *, reset: bool = False) -> None:
        if pair in self._pairs:
            self._pairs.remove(pair)
            for end, events in pair.watched.items():
                if events:
                    self._selector.unregister(end)
            pair.close(reset=reset)


def _bound(port: int) -> socket.socket:
    """Return a TCP socket bound to a port of 127.0.0.1, which others of ours may be bound to as well."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def _connected(target: Target) -> socket.socket:
    """Return a connection to a server. Raises OSError if there is none."""
    if isinstance(target, tuple):
        return socket.create_connection(target, timeout=1)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(1)
        made.connect(target)
    except OSError:
        made.close()
        raise
    return made
