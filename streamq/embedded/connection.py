"""One connection of a `memory://` server: reads requests, writes replies, waits where Redis waits.

The commands about connections and about the server itself are in `server_commands`. All
commands that touch data go to fakeredis through `dataset`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import anyio
from anyio.lowlevel import checkpoint

from streamq.embedded import blocking_commands, server_commands
from streamq.embedded.resp import CommandError, ProtocolError, RequestParser, encode
from streamq.embedded.server_state import BlockedClient, ConnectionState

if TYPE_CHECKING:
    from streamq.embedded.resp import Reply

# Commands whose empty reply is a null array, not a null bulk string.
_NIL_ARRAYS: Final = blocking_commands.BLOCKING | {b"EXEC", b"LMPOP", b"ZMPOP"}
_SUBSCRIBING: Final = frozenset(
    {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"}
)
_REQUESTS_PER_TURN: Final = 64  # a long pipeline must not hold up the other tasks of the loop


class Connection(ConnectionState):
    """The server's end of a connection. All methods but `serve` are called under the lock of the server."""

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
                answer = self.answer(request)
            outgoing.write(await self._wait(answer) if isinstance(answer, BlockedClient) else answer)
            if self.closed or self.quitting:
                return
            if not count % _REQUESTS_PER_TURN:
                await checkpoint()

    def answer_now(self, request: list[bytes]) -> bytes:
        """Carry out one request without waiting. A command that would block gets nil."""
        answer = self.answer(request)
        if isinstance(answer, BlockedClient):
            answer.end()
            return encode(None, nil_arrays=True)
        return answer

    def answer(self, request: list[bytes]) -> bytes | BlockedClient:
        """Carry out one request. Return its encoded reply, or the client that now waits."""
        server, name = self.server, request[0].upper()
        self.last_command = name.decode(errors="replace").lower()
        self.last_used_at = server.clock()
        server.calls[self.last_command] += 1
        try:
            if not self.in_transaction:
                own = server_commands.COMMANDS.get(name)
                if own is not None and (reply := own(self, request)) is not server_commands.PASS_ON:
                    return encode(reply)
                if name in blocking_commands.BLOCKING:
                    return self._answer_blocking(request)
            return self._run(name, request)
        except CommandError as error:
            return encode(error)
        finally:
            server.after_command()

    def _run(self, name: bytes, request: list[bytes]) -> bytes:
        replies = self.session.run(request)
        self._update_state(name, request, replies)
        return b"".join(encode(reply, nil_arrays=name in _NIL_ARRAYS) for reply in replies)

    def _update_state(self, name: bytes, request: list[bytes], replies: list[Reply]) -> None:
        """Note what a command changed about the connection itself."""
        if name == b"MULTI":
            self.in_transaction = self.in_transaction or not isinstance(replies[0], Exception)
        elif name in {b"EXEC", b"DISCARD", b"RESET"}:
            self.in_transaction = False
        elif name == b"SELECT" and not isinstance(replies[0], Exception) and not self.in_transaction:
            self.database = int(request[1])
        elif name in _SUBSCRIBING and replies and isinstance(replies[-1], list):
            channels = replies[-1][2]
            (self.server.subscribers.add if channels else self.server.subscribers.discard)(self)

    def _answer_blocking(self, request: list[bytes]) -> bytes | BlockedClient:
        command = blocking_commands.parse(request)
        if command is None:
            return self._run(request[0].upper(), request)
        command = blocking_commands.resolve_newest_ids(self.session, command)
        reply = blocking_commands.run_without_waiting(self.session, command)
        if reply is not None or command.timeout is None:
            return encode(reply, nil_arrays=True)
        self.blocked = BlockedClient(self, command)
        self.blocked.begin()
        return self.blocked

    async def _wait(self, blocked: BlockedClient) -> bytes:
        """Wait for the reply of a blocking command. Return nil after its timeout, or if the client left."""
        timeout = blocked.command.timeout
        try:
            with anyio.move_on_after(None if timeout is None or math.isinf(timeout) else timeout):
                while blocked.reply is None and not self.closed:
                    await blocked.signal.wait()
        finally:
            with self.server.lock:
                self.blocked = None
                blocked.end()
        return encode(None, nil_arrays=True) if blocked.reply is None else blocked.reply
