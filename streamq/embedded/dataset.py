"""The data of one `memory://` server, and the only module that drives fakeredis.

Goes through its public names (`FakeServer`, `FakeRedis`, `FakeRedisConnection`), with three
additions, each of which is optional in the sense that the rest works without it:

- `Database.add_watch(key, watcher)` of `FakeServer.dbs`: how a write to a key is noticed,
  also one that a script or a transaction made.
- `corrections`: a socket whose stream commands answer as Redis does.
- `_Clock`: fakeredis asks the module `time` for the time and offers no other way in.

Nothing here is safe to call without the lock of the `MemoryServer` that owns the dataset.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from streamq.embedded.resp import CommandError
from streamq.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fakeredis import FakeRedis, FakeServer

    from streamq.embedded.resp import Reply

_LUA_SETUP: Final = Path(__file__).with_name("redis.lua")


class Watcher(Protocol):
    """Told, in the middle of the writing command, that a key it watches was modified."""

    def notify_watch(self) -> None: ...


class Dataset:
    """Keys and values, scripts, and the registry of subscribers.

    `clock` gives the time in seconds since the epoch: the server's TIME, ids of entries, idle
    times and expiry follow it. Raises MissingExtraError if fakeredis is not installed.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        try:
            import fakeredis  # noqa: PLC0415 - the extra is imported when it is needed
            import lupa  # noqa: F401, PLC0415 - fakeredis offers EVAL only where it is found
        except ImportError as error:
            raise MissingExtraError("memory://", "embedded") from error
        self._fakeredis = fakeredis
        self._connection_class = _connection_class(fakeredis.FakeRedisConnection)
        self.clock: Final = None if clock is time.time else _Clock.install(clock)
        self.server: FakeServer = fakeredis.FakeServer(version=(7, 2), server_type="valkey")
        setup = self.session()
        (done,) = setup.run([b"EVAL", _LUA_SETUP.read_bytes(), b"0"])
        if done != 1:
            raise RuntimeError(f"{_LUA_SETUP.name} failed: {done!r}")
        setup.run([b"SCRIPT", b"FLUSH"])
        setup.close()

    def session(self) -> Session:
        """Open the server side of one connection."""
        return Session(
            self._fakeredis.FakeRedis(
                server=self.server,
                protocol=2,
                single_connection_client=True,
                connection_class=self._connection_class,
            ),
            self.clock,
        )

    def watch(self, database: int, key: bytes, watcher: Watcher) -> None:
        """Have `watcher` told of every write to `key`. It is held weakly."""
        self.server.dbs[database].add_watch(key, watcher)

    def unwatch(self, database: int, key: bytes, watcher: Watcher) -> None:
        """End what `watch` began."""
        self.server.dbs[database].remove_watch(key, watcher)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Yield (number, keys) of every database that is not empty."""
        for number, database in sorted(self.server.dbs.items()):
            if len(database):
                yield number, len(database)


class Session:
    """What fakeredis knows of one connection: its database, transaction and subscriptions."""

    def __init__(self, client: FakeRedis, clock: _Clock | None) -> None:
        client.response_callbacks.clear()
        self._client = client
        self._connection: Any = client.connection
        self._clock = clock

    def run(self, arguments: list[bytes]) -> list[Reply]:
        """Carry out a command and return its replies: one, or one per channel of SUBSCRIBE."""
        if self._clock is None:
            return self._run(arguments)
        with self._clock:
            return self._run(arguments)

    def _run(self, arguments: list[bytes]) -> list[Reply]:
        try:
            self._connection.send_command(*arguments)
        except Exception as error:  # noqa: BLE001 - a fault of fakeredis is the reply, not our end
            self._connection.disconnect()  # its parser has ended
            self._connection.connect()
            return [CommandError(f"ERR {type(error).__name__}: {error}")]
        return self.take()

    def take(self) -> list[Reply]:
        """Return what lies ready for this connection: replies, or messages of its channels."""
        replies: list[Reply] = []
        while self._connection.can_read(timeout=0):
            try:
                replies.append(self._connection.read_response(disable_decoding=True))
            except Exception as error:  # noqa: BLE001 - every error of redis-py is an error reply
                replies.append(error)
        return replies

    def close(self) -> None:
        """Forget the connection, its subscriptions and its transaction."""
        self._client.close()
        self._connection.disconnect()


def _connection_class(plain: type[Any]) -> type[Any]:
    """The connection with our corrections, or the plain one under a fakeredis that has changed inside."""
    try:
        from streamq.embedded.redis_differences import CorrectedConnection  # noqa: PLC0415 - imports the extra
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"this fakeredis differs inside from the one that streamq knows ({error}): memory:// "
            "runs without corrections, and leases may not behave as on a real server",
            RuntimeWarning,
            stacklevel=2,
        )
        return plain
    return CorrectedConnection


class _Clock:
    """Another time for the commands of one dataset, through a stand-in for the module `time`.

    Put in place of `time` in the modules of fakeredis, and only once somebody wants a clock
    of his own. Outside the `with` of a command, and for all other users of fakeredis in this
    process, the stand-in tells the real time.
    """

    _current = threading.local()

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._current.clock = self._clock

    def __exit__(self, *_: object) -> None:
        self._current.clock = None

    @classmethod
    def install(cls, clock: Callable[[], float]) -> _Clock:
        for name, module in list(sys.modules.items()):
            if name.startswith("fakeredis") and getattr(module, "time", None) is time:
                module.time = _TimeModule()  # type: ignore[attr-defined]
        return cls(clock)

    @classmethod
    def now(cls) -> float:
        clock: Callable[[], float] | None = getattr(cls._current, "clock", None)
        return time.time() if clock is None else clock()


class _TimeModule:
    """Looks like the module `time`, but for `time.time`."""

    time = staticmethod(_Clock.now)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)
