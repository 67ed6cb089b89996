"""Fixtures for the command line: commands run as processes, against real servers."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamq.cli.entry import _run
from tests.fork_server import COMMANDS, Forked, fork_server

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds; far longer than anything takes

APP = """
import os, time, threading
import anyio
from streamq import task

@task
async def send(to: str, n: int = 1):
    print(f"sent {to} {n}", flush=True)

@task
async def held(tag: str, gate: str):
    print(f"start {tag} {os.getpid()}", flush=True)
    while not os.path.exists(gate):
        await anyio.sleep(0.01)
    print(f"end {tag}", flush=True)

@task
def stuck(tag: str):
    print(f"start {tag}", flush=True)
    threading.Event().wait(60)

@task(retries=0)
async def broken():
    raise ValueError("no\\x1b[31m good")
"""


_ANEW = [("worker",), ("demo",)]
_DEAF = "TERM INT"
_MASKED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, map(int, sys.argv[1].split()))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Program:
    """A running command. Its output (stdout and stderr together) is read line by line.

    A command that soon ends is a fork of a process that has imported it (tests/fork_server.py). Workers, and what
    something is put before, are started anew.

    `deaf`: it begins with SIGTERM and SIGINT ignored, as the kernel does it for the first process of a container.
    `shell`: redirections. `ignored`: names of signals that are ignored then, `blocked`: signals that are blocked.
    `before`: a command that runs it.
    """

    def __init__(
        self, *arguments: str, cwd: Path, env: dict[str, str] | None = None, deaf: bool = False, shell: str = "",
        ignored: str = "", blocked: Sequence[int] = (), before: Sequence[str] = (),
    ) -> None:  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMQ_")}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})}
        redirecting = ["sh", "-c", f'exec "$@" {shell}', "sh"] if shell else []
        ignored = ignored or _DEAF * deaf
        ignoring = ["sh", "-c", f'trap "" {ignored}; exec "$@"', "sh"] if ignored else []
        masking = [sys.executable, "-c", _MASKED, " ".join(map(str, map(int, blocked)))] if blocked else []
        reading, writing = os.pipe()
        between = [*before, *ignoring, *redirecting, *masking]
        self.process: Forked | subprocess.Popen[bytes]
        anew = between or arguments[:1] in _ANEW or any(name.startswith("PYTHON") for name in env or ())
        if anew:
            self.process = subprocess.Popen(
                [*between, sys.executable, "-m", "streamq", *arguments],
                cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing,
            )  # fmt: skip
        else:
            self.process = fork_server(COMMANDS).start(["-m", "streamq", *arguments], environment, writing, cwd)
            self.process.stdin.close()
        os.close(writing)
        self.stdout = os.fdopen(reading, encoding="utf-8")
        self.seen: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def expect(self, text: str, patience: float = PATIENCE) -> str:
        """Read lines until one contains this text, and return it."""
        deadline = time.monotonic() + patience
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no {text!r} within {patience} s in:\n" + "\n".join(self.seen))
            if line is None:
                pytest.fail(f"ended without {text!r}:\n" + "\n".join(self.seen))
            self.seen.append(line)
            if text in line:
                return line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self, patience: float = PATIENCE) -> int:
        """Wait until the command ends, read the rest, and return the exit code."""
        code = self.process.wait(patience)
        self._reader.join(patience)  # to the end, unless a child still holds the pipe
        while not self._lines.empty():
            if (line := self._lines.get()) is not None:
                self.seen.append(line)
        return code

    @property
    def output(self) -> str:
        return "\n".join(self.seen)


@pytest.fixture
def url(shared_server) -> str:
    """An empty real server."""
    return shared_server("valkey").url


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with a module of tasks, `app`."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def start(app: Path) -> Iterator[Callable[..., Program]]:
    """Start commands in the folder of `app`. Kill those that still run at the end."""
    programs: list[Program] = []

    def started(*arguments: str, **options: Any) -> Program:
        programs.append(Program(*arguments, **{"cwd": app, **options}))
        return programs[-1]

    yield started
    for program in programs:
        if program.process.poll() is None:
            program.signal(signal.SIGKILL)
        program.ended()
        program.stdout.close()


@pytest.fixture
def streamq(start) -> Callable[..., tuple[int, str]]:
    """Run a command and return its exit code and output."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        program = start(*arguments, env=env)
        return program.ended(), program.output

    return run


@pytest.fixture
def here(url: str, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Run a command in this process, and return its exit code and its lines on stdout and stderr."""

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        code = _run([*arguments, *(() if "--url" in arguments else ("--url", url))])
        out, err = capfd.readouterr()
        assert all(char.isprintable() or char == "\n" for char in out + err), arguments
        return code, out.splitlines(), err.splitlines()

    return run
