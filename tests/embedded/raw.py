"""A client without streamq.client: hiredis parses the replies."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import hiredis

from tests.servers import pack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import ByteStream

    from streamq.embedded import MemoryServer


class RawClient:
    """One connection. An error reply is returned, not raised."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._reader = hiredis.Reader()

    async def __call__(self, *arguments: str | bytes | float) -> Any:
        await self.send(*arguments)
        return await self.receive()

    async def send(self, *arguments: str | bytes | float) -> None:
        await self.stream.send(pack(*arguments))

    async def receive(self) -> Any:
        while (reply := self._reader.gets()) is False:
            self._reader.feed(await self.stream.receive())
        return reply

    async def nothing_comes(self) -> bool:
        """Whether no reply is there once all tasks are blocked."""
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01):
            self._reader.feed(await self.stream.receive())
        return self._reader.gets() is False


class Site:
    """A server, and the task group that serves its connections."""

    def __init__(self, server: MemoryServer, task_group: anyio.abc.TaskGroup) -> None:
        self.server = server
        self.task_group = task_group
        self.dial = server.dialer(task_group)

    async def client(self) -> RawClient:
        return RawClient(await self.dial())

    async def blocked(self, *arguments: str | bytes | float) -> RawClient:
        """Return a client that has sent a blocking command and is blocked."""
        client = await self.client()
        waiting = len(self.server.blocked)
        await client.send(*arguments)
        while len(self.server.blocked) == waiting:
            await anyio.lowlevel.checkpoint()
        return client


@asynccontextmanager
async def site(server: MemoryServer) -> AsyncIterator[Site]:
    async with anyio.create_task_group() as task_group:
        yield Site(server, task_group)
        task_group.cancel_scope.cancel()
