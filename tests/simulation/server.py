"""The server of a simulated world: `memory://` with the world's time, faults and a fingerprint."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from streamq import RedisBroker
from streamq.client import Command
from streamq.embedded import MemoryServer
from streamq.embedded.connection import Connection
from streamq.embedded.memory_stream import pipe
from streamq.embedded.resp import CommandError, encode
from streamq.queue.store import Store
from tests.simulation.dataset import QuickDataset
from tests.simulation.process import current

if TYPE_CHECKING:
    from tests.simulation.world import World

NAME = "simulation"
LONGEST_SECOND = 2000  # commands of one process within a second: more is a busy spin
_LOADING = encode(CommandError("LOADING Redis is loading the dataset in memory"))


class SimulatedConnection(Connection):
    """One connection; whose it is, and what it asked, goes into the fingerprint."""

    owner = ""

    def answer(self, request: list[bytes]) -> Any:
        server = self.server
        server.note(self, request)
        if server.loading and request[0].upper() not in (b"CLIENT", b"HELLO", b"AUTH"):
            return _LOADING
        return super().answer(request)


class SimulatedServer(MemoryServer):
    """One server for all worlds of a process, one after the other: `begin` empties it."""

    def __init__(self, *, name: str = "", clock: Callable[[], float] | None = None) -> None:
        self.world: World | None = None
        super().__init__(name=name, clock=self._time)
        self.dataset = QuickDataset(self._time)
        self.begin(None)

    def _time(self) -> float:
        return 0.0 if self.world is None else self.world.virtual.now()

    @classmethod
    def instance(cls) -> SimulatedServer:
        """Return the server that `memory://simulation` stands for in this process."""
        found = cls._named.get(NAME)
        if not isinstance(found, cls):
            found = cls._named[NAME] = cls(name=NAME)
        return found

    def begin(self, world: World | None) -> None:
        """Forget everything; this is the server of `world` now."""
        self.world = world
        self.dataset.reset()
        self.connections.clear()
        self.subscribers.clear()
        self.blocked.clear()
        self.to_retry.clear()
        self.calls.clear()
        self._ids = itertools.count(1)
        self.loading = 0
        self.commands = 0
        self.fingerprint = 0
        self.busiest = 0
        self._second = (0, 0)

    def note(self, connection: SimulatedConnection, request: list[bytes]) -> None:
        """Count a command, and add it to the fingerprint of the history."""
        self.commands += 1
        second = int(self._time())
        count = self._second[1] + 1 if self._second[0] == second else 1
        self._second = (second, count)
        self.busiest = max(self.busiest, count)
        text = b"%d %d %b" % (connection.id, int(self._time() * 1e6), b" ".join(request))
        self.fingerprint = zlib.crc32(text, self.fingerprint)

    def dialer(self, task_group: Any) -> Any:
        """Return what dials for the process that calls; the server runs in no process of its clients."""
        return self._dial

    async def _dial(self) -> Any:
        world, process = self.world, current.get()
        await anyio.lowlevel.checkpoint()
        if world is None or process is None or process.dead:
            raise ConnectionRefusedError("nobody is there")
        conditions = world.conditions(process)
        while not (conditions.sending.open and conditions.replies.open):
            await (conditions.replies if conditions.sending.open else conditions.sending).wait()
        if not conditions.dialling.open or world.refusing:
            raise ConnectionRefusedError(f"{process.name} is refused")
        client_end, server_end = pipe()
        connection = SimulatedConnection(self, next(self._ids), server_end)
        self.connections[connection.id] = connection
        world.soon(connection.serve)  # the server is suspended with none of its clients
        return world.cable(client_end, process, connection.id)

    # --- what befalls it -------------------------------------------------------------------------

    def refuse_writes(self, error: str) -> None:
        """Refuse writes with this error; with none if it is empty."""
        self.dataset.server.refusing = error

    def kill_connections(self) -> None:
        """Close every connection, as CLIENT KILL does."""
        for connection in list(self.connections.values()):
            connection.kill()

    def depth(self, tiers: Any) -> int:
        """Return how many tasks are anywhere but among the dead."""
        found = 0
        for keys in tiers:
            found += self.execute("XLEN", keys.stream) + self.execute("ZCARD", keys.delayed)
        return found

    def consumers(self, tiers: Any, group: str) -> set[str]:
        """Return the names of the consumers of a group."""
        found = set()
        for keys in tiers:
            rows = self.execute("XINFO", "CONSUMERS", keys.stream, group)
            found |= {row[1].decode() for row in rows} if isinstance(rows, list) else set()
        return found


class Looker(Store):
    """Reads a simulated server without a connection: what `final_state` needs of a broker."""

    def __init__(self, server: SimulatedServer, broker: RedisBroker) -> None:
        super().__init__(None, broker.keys, broker.tiers)  # type: ignore[arg-type]
        self.store = self
        self.dead_letters = broker.dead_letters
        self._server = server

    @property
    def __class__(self) -> type[RedisBroker]:  # type: ignore[override]
        """What `isinstance` asks for: it stands for a broker."""
        return RedisBroker

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        return [self._server.execute(*command) for command in commands]
