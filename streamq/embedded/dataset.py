"""The data of one `memory://` server, kept by fakeredis. No other module calls fakeredis.

It uses public names (`FakeServer`, `FakeRedis`, `FakeRedisConnection`) and three others. The
rest works without each of them:

- `Database.add_watch(key, watcher)` of `FakeServer.dbs` reports a write to a key, also one by a
  script or a transaction.
- `redis_differences` has a socket whose stream commands reply as Redis does.
- `_Clock` replaces the module `time` in fakeredis: it has no other way to set the time.

Call everything here under the lock of the `MemoryServer` that owns the dataset.
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

_LUA_SETUP: Final = Path(__file__).with_name("lua_setup.lua")


class Watcher(Protocol):
    """An object that watches keys. `notify_watch` is called in the middle of the writing command."""

    def notify_watch(self) -> None: ...


class Dataset:
    """Keys and values, scripts and subscriptions.

    `clock` returns seconds since 1970. TIME, ids of entries, idle times and expiry follow it.

    Raises MissingExtraError if fakeredis is not installed.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        try:
            import fakeredis  # noqa: PLC0415 - the extra is imported when it is needed
            import lupa  # noqa: F401, PLC0415 - fakeredis has EVAL only if lupa is installed
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
        """Notify `watcher` of every write to `key`. The dataset holds it weakly."""
        self.server.dbs[database].add_watch(key, watcher)

    def unwatch(self, database: int, key: bytes, watcher: Watcher) -> None:
        """End the notifications that `watch` began."""
        self.server.dbs[database].remove_watch(key, watcher)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Yield (number, number of keys) of every database that is not empty."""
        for number, database in sorted(self.server.dbs.items()):
            if len(database):
                yield number, len(database)


class Session:
    """One connection of fakeredis, with its database, transaction and subscriptions."""

    def __init__(self, client: FakeRedis, clock: _Clock | None) -> None:
        client.response_callbacks.clear()
        self._client = client
        self._connection: Any = client.connection
        self._clock = clock

    def run(self, arguments: list[bytes]) -> list[Reply]:
        """Run a command and return its replies: one, or one for each channel of SUBSCRIBE."""
        if self._clock is None:
            return self._run(arguments)
        with self._clock:
            return self._run(arguments)

    def _run(self, arguments: list[bytes]) -> list[Reply]:
        try:
            self._connection.send_command(*arguments)
        except Exception as error:  # noqa: BLE001 - an exception of fakeredis becomes an error reply
            self._connection.disconnect()  # the parser of this connection is unusable after an exception
            self._connection.connect()
            return [CommandError(f"ERR {type(error).__name__}: {error}")]
        return self.take()

    def take(self) -> list[Reply]:
        """Return the replies, and the messages of its channels, that are ready for this connection."""
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
    """Return the corrected connection class, or `plain` if the inside of fakeredis has changed."""
    try:
        from streamq.embedded.redis_differences import CorrectedConnection  # noqa: PLC0415 - imports the extra
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"this fakeredis differs inside from the version that streamq knows ({error}): memory:// "
            "works without corrections, and leases may behave differently from a real server",
            RuntimeWarning,
            stacklevel=2,
        )
        return plain
    return CorrectedConnection


class _Clock:
    """Another clock for the commands of one dataset, through a replacement of the module `time`.

    The replacement is put into the modules of fakeredis when the first dataset gets a clock of
    its own. It returns the real time outside the `with` of a command, and so for all other users
    of fakeredis in this process.
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
    """Has all of the module `time`, and another `time.time`."""

    time = staticmethod(_Clock.now)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)
