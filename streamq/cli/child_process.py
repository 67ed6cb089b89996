"""A worker process of ours, on its leash: started, listened to, told to stop."""

from __future__ import annotations

import contextlib
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

KILL = 3  # how urgently to stop, beyond 1 drain and 2 now


class WorkerProcess:
    """One child process that runs one worker. `told` is how urgently it was told to stop."""

    def __init__(self, process: anyio.abc.Process, stream: anyio.abc.SocketStream) -> None:
        self.process = process
        self.stream = stream
        self.started = time.monotonic()
        self.told = 0
        self.replaced = False  # its code has changed, and it is on its way out

    def __repr__(self) -> str:
        return f"<WorkerProcess pid={self.process.pid} told={self.told}>"

    @classmethod
    async def start(cls, settings: Settings, *, stderr: IO[Any] | None = None) -> WorkerProcess:
        """Start a process and send it its settings. It inherits our stderr unless one is given."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "streamq.cli.child_main", str(theirs.fileno()), *settings.modules]
            process = await anyio.open_process(
                command, stdin=subprocess.DEVNULL, stdout=None, stderr=stderr, pass_fds=[theirs.fileno()]
            )
        stream = await anyio.abc.UNIXSocketStream.from_socket(ours)
        with contextlib.suppress(anyio.BrokenResourceError):  # it ended already: its exit code says why
            await stream.send(settings.pack() + b"\n")
        return cls(process, stream)

    async def tell(self, level: int) -> None:
        """Tell it to stop: 1 drain, 2 now, 3 by the kernel. Saying it again changes nothing."""
        if level <= self.told or self.process.returncode is not None:
            return
        self.told = level
        if level >= KILL:
            self.process.kill()
            return
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.stream.send(orjson.dumps({"stop": level}) + b"\n")

    async def words(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what it says (see `leash`) until it has ended."""
        buffer = b""
        while True:
            try:
                buffer += await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                yield orjson.loads(line)
