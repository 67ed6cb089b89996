"""A queue on `memory://` in virtual time, and what its tests ask of it.

What a test asserts is exact, but for `TICK`: the server counts in whole milliseconds, and whoever must
not come early waits half of one more.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio

from streamq import RedisBroker, Worker
from streamq.embedded import MemoryServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import ByteStream

    from streamq import Task
    from streamq.testing.clock import VirtualTime

TICK = 0.0015  # seconds

_numbers = itertools.count(1)


class OnTime:
    """Equal to a moment that is not early, and late by `TICK` at most."""

    def __init__(self, due: float) -> None:
        self.due = due

    def __repr__(self) -> str:
        return f"{self.due:.6f} (+{TICK})"

    def __eq__(self, at: object) -> bool:
        return isinstance(at, float) and self.due - 1e-6 <= at <= self.due + TICK

    __hash__ = None  # type: ignore[assignment]


class Cable:
    """What a program's connections to the server run through: it can be cut, and mended."""

    def __init__(self) -> None:
        self.is_cut = False
        self._streams: list[ByteStream] = []

    async def dial(self, dial: Any) -> ByteStream:
        """Open a connection, if it is not cut. Raises ConnectionRefusedError."""
        if self.is_cut:
            raise ConnectionRefusedError("the cable is cut")
        self._streams.append(stream := await dial())
        return stream

    def cut(self) -> None:
        """Have all connections end, and refuse new ones."""
        self.is_cut = True
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def mend(self) -> None:
        """Let new connections through."""
        self.is_cut = False


class WiredServer(MemoryServer):
    """A memory server whose clients are reached through the cable of whoever opened them."""

    cable: ContextVar[Cable] = ContextVar("cable")

    def dialer(self, task_group: Any) -> Any:
        dial, cable = super().dialer(task_group), self.cable.get(Cable())

        async def through() -> ByteStream:
            return await cable.dial(dial)

        return through


def chosen_name(consumer: str | bytes) -> str:
    """Return the name that a consumer was given: what each start adds is left out."""
    text = consumer if isinstance(consumer, str) else consumer.decode()
    return re.sub(r"-[0-9a-f]{12}$", "", text)


class Stage:
    """One server in virtual time, and the brokers and workers of one test."""

    def __init__(self, virtual: VirtualTime) -> None:
        self.virtual = virtual
        self.name = f"timed-{next(_numbers)}"
        self.server = WiredServer.named(self.name, clock=virtual.now)
        self.starts: list[tuple[str, float]] = []  # (what, seconds since the test began)
        self._began = virtual.elapsed()

    def close(self) -> None:
        MemoryServer.discard(self.name)

    @property
    def at(self) -> float:
        """The seconds since the test began."""
        return self.virtual.elapsed() - self._began

    def note(self, what: object) -> None:
        """Remember that something happened now."""
        self.starts.append((str(what), self.at))

    def times(self, what: object) -> list[float]:
        """Return when something happened."""
        return [at for name, at in self.starts if name == str(what)]

    def broker(self, **options: Any) -> RedisBroker:
        return RedisBroker(f"memory://{self.name}", clock=self.virtual.clock, **options)

    @contextlib.asynccontextmanager
    async def working(self, broker: RedisBroker, *tasks: Task[Any, Any], **options: Any) -> AsyncIterator[Worker]:
        """Run a worker beside the block; it is drained at its end."""
        worker = Worker(broker, tasks, **{"concurrency": 8, "seed": 1, **options})
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            yield worker
            worker.stop()

    @contextlib.asynccontextmanager
    async def mortal(self, *tasks: Task[Any, Any], **options: Any) -> AsyncIterator[Cable]:
        """Run a worker with a broker of its own; once its cable is cut nobody hears of it again."""
        cable = Cable()
        async with anyio.create_task_group() as group:
            ready = anyio.Event()

            async def live() -> None:
                WiredServer.cable.set(cable)
                async with self.broker() as broker, self.working(broker, *tasks, **options):
                    ready.set()
                    await anyio.sleep_forever()

            group.start_soon(live)
            await ready.wait()
            yield cable
            group.cancel_scope.cancel()

    # --- a look behind it ----------------------------------------------------------------------

    def command(self, *arguments: str | bytes | float) -> Any:
        """Send one command by hand; takes no time."""
        return self.server.execute(*arguments)

    def ttl(self, key: str) -> float:
        """Return the seconds that a key has left."""
        return self.command("PTTL", key) / 1000

    def exists(self, key: str) -> bool:
        return bool(self.command("EXISTS", key))

    def pending(self, stream: str = "queue:standard", group: str = "workers") -> dict[str, str]:
        """Return who holds which entry."""
        rows = self.command("XPENDING", stream, group, "-", "+", 1000)
        return {row[0].decode(): row[1].decode() for row in rows}

    def dead(self) -> list[dict[str, str]]:
        """Return the dead letters."""
        found = []
        for _, flat in self.command("XRANGE", "queue:dead", "-", "+"):
            texts = [part.decode() for part in flat]
            found.append(dict(zip(texts[::2], texts[1::2], strict=True)))
        return found
