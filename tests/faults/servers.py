"""Servers that can be broken in more ways than those of the other tests.

What can be done to one: killed and restarted with its append-only file or empty, frozen, filled
up, demoted to a replica, its disk filled, its connections killed. Only ever servers that a
scenario started itself.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import hiredis

from tests.servers import RealServer, pack

AOF: Final = ("--appendonly", "yes", "--appendfsync", "always")
AOF_EVERYSEC: Final = ("--appendonly", "yes", "--appendfsync", "everysec")

# A process that writes beyond RLIMIT_FSIZE gets SIGXFSZ and dies of it, unless it was told to
# ignore it, which exec keeps: then the write fails, as on a full disk.
_PORTS_TRIED: Final = 20
_WRAPPER: Final = "#!/bin/sh\ntrap '' XFSZ\nexec {binary} \"$@\"\n"


class Sabotage:
    """What can be done to a real server: `Sabotage(server).freeze()`."""

    def __init__(self, server: RealServer) -> None:
        self.server = server

    def __repr__(self) -> str:
        return f"<Sabotage of {self.server!r}>"

    # --- process ---------------------------------------------------------------------------------

    def kill(self) -> None:
        """End the process at once; nothing is to be had from it until `restart`."""
        self.server.kill()

    def restart(self) -> None:
        """Start the process again, with the data that it has on disk; end it before if it runs.

        Redis 7.0 leaves half a transaction at the end of its append-only file and carries that out at the
        next restart (see docs/guarantees.md, P1); writing the file anew is what its users have to do as well.
        """
        self.server.restart()
        if self.server.command("CONFIG", "GET", "appendonly")[1] == b"yes":
            self.server.command("BGREWRITEAOF")

    def restart_empty(self) -> None:
        """End the process if it runs, forget its data, and start it again."""
        with contextlib.suppress(RuntimeError):
            self.server.kill()
        for path in Path(self.server.directory).iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix in (".rdb", ".aof"):
                path.unlink()
        self.server.restart()

    def freeze(self) -> None:
        """Stop the process where it is: connections stay, nothing answers."""
        os.kill(self.server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.server.pid, signal.SIGCONT)

    def ended(self) -> bool:
        """Did the process end by itself?"""
        process = self.server._server._process
        return process is not None and process.poll() is not None

    def log(self) -> str:
        """Return what the server said since it was started."""
        return Path(self.server.directory, "server.log").read_text(errors="replace")

    # --- commands --------------------------------------------------------------------------------

    def commands(self, *commands: tuple[str | bytes | float, ...]) -> list[Any]:
        """Send commands in one piece; error replies stand in their places."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(self.server.socket)
            connection.sendall(b"".join(pack(*command) for command in commands))
            reader = hiredis.Reader()
            replies: list[Any] = []
            while len(replies) < len(commands):
                if (reply := reader.gets()) is not False:
                    replies.append(reply)
                    continue
                received = connection.recv(65536)
                if not received:
                    raise ConnectionError("the server closed the connection")
                reader.feed(received)
            return replies

    def info(self, section: str) -> dict[str, str]:
        """Return one section of INFO."""
        lines = self.server.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def configure(self, name: str, value: str | float) -> None:
        """Set one option of the running server. Raises RuntimeError if the server refuses."""
        reply = self.server.command("CONFIG", "SET", name, value)
        if reply != b"OK":
            raise RuntimeError(f"CONFIG SET {name} {value}: {reply}")

    # --- connections -----------------------------------------------------------------------------

    def clients(self) -> dict[int, dict[str, str]]:
        """Return what CLIENT LIST says of the connections of streamq, by id."""
        found = {}
        for line in self.server.command("CLIENT", "LIST").decode().splitlines():
            fields = dict(part.split("=", 1) for part in line.split(" ") if "=" in part)
            if fields.get("name") == "streamq":
                found[int(fields["id"])] = fields
        return found

    def kill_clients(self, kind: str) -> int:
        """End the connections of one type, `normal` or `pubsub`; return how many."""
        return int(self.server.command("CLIENT", "KILL", "TYPE", kind))

    def kill_client(self, uniform: random.Random) -> int:
        """End one connection of streamq by its id, drawn by `uniform`; return how many there were to end."""
        ids = sorted(self.clients())
        return int(self.server.command("CLIENT", "KILL", "ID", uniform.choice(ids))) if ids else 0

    # --- memory ----------------------------------------------------------------------------------

    def fill(self, spare: int = 0) -> None:
        """Leave only so many more bytes of memory: beyond it writes are refused with OOM."""
        used = int(self.info("memory")["used_memory"])
        self.configure("maxmemory-policy", "noeviction")
        self.configure("maxmemory", max(1, used + spare))

    def empty(self) -> None:
        """Lift the limit of memory."""
        self.configure("maxmemory", 0)

    # --- disk ------------------------------------------------------------------------------------

    def harden(self) -> None:
        """Restart the server so that a write beyond its limit fails and does not end it."""
        script = Path(self.server.directory, "start")
        if script.exists():
            return
        script.write_text(_WRAPPER.format(binary=self.server._server.binary))
        script.chmod(0o700)
        self.server._server.binary = str(script)
        self.server.restart()

    def fill_disk(self, spare: int = 0) -> None:
        """Leave only so many more bytes for the append-only file: then writing it fails."""
        files = Path(self.server.directory).rglob("*.aof")
        self._limit_files(max(1, spare + max((path.stat().st_size for path in files), default=0)))

    def empty_disk(self) -> None:
        """Let the append-only file grow again."""
        self._limit_files(None)

    def _limit_files(self, size: int | None) -> None:
        _, hard = resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))

    # --- replication -----------------------------------------------------------------------------

    def listen(self) -> int:
        """Have the server listen on a free port of 127.0.0.1 too, which replication needs; return it."""
        if port := int(self.server.command("CONFIG", "GET", "port")[1]):
            return port
        self.configure("bind", "127.0.0.1")
        for _ in range(_PORTS_TRIED):
            port = _free_port()
            if self.server.command("CONFIG", "SET", "port", port) == b"OK":
                return port
        raise RuntimeError(f"no free port for {self.server!r}")

    def follow(self, primary: RealServer, *, port: int | None = None) -> None:
        """Become a replica of another server: what is here is dropped for what is there.

        `port` is that of a proxy to it, if there is one.
        """
        self.commands(("REPLICAOF", "127.0.0.1", port or Sabotage(primary).listen()))

    def lead(self) -> None:
        """Become a primary, with the data that is here."""
        self.commands(("REPLICAOF", "NO", "ONE"))

    def in_step(self, primary: RealServer) -> bool:
        """Does this replica have everything that its primary has said so far?"""
        mine, theirs = self.info("replication"), Sabotage(primary).info("replication")
        linked = mine.get("master_link_status") == "up" and mine.get("master_sync_in_progress") == "0"
        return linked and mine["master_repl_offset"] == theirs["master_repl_offset"]

    def pause_writes(self, seconds: float) -> None:
        """Let every write wait, so that replicas catch up; `resume_writes` ends it early."""
        self.commands(("CLIENT", "PAUSE", round(seconds * 1000), "WRITE"))

    def resume_writes(self) -> None:
        """Let writes go on; on a server that is a replica by now they are refused."""
        self.commands(("CLIENT", "UNPAUSE"))


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until something holds. Raises TimeoutError that names `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


@contextlib.contextmanager
def replica_of(primary: RealServer, *arguments: str) -> Iterator[RealServer]:
    """Start a server that follows another and is in step with it."""
    for server in (primary, replica := RealServer(primary.kind, *arguments)):
        Sabotage(server).configure("repl-diskless-sync-delay", 0)
    with contextlib.closing(replica):
        Sabotage(replica).follow(primary)
        until(lambda: Sabotage(replica).in_step(primary), 20, "a replica in step")
        yield replica


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
