"""The state of a `memory://` server and of its connections, which commands read and change.

A `ServerState` is what the connections of one server share, a `ConnectionState` is what the
server knows of one connection, and a `BlockedClient` is a connection that waits inside a
blocking command. Who reads requests and writes replies is in `connection`; who accepts
connections is in `memory_server`.

Everything here is called under the lock of the server.

Fairness, and its cost: a blocked client watches its keys, so a write marks exactly the clients
that wait for it. After the writing command those are tried again, in the order in which they
came, as Redis does. A write that nobody waits for costs one look at an empty list.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from streamq.embedded.blocking_commands import BlockingCommand, run_without_waiting
from streamq.embedded.dataset import Dataset
from streamq.embedded.memory_stream import Signal
from streamq.embedded.resp import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamq.embedded.memory_stream import MemoryStream
    from streamq.embedded.resp import Reply


class ServerState:
    """What the connections of one server share: data, blocked clients, subscribers, counts for INFO."""

    def __init__(self, *, name: str = "", clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.clock = clock
        self.lock = threading.Lock()
        self.dataset = Dataset(clock)
        self.connections: dict[int, ConnectionState] = {}
        self.subscribers: set[ConnectionState] = set()
        self.blocked: dict[BlockedClient, None] = {}  # in the order in which they came
        self.to_retry: list[BlockedClient] = []  # one of their keys was written to
        self.calls: Counter[str] = Counter()
        self.accepted = 0
        self.started_at = clock()

    @property
    def url(self) -> str:
        return f"memory://{self.name}"

    def after_command(self) -> None:
        """Send published messages to subscribers, and new entries to the clients that wait for them."""
        for subscriber in list(self.subscribers):
            subscriber.send_messages()
        while self.to_retry:
            to_retry, self.to_retry = set(self.to_retry), []
            for client in list(self.blocked):
                if client in to_retry:
                    client.retry()

    def forget(self, connection: ConnectionState) -> None:
        """Remove a connection that has ended."""
        self.connections.pop(connection.id, None)
        self.subscribers.discard(connection)
        connection.session.close()


class ConnectionState:
    """What the server knows of one connection."""

    def __init__(self, server: ServerState, number: int, stream: MemoryStream) -> None:
        self.server = server
        self.id: int = number
        self.stream = stream
        self.session = server.dataset.session()
        self.name: bytes = b""
        self.library: dict[str, bytes] = {}
        self.database = 0
        self.in_transaction = False
        self.last_command = ""
        self.connected_at = server.clock()
        self.last_used_at = self.connected_at
        self.quitting = False  # it ends after the reply
        self.blocked: BlockedClient | None = None
        stream.incoming.on_close = self._wake_blocked

    def __repr__(self) -> str:
        state = "closed" if self.closed else "blocked" if self.blocked else "open"
        return f"<{type(self).__name__} {self.id} of {self.server.url} {state}>"

    @property
    def closed(self) -> bool:
        """Whether the client has closed its end, or the server this end."""
        return self.stream.incoming.closed

    def _wake_blocked(self) -> None:
        """End the wait of a blocking command when the client closes its end."""
        blocked = self.blocked
        if blocked is not None:
            blocked.signal.set()

    def kill(self) -> None:
        """Close the connection from the server's side."""
        self.stream.close()

    def send_messages(self) -> None:
        """Send the messages that have arrived on the channels of this connection."""
        for message in self.session.take():
            self.stream.outgoing.write(encode(message))


class BlockedClient:
    """A connection that waits until one of the keys of its command is written to."""

    def __init__(self, connection: ConnectionState, command: BlockingCommand) -> None:
        self.connection = connection
        self.command = command
        self.reply: bytes | None = None
        self.signal = Signal()

    def notify_watch(self) -> None:
        """Mark this client for another try. The dataset calls this in the middle of the writing command."""
        self.connection.server.to_retry.append(self)

    def begin(self) -> None:
        """Join the end of the queue of blocked clients."""
        server = self.connection.server
        for key in self.command.keys:
            server.dataset.watch(self.connection.database, key, self)
        server.blocked[self] = None

    def end(self) -> None:
        """Leave the queue. May be called again."""
        server = self.connection.server
        if server.blocked.pop(self, self) is self:
            return
        for key in dict.fromkeys(self.command.keys):
            server.dataset.unwatch(self.connection.database, key, self)

    def retry(self) -> None:
        """Run the command again, unless its client has closed the connection: the reply would be lost."""
        if self.connection.closed or self.reply is not None:
            return
        reply = run_without_waiting(self.connection.session, self.command)
        if reply is not None:
            self.finish(reply)

    def finish(self, reply: Reply) -> None:
        """Give the waiting client its reply: entries, nil or an error."""
        self.reply = encode(reply, nil_arrays=True)
        self.end()
        self.signal.set()
