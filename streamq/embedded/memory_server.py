"""`memory://`: a Redis server inside the process.

Owns what the connections of one server share: the dataset and its lock, the readers that
are blocked, the subscribers, and the counts that INFO tells. What a single connection says
is in `connection`.

Fairness, and its cost: a blocked reader watches its keys, so a write marks exactly the
readers that wait for it; after the writing command those are tried again, first come first
served, as Redis does. A write nobody waits for costs one look at an empty list.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import hiredis

from streamq.embedded.connection import Connection
from streamq.embedded.dataset import Dataset
from streamq.embedded.pipe import pipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import ByteStream, TaskGroup

    from streamq.client import Shelter
    from streamq.embedded.blocking_reads import BlockedRead
    from streamq.embedded.pipe import MemoryStream


class Dial(Protocol):
    """Opens a connection."""

    async def __call__(self) -> ByteStream: ...


class MemoryServer:
    """One dataset and the connections to it. `MemoryServer()` is private, `named` is shared.

    Safe to use from several event loops in several threads. `clock` gives the time in seconds
    since the epoch. TIME, ids of entries, idle times and expiry follow it; the timeouts of
    blocking commands follow the clock of the event loop that waits.

    Raises MissingExtraError if the extra `embedded` is not installed.
    """

    _named: ClassVar[dict[str, MemoryServer]] = {}
    _named_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, *, name: str = "", clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.clock = clock
        self.lock = threading.Lock()
        self.dataset = Dataset(clock)
        self.connections: dict[int, Connection] = {}
        self.subscribers: set[Connection] = set()
        self.blocked: dict[BlockedRead, None] = {}  # in the order they came
        self.touched: list[BlockedRead] = []
        self.calls: Counter[str] = Counter()
        self.accepted = 0
        self.started_at = clock()
        self._ids = itertools.count(1)

    def __repr__(self) -> str:
        return f"<MemoryServer memory://{self.name} connections={len(self.connections)} blocked={len(self.blocked)}>"

    @classmethod
    def named(cls, name: str, *, clock: Callable[[], float] = time.time) -> Self:
        """Return the server of that name in this process; the first call makes it, with that `clock`.

        It keeps its data until the process ends or `discard` is called. The name "" stands
        for no name: a new, private server each time.
        """
        if not name:
            return cls(clock=clock)
        with cls._named_lock:
            if name not in cls._named:
                cls._named[name] = cls(name=name, clock=clock)
            server = cls._named[name]
        if not isinstance(server, cls):
            raise TypeError(f"memory://{name} is a {type(server).__name__}")
        return server

    @classmethod
    def discard(cls, name: str) -> None:
        """Forget the server of that name: the next `named` makes an empty one."""
        with cls._named_lock:
            cls._named.pop(name, None)

    @property
    def url(self) -> str:
        return f"memory://{self.name}"

    def dialer(self, task_group: TaskGroup | Shelter) -> Dial:
        """Return a function that opens connections, each served by a task in `task_group`.

        A connection ends when either end is closed or the task group is cancelled; its
        client then meets the end of the stream, as with a socket.
        """

        async def dial() -> ByteStream:
            client_end, server_end = pipe()
            connection = self._accept(server_end)
            try:
                task_group.start_soon(connection.serve, name=f"memory://{self.name} connection {connection.id}")
            except RuntimeError:  # the task group has ended
                with self.lock:
                    self.forget(connection)
                raise
            return client_end

        return dial

    def execute(self, *arguments: str | bytes | float) -> Any:
        """Carry out one command at once, without a connection, as a person would with redis-cli.

        Returns the reply as hiredis would give it, an error as `hiredis.ReplyError`. What
        would block finds nothing; whoever waits for what is written is woken. For tests,
        demonstrations and debuggers.
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

    def _accept(self, stream: MemoryStream) -> Connection:
        with self.lock:
            self.accepted += 1
            connection = Connection(self, next(self._ids), stream)
            self.connections[connection.id] = connection
            return connection

    # --- called by connections, under the lock ------------------------------------------

    def settle(self) -> None:
        """After a command: hand messages to subscribers, entries to the readers that wait for them."""
        for subscriber in list(self.subscribers):
            subscriber.push()
        while self.touched:
            touched, self.touched = set(self.touched), []
            for read in list(self.blocked):
                if read in touched:
                    read.retry()

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.pop(connection.id, None)
        self.subscribers.discard(connection)
        connection.session.close()
