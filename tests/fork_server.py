"""Starts processes as forks of one that has imported everything: those of scenarios, and `streamq` on a command line.

They take half a second to import what they run, as long as all that most of them do. So one process imports it, and
each of them is its child: it has no threads and no event loop, so that a fork of it is as a process of its own. What is
told of a child: its id, and how it ended. It ends as any program does, with its threads and what it has registered.

    python -m tests.fork_server FD MODULE...      (FD: a socket, which the tests have the other end of)
"""

from __future__ import annotations

import functools
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import orjson

ROOT = Path(__file__).parents[1]
_BACKENDS = ("anyio._backends._asyncio", "anyio._backends._trio")
# What is imported, not the modules that are to be `__main__`: for members of scenarios, and for commands.
MEMBERS = ("tests.faults.serving", *_BACKENDS)
COMMANDS = (
    "streamq.cli.entry", "streamq.cli.run_dlq", "streamq.cli.run_enqueue", "streamq.cli.worker", "streamq.doctor",
    "uvloop", *_BACKENDS,
)  # fmt: skip
_LONGEST = 1 << 17  # bytes of a message; the environment is part of it


class Forked:
    """A child of the fork server, as `subprocess.Popen` has it: `pid`, `stdin`, `wait`, `poll`, signals."""

    def __init__(self, pid: int, stdin: BinaryIO) -> None:
        self.pid = pid
        self.stdin = stdin
        self._code: int | None = None
        self._ended = threading.Event()

    def ended(self, code: int) -> None:
        """Note how it ended: its exit code, or the signal as a negative number."""
        self._code = code
        self._ended.set()

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return how."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
        assert self._code is not None
        return self._code

    def send_signal(self, number: int) -> None:
        """Signal it, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks. It ends when this one does."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), *modules],
                cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},  # for all of its children
            )  # fmt: skip
        self._asking = threading.Lock()
        self._started = threading.Condition()
        self._children: dict[int, Forked] = {}
        self._stdin: BinaryIO | None = None
        self._newest: Forked | None = None
        threading.Thread(target=self._listen, name="fork server", daemon=True).start()

    def start(self, command: Sequence[str], environment: dict[str, str], output: int, cwd: Path = ROOT) -> Forked:
        """Start `-m MODULE ARGUMENT...`; its standard input is a pipe, and what it prints goes to `output`."""
        _, module, *arguments = command
        told = orjson.dumps({"module": module, "arguments": arguments, "environment": environment, "folder": str(cwd)})
        reading, writing = os.pipe()
        with self._asking, self._started:
            self._stdin, self._newest = os.fdopen(writing, "wb", buffering=0), None
            socket.send_fds(self._socket, [told], [reading, output])
            os.close(reading)
            while self._newest is None:
                if not self._started.wait(60):
                    raise TimeoutError("the fork server does not answer")
            return self._newest

    def _listen(self) -> None:
        while told := self._socket.recv(_LONGEST):
            said = orjson.loads(told)
            with self._started:
                if "code" in said:
                    self._children.pop(said["pid"]).ended(said["code"])
                else:
                    assert self._stdin is not None
                    self._newest = self._children[said["pid"]] = Forked(said["pid"], self._stdin)
                    self._started.notify_all()


@functools.cache
def fork_server(modules: Sequence[str] = MEMBERS) -> ForkServer:
    """Return the one of this process that has imported these."""
    return ForkServer(modules)


# --- the process that forks ---------------------------------------------------------------------


def serve(harness: socket.socket) -> str:
    """Fork on request, and tell of each child that ended, until the harness has ended.

    Returns in each child what it is to run.
    """
    waking, wakes = os.pipe()
    for end in (waking, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    while True:
        ready, _, _ = select.select([harness, waking], [], [])
        if waking in ready:
            os.read(waking, 4096)
            for pid, code in iter(_next_ended, None):
                harness.send(orjson.dumps({"pid": pid, "code": code}))
        if harness in ready:
            told, fds, _, _ = socket.recv_fds(harness, _LONGEST, 2)
            if not told:
                os._exit(0)
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (harness.fileno(), waking, wakes):
                    os.close(end)
                return _be(orjson.loads(told), *fds)
            for fd in fds:
                os.close(fd)
            harness.send(orjson.dumps({"pid": pid}))


def _next_ended() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _be(told: dict[str, Any], stdin: int, output: int) -> str:
    """Become what was asked for, up to the running of its module: what Python does for `-m MODULE ARGUMENT...`."""
    for fd, standard in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(fd, standard)
    os.close(stdin)
    os.close(output)
    os.chdir(told["folder"])
    sys.path[0] = told["folder"]
    os.environ.clear()
    os.environ.update(told["environment"])
    random.seed()
    sys.argv[1:] = told["arguments"]
    return str(told["module"])


if __name__ == "__main__":
    for _name in sys.argv[2:]:
        import_module(_name)
    runpy.run_module(serve(socket.socket(fileno=int(sys.argv[1]))), run_name="__main__", alter_sys=True)
