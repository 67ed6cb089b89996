"""`embedded://`: start and end of a server process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hiredis
import pytest

from streamq.embedded import EmbeddedServer, open_embedded
from streamq.errors import BrokerUnavailableError
from tests.servers import available, fresh_server, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Starts a server, prints its pid and socket, and runs until its standard input ends.
OWNER = """
import sys
from streamq.embedded import open_embedded
server = open_embedded(sys.argv[1])
server.start()
print(server.pid, server.socket, flush=True)
sys.stdin.read()
server.stop()
"""


def ask(path: str, *command: str) -> object:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        connection.sendall(pack(*command))
        reader = hiredis.Reader()
        while (reply := reader.gets()) is False:
            reader.feed(connection.recv(65536))
        return reply


def pid_of(server: object) -> int:
    """Return the pid of a running server."""
    assert isinstance(server, EmbeddedServer)
    assert server.pid is not None
    return server.pid


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if sys.platform == "linux":
            return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def within(seconds: float, condition: Callable[[], bool]) -> float | None:
    """Wait for a condition. Return the seconds it took, or None if it took too long."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if condition():
            return time.monotonic() - start
        time.sleep(0.01)
    return None


@contextlib.contextmanager
def owner(url: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Start another process with an embedded server: the process, the pid of its server, the socket."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        try:
            pid, path = process.stdout.readline().split()
            yield process, int(pid), path
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def test_a_server_starts_answers_and_ends() -> None:
    """Its socket is in a directory of its own, which is removed at the end. It listens on no port."""
    server = open_embedded("embedded://")
    assert isinstance(server, EmbeddedServer)
    assert repr(server) == "<EmbeddedServer embedded:// stopped>"
    with server:
        pid, directory = server.pid, Path(server.socket).parent
        assert pid is not None
        assert ask(server.socket, "PING") == b"PONG"
        assert server.url == f"unix://{server.socket}"
        assert server.redis_cli == f"redis-cli -s {server.socket}"
        assert repr(server) == f"<EmbeddedServer embedded:// pid={pid} owned>"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert ask(server.socket, "CONFIG", "GET", "port") == [b"port", b"0"]
        assert ask(server.socket, "CONFIG", "GET", "appendonly") == [b"appendonly", b"no"]
        assert ask(server.socket, "CONFIG", "GET", "save") == [b"save", b""]
        server.start()  # does nothing
        assert server.pid == pid
    assert not alive(pid)
    assert not directory.exists()
    server.stop()  # does nothing


def test_a_start_is_quick() -> None:
    """A start takes about 0.1 s. The limit here allows for a busy machine."""
    start = time.monotonic()
    with EmbeddedServer():
        assert time.monotonic() - start < 3


async def test_async_use() -> None:
    """`async with` starts and ends it without blocking the loop. It outlives the thread that started it."""
    async with EmbeddedServer() as server:
        assert ask(server.socket, "PING") == b"PONG"
        pid = server.pid
        assert pid is not None
    assert not alive(pid)


def test_a_failed_start_gives_the_reason() -> None:
    """The error has the lines of the server's log, and nothing is left behind."""
    server = EmbeddedServer(arguments=["--no-such-option", "1"])
    with pytest.raises(BrokerUnavailableError, match="no-such-option"):
        server.start()
    assert not server.running
    with EmbeddedServer(arguments=["--maxmemory", "5mb"]) as limited:
        assert ask(limited.socket, "CONFIG", "GET", "maxmemory") == [b"maxmemory", b"5242880"]


def test_a_name_too_long_for_a_socket(tmp_path: Path) -> None:
    """A deep data directory, or a deep TMPDIR, does not keep the server from starting."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with EmbeddedServer(str(deep)) as server, EmbeddedServer(str(deep)) as joined:
        assert joined.socket == server.socket
        assert ask(server.socket, "SET", "a", "1") == b"OK"
        private = Path(server.socket).parent
        assert private != deep
    assert not private.exists()


@pytest.mark.slow
def test_a_killed_owner_takes_its_server_along() -> None:
    """After SIGKILL of the owner the server ends too, and its directory is removed."""
    with owner("embedded://") as (process, pid, path):
        assert alive(pid)
        process.kill()
        process.wait()
        assert within(5, lambda: not alive(pid)) is not None
        assert within(5, lambda: not Path(path).parent.exists()) is not None


def test_ctrl_c_is_for_the_owner() -> None:
    """The signals of a terminal go to a whole process group. The server is not in it."""
    with owner("embedded://") as (process, pid, path):
        assert os.getpgid(pid) != os.getpgid(process.pid)
        assert ask(path, "PING") == b"PONG"
    assert within(5, lambda: not alive(pid)) is not None


@pytest.mark.slow
def test_data_is_kept_in_a_directory(tmp_path: Path) -> None:
    """The data is there after a restart, also after the server was killed."""
    url = f"embedded://{tmp_path}/data"
    with open_embedded(url) as server:  # type: ignore[union-attr]
        ask(server.socket, "XADD", "q", "1-1", "f", "v")
    with open_embedded(url) as server:  # type: ignore[union-attr]
        assert ask(server.socket, "XLEN", "q") == 1
        ask(server.socket, "XADD", "q", "2-1", "f", "v")
        os.kill(pid_of(server), signal.SIGKILL)
    with open_embedded(url) as server:  # type: ignore[union-attr]
        assert ask(server.socket, "XLEN", "q") == 2


@pytest.mark.slow
def test_processes_share_a_directory(tmp_path: Path) -> None:
    """The second process joins the server of the first. When that ends, it can start its own."""
    server = EmbeddedServer(str(tmp_path))
    with owner(f"embedded://{tmp_path}") as (process, pid, path):
        server.start()
        assert (server.pid, server.socket) == (pid, path)
        assert repr(server).endswith("joined>")
        ask(server.socket, "SET", "a", "1")
        server.stop()
        assert alive(pid)  # another process owns it
        server.start()
        server.revive()  # does nothing
        assert server.pid == pid
        process.kill()
        process.wait()
        late = EmbeddedServer(str(tmp_path))
        late.start()  # it does not join the server that is about to end
        assert late.pid != pid
        assert repr(late).endswith("owned>")
        assert ask(late.socket, "GET", "a") == b"1"
    server.revive()
    server.stop()
    os.kill(pid_of(late), signal.SIGKILL)
    late.revive()
    assert ask(late.socket, "GET", "a") == b"1"
    assert late.socket == path
    late.stop()


@pytest.mark.slow
def test_many_start_at_once_and_one_wins(tmp_path: Path) -> None:
    """Processes that begin together agree on one server."""
    with contextlib.ExitStack() as stack:
        owners = [
            subprocess.Popen(
                [sys.executable, "-c", OWNER, f"embedded://{tmp_path}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in owners:
            stack.enter_context(process)
            stack.callback(process.stdin.close)  # type: ignore[union-attr]
        assert len({process.stdout.readline() for process in owners}) == 1  # type: ignore[union-attr]


@pytest.mark.slow
def test_nothing_is_left_behind() -> None:
    """No descriptor, child process or temporary directory is left."""
    with EmbeddedServer():
        pass
    descriptors = len(list(Path("/dev/fd").iterdir()))
    pids = []
    for _ in range(5):
        with EmbeddedServer() as server:
            pids.append(server.pid)
            mine = Path(server.socket).parent
        assert not mine.exists()
    assert len(list(Path("/dev/fd").iterdir())) == descriptors
    assert not any(alive(pid) for pid in pids if pid)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_the_servers_of_the_tests_can_fail(kind: str) -> None:
    """`fresh_server`: a kill and a restart lose all data, or none with an append-only file."""
    if not available(kind):  # type: ignore[arg-type]
        pytest.skip(f"no {kind}-server on PATH")
    for arguments, left in ((), ""), (("--appendonly", "yes", "--appendfsync", "always"), "1"):
        with fresh_server(kind, *arguments) as server:  # type: ignore[arg-type]
            assert server.cli("SET", "a", 1) == "OK"
            pid, path = server.pid, server.socket
            server.kill()
            assert not alive(pid)
            with pytest.raises(OSError, match=r"refused|No such file"):
                server.command("PING")
            server.restart()
            assert server.socket == path
            assert server.cli("GET", "a") == left
        assert not Path(server.directory).exists()
