"""`memory://`: a Redis server inside the process.

Owns the servers of this process by name, and accepts connections. What the connections of one
server share is in `server_state`; how a connection answers is in `connection`.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import hiredis

from streamq.embedded.connection import Connection
from streamq.embedded.memory_stream import pipe
from streamq.embedded.server_state import ServerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import ByteStream, TaskGroup

    from streamq.client import BackgroundTasks
    from streamq.embedded.memory_stream import MemoryStream


class Dial(Protocol):
    """Opens one connection to a server."""

    async def __call__(self) -> ByteStream: ...


class MemoryServer(ServerState):
    """A dataset and its connections. `MemoryServer()` is private, `MemoryServer.named()` is shared.

    Safe to use from several event loops in several threads. `clock` returns seconds since 1970.
    TIME, ids of entries, idle times and expiry follow it. The timeouts of blocking commands follow
    the clock of the event loop that waits.

    Raises MissingExtraError if the extra `embedded` is not installed.
    """

    _named: ClassVar[dict[str, MemoryServer]] = {}
    _named_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, *, name: str = "", clock: Callable[[], float] = time.time) -> None:
        super().__init__(name=name, clock=clock)
        self._ids = itertools.count(1)

    def __repr__(self) -> str:
        return f"<MemoryServer memory://{self.name} connections={len(self.connections)} blocked={len(self.blocked)}>"

    @classmethod
    def named(cls, name: str, *, clock: Callable[[], float] = time.time) -> Self:
        """Return the server of that name in this process. The first call makes it, with `clock`.

        It keeps its data until the process ends or `discard` is called. The empty name makes a
        new, private server each time. Raises TypeError if the name belongs to another class.
        """
        if not name:
            return cls(clock=clock)
        with cls._named_lock:
            if name not in cls._named:
                cls._named[name] = cls(name=name, clock=clock)
            server = cls._named[name]
        if not isinstance(server, cls):
            raise TypeError(f"memory://{name} is a {type(server).__name__}, not a {cls.__name__}; use another name")
        return server

    @classmethod
    def discard(cls, name: str) -> None:
        """Forget the server of that name. The next `named` makes an empty one."""
        with cls._named_lock:
            cls._named.pop(name, None)

    def dialer(self, task_group: TaskGroup | BackgroundTasks) -> Dial:
        """Return a function that opens connections, each served by a task in `task_group`.

        A connection ends when either end is closed or the task group is cancelled. The client
        then gets the end of the stream, as with a socket.
        """

        async def dial() -> ByteStream:
            client_end, server_end = pipe()
            connection = self.accept(server_end)
            try:
                task_group.start_soon(connection.serve, name=f"memory://{self.name} connection {connection.id}")
            except RuntimeError:  # the task group has ended
                with self.lock:
                    self.forget(connection)
                raise
            return client_end

        return dial

    def execute(self, *arguments: str | bytes | float) -> Any:
        """Run one command at once, without a connection, as with redis-cli.

        Returns the reply as hiredis does, an error as `hiredis.ReplyError`. A command that would
        block returns nil. A write wakes the clients that wait for it. For tests, demonstrations
        and debuggers.
        """
        request = [part if isinstance(part, bytes) else str(part).encode() for part in arguments]
        reader = hiredis.Reader()
        with self.lock:
            connection = Connection(self, 0, pipe()[1])
            try:
                reader.feed(connection.answer_now(request))
            finally:
                self.forget(connection)
        return reader.gets()

    def accept(self, stream: MemoryStream) -> Connection:
        """Take a connection, whose server's end this is."""
        with self.lock:
            self.accepted += 1
            connection = Connection(self, next(self._ids), stream)
            self.connections[connection.id] = connection
            return connection
