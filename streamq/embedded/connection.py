"""One connection of a `memory://` server: reads requests, writes replies, waits where Redis waits.

The commands about connections and about the server itself are in `administration`; all that
touch data go to fakeredis through `dataset`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import anyio
from anyio.lowlevel import checkpoint

from streamq.embedded import blocking_reads, server_commands
from streamq.embedded.resp import CommandError, ProtocolError, RequestParser, encode

if TYPE_CHECKING:
    from streamq.embedded.memory_server import MemoryServer
    from streamq.embedded.pipe import MemoryStream
    from streamq.embedded.resp import Reply

# Commands whose empty answer is a null array, not a null bulk string.
_NIL_ARRAYS: Final = blocking_reads.BLOCKING | {b"EXEC", b"LMPOP", b"ZMPOP"}
_SUBSCRIBING: Final = frozenset(
    {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"}
)
_REQUESTS_PER_TURN: Final = 64  # a long pipeline must not hold up the other tasks of the loop


class Connection:
    """The server's end. All but `serve` is called under the lock of the server."""

    def __init__(self, server: MemoryServer, number: int, stream: MemoryStream) -> None:
        self.server = server
        self.id: int = number
        self.stream = stream
        self.session = server.dataset.session()
        self.name: bytes = b""
        self.library: dict[str, bytes] = {}
        self.database = 0
        self.in_transaction = False
        self.last_command = ""
        self.since = server.clock()
        self.used_at = self.since
        self.quitting = False
        self.blocked: blocking_reads.BlockedRead | None = None
        stream.incoming.on_close = self._client_left

    def __repr__(self) -> str:
        state = "gone" if self.gone else "blocked" if self.blocked else "open"
        return f"<Connection {self.id} of {self.server.url} {state}>"

    @property
    def gone(self) -> bool:
        """Whether the client has closed its end, or the server this one."""
        return self.stream.incoming.closed

    def _client_left(self) -> None:
        blocked = self.blocked
        if blocked is not None:
            blocked.signal.set()

    def kill(self) -> None:
        """Close the connection from the server's side."""
        self.stream.close()

    async def serve(self) -> None:
        """Answer requests until the connection ends."""
        parser = RequestParser()
        try:
            while not self.quitting:
                data = await self.stream.receive()
                await self._serve_requests(parser, data)
        except ProtocolError as error:
            self.stream.outgoing.write(encode(CommandError(f"ERR Protocol error: {error}")))
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass
        finally:
            self.stream.close()
            with self.server.lock:
                self.server.forget(self)

    async def _serve_requests(self, parser: RequestParser, data: bytes) -> None:
        outgoing = self.stream.outgoing
        for count, request in enumerate(parser.feed(data), 1):
            with self.server.lock:
                answer = self._answer(request)
            outgoing.write(await self._wait(answer) if isinstance(answer, blocking_reads.BlockedRead) else answer)
            if self.gone or self.quitting:
                return
            if not count % _REQUESTS_PER_TURN:
                await checkpoint()

    def answer_now(self, request: list[bytes]) -> bytes:
        """Carry out one request without ever waiting: what would wait is answered nil."""
        answer = self._answer(request)
        if isinstance(answer, blocking_reads.BlockedRead):
            answer.end()
            return encode(None, nil_arrays=True)
        return answer

    def _answer(self, request: list[bytes]) -> bytes | blocking_reads.BlockedRead:
        """Carry out one request: its encoded reply, or the read that now waits."""
        server, name = self.server, request[0].upper()
        self.last_command = name.decode(errors="replace").lower()
        self.used_at = server.clock()
        server.calls[self.last_command] += 1
        try:
            if not self.in_transaction:
                own = server_commands.COMMANDS.get(name)
                if own is not None and (reply := own(self, request)) is not server_commands.PASS:
                    return encode(reply)
                if name in blocking_reads.BLOCKING:
                    return self._answer_blocking(request)
            return self._run(name, request)
        except CommandError as error:
            return encode(error)
        finally:
            server.settle()

    def _run(self, name: bytes, request: list[bytes]) -> bytes:
        replies = self.session.run(request)
        self._follow(name, request, replies)
        return b"".join(encode(reply, nil_arrays=name in _NIL_ARRAYS) for reply in replies)

    def _follow(self, name: bytes, request: list[bytes], replies: list[Reply]) -> None:
        """Keep up with what a command changed about the connection."""
        if name == b"MULTI":
            self.in_transaction = self.in_transaction or not isinstance(replies[0], Exception)
        elif name in {b"EXEC", b"DISCARD", b"RESET"}:
            self.in_transaction = False
        elif name == b"SELECT" and not isinstance(replies[0], Exception) and not self.in_transaction:
            self.database = int(request[1])
        elif name in _SUBSCRIBING and replies and isinstance(replies[-1], list):
            channels = replies[-1][2]
            (self.server.subscribers.add if channels else self.server.subscribers.discard)(self)

    def _answer_blocking(self, request: list[bytes]) -> bytes | blocking_reads.BlockedRead:
        question = blocking_reads.parse(request)
        if question is None:
            return self._run(request[0].upper(), request)
        question = blocking_reads.pin(self, question)
        reply = blocking_reads.ask(self, question)
        if reply is not None or question.timeout is None:
            return encode(reply, nil_arrays=True)
        self.blocked = blocking_reads.BlockedRead(self, question)
        self.blocked.begin()
        return self.blocked

    async def _wait(self, blocked: blocking_reads.BlockedRead) -> bytes:
        """Wait for the reply of a blocked read; nil when its time is up, nothing if the client left."""
        timeout = blocked.question.timeout
        try:
            with anyio.move_on_after(None if timeout is None or math.isinf(timeout) else timeout):
                while blocked.reply is None and not self.gone:
                    await blocked.signal.wait()
        finally:
            with self.server.lock:
                self.blocked = None
                blocked.end()
        return encode(None, nil_arrays=True) if blocked.reply is None else blocked.reply

    def push(self) -> None:
        """Send the messages that have arrived on the channels of this connection."""
        for message in self.session.take():
            self.stream.outgoing.write(encode(message))
