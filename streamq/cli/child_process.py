"""A worker process as its parent sees it: start it, read its messages, stop it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import IO, Any

import anyio
import anyio.abc
import orjson

from streamq.cli.worker_settings import Settings

KILL = 3  # the highest stop level: 1 is drain, 2 is stop now, 3 is SIGKILL


class WorkerProcess:
    """One child process that runs one worker. `stop_level` is the highest level that it was sent, 0 if none.

    `ready` is set once it reads, `ended` once the process has ended and its messages are read. `replacement` is the
    process that is to take its place; `replaced` is set once that reads.
    """

    def __init__(self, process: anyio.abc.Process, stream: anyio.abc.SocketStream) -> None:
        self.process = process
        self.stream = stream
        self.started = time.monotonic()
        self.stop_level = 0
        self.stale = False  # True once it was asked to stop because its source files changed
        self.start_took = 0.0  # seconds until it read
        self.ready = anyio.Event()
        self.ended = anyio.Event()
        self.replaced = anyio.Event()
        self.replacement: WorkerProcess | None = None

    def __repr__(self) -> str:
        return f"<WorkerProcess pid={self.process.pid} stop_level={self.stop_level}>"

    @classmethod
    async def start(cls, settings: Settings, *, stderr: IO[Any] | None = None) -> WorkerProcess:
        """Start a process and send it its settings. It inherits the stderr of this process unless one is given."""
        parent_end, child_end = socket.socketpair()
        with child_end:
            command = [sys.executable, "-m", "streamq.cli.child_main", str(child_end.fileno()), *settings.modules]
            process = await anyio.open_process(
                command, stdin=subprocess.DEVNULL, stdout=None, stderr=stderr, pass_fds=[child_end.fileno()]
            )
        stream = await anyio.abc.UNIXSocketStream.from_socket(parent_end)
        with contextlib.suppress(anyio.BrokenResourceError):  # it has ended already: its exit code says why
            await stream.send(settings.pack() + b"\n")
        return cls(process, stream)

    def note_ready(self) -> None:
        """Note that it reads."""
        self.start_took = time.monotonic() - self.started
        self.ready.set()

    async def send_stop(self, level: int) -> None:
        """Ask the process to stop: 1 drain, 2 now, 3 SIGKILL. A level that is not higher than the last does nothing."""
        if level <= self.stop_level or self.process.returncode is not None:
            return
        self.stop_level = level
        if level >= KILL:
            self.process.kill()
            return
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.stream.send(orjson.dumps({"stop": level}) + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the messages of the process (see `supervisor_channel`) until it ends."""
        buffer = b""
        while True:
            try:
                buffer += await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                yield orjson.loads(line)


async def any_of(*events: anyio.Event) -> None:
    """Wait until one of these events is set."""
    async with anyio.create_task_group() as group:
        for event in events:
            group.start_soon(cancel_after, event, group.cancel_scope)


async def cancel_after(event: anyio.Event, scope: anyio.CancelScope) -> None:
    """Cancel a scope when an event is set."""
    await event.wait()
    scope.cancel()


def exit_reason(exit_code: int) -> str:
    """Return how a process has ended, as the end of a sentence."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"
