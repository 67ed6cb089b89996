"""`memory://` for a thread without an event loop: the requests are carried out in the thread that sends them.

Owns the client's end of such a connection. The server's end is that of every connection, under the lock of the server,
so both kinds of clients share one dataset: a loop in one thread, blocking calls in others.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import anyio

from streamq.embedded.memory_stream import ByteQueue, pipe
from streamq.embedded.resp import CommandError, ProtocolError, RequestParser, encode
from streamq.embedded.server_state import BlockedClient
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from streamq.embedded.memory_server import MemoryServer


class _ThreadSignal:
    """A `Signal` whose waiter is a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Wake the thread that waits. Without one, the next wait returns at once."""
        self._event.set()

    def wait(self, seconds: float | None) -> bool:
        """Wait until `set` was called. Return whether it was."""
        done = self._event.wait(seconds)
        self._event.clear()
        return done


class SyncMemoryStream:
    """A connection to a server of this process, as a stream that blocks."""

    def __init__(self, server: MemoryServer) -> None:
        client_end, server_end = pipe()
        incoming: Any = client_end.incoming
        self._server = server
        self._incoming: ByteQueue = incoming
        self._signal = incoming.signal = _ThreadSignal()
        self._end = client_end
        self._parser = RequestParser()
        self._timeout: float | None = None
        self._connection = server.accept(server_end)

    def __repr__(self) -> str:
        return f"<SyncMemoryStream of {self._server!r}>"

    def send(self, data: bytes | memoryview) -> int:
        """Carry out the requests in `data`. A command that blocks, blocks here."""
        if self._incoming.closed:
            raise anyio.BrokenResourceError
        outgoing = self._connection.stream.outgoing
        try:
            for request in self._parser.feed(bytes(data)):
                with self._server.lock:
                    answer = self._connection.answer(request)
                    if isinstance(answer, BlockedClient):
                        signal: Any = _ThreadSignal()
                        answer.signal = signal
                outgoing.write(self._wait(answer) if isinstance(answer, BlockedClient) else answer)
        except ProtocolError as error:
            outgoing.write(encode(CommandError(f"ERR Protocol error: {error}")))
            self.close()
        return len(data)

    def _wait(self, blocked: BlockedClient) -> bytes:
        timeout, signal = blocked.command.timeout, blocked.signal
        longest = threading.TIMEOUT_MAX if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        try:
            if blocked.reply is None:
                signal.wait(longest)  # type: ignore[call-arg, unused-coroutine]
        finally:
            with self._server.lock:
                self._connection.blocked = None
                blocked.end()
        return encode(None, nil_arrays=True) if blocked.reply is None else blocked.reply

    def receive(self) -> bytes:
        """Return the next bytes. Raises TimeoutError or EndOfStream."""
        while not self._incoming.chunks:
            if self._incoming.closed:
                raise anyio.EndOfStream
            if not self._signal.wait(self._timeout) and not self._incoming.chunks:
                raise TimeoutError
        return self._incoming.chunks.popleft()

    def set_timeout(self, seconds: float) -> None:
        """Have later calls of `receive` wait this long at most."""
        self._timeout = min(seconds, threading.TIMEOUT_MAX)

    def is_quiet(self) -> bool:
        """Return whether it is open and nothing has come."""
        return not (self._incoming.closed or self._incoming.chunks)

    def interrupt(self) -> None:
        """End the wait of another thread."""
        self._end.close()

    def close(self) -> None:
        """Close it, on the side of the server, too."""
        self._end.close()
        with self._server.lock:
            self._server.forget(self._connection)


class SyncMemoryDial:
    """Opens connections to a server of this process. Raises ConfigurationError in a child of it: the data are there."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._pid = os.getpid()

    def __call__(self, limit: float) -> SyncMemoryStream:  # noqa: ARG002 - it takes no time
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"{self._server.url} is a server in the process that opened it, and this is a child of that: "
                "use a server that both can reach, such as embedded:///path/to/data"
            )
        return SyncMemoryStream(self._server)

    def mismatch(self, limit: float) -> str:  # noqa: ARG002
        """Return nothing: TLS has no part in this."""
        return ""
