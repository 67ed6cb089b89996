"""From the URL of a broker to an open client. Starts an embedded server first, where the URL names one.

It knows no keys and no commands: `store.py` speaks to the server through the client that is opened here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from streamq.client import Address, BackgroundTasks, Client

_EMBEDDED = ("memory", "embedded")


class ServerUrl:
    """A URL of a server, or of an embedded server that is still to be started.

    Raises ConfigurationError for a URL that cannot be used.
    """

    __slots__ = ("_address", "_scheme", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self._scheme = url.partition("://")[0]
        self._address = Address.parse("unix:///memory" if self._scheme in _EMBEDDED else url)

    def __repr__(self) -> str:
        """Return the URL without its password."""
        return self.url if self._scheme in _EMBEDDED else repr(self._address)

    @asynccontextmanager
    async def connect(
        self, connect_timeout: float, reply_timeout: float
    ) -> AsyncIterator[tuple[Client, anyio.abc.TaskGroup]]:
        """Open a client, and a task group for what uses it. Timeouts are in seconds.

        An error in the block leaves it as it is, and not inside an exception group.
        """
        failed: BaseException | None = None
        async with AsyncExitStack() as stack:
            # The tasks that use the client end before it, those that an embedded server runs on end after it.
            background = await stack.enter_async_context(BackgroundTasks())
            address, dial = await self._start(stack, background)
            client = Client(
                address, dial=dial, connect_timeout=connect_timeout, reply_timeout=reply_timeout, client_name="streamq"
            )
            await stack.enter_async_context(client)
            group = await stack.enter_async_context(_cancelled_at_the_end())
            try:
                yield client, group
            except BaseException as error:  # raised below: a task group would wrap it
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
                failed = error
        if failed is not None:
            raise failed

    async def _start(self, stack: AsyncExitStack, background: BackgroundTasks) -> tuple[Address, Any]:
        """Return the address, and the dialer if it is not that of sockets. Starts an embedded server."""
        if self._scheme == "memory":
            from streamq.embedded import MemoryServer  # noqa: PLC0415 - an extra

            name = self.url.partition("://")[2].strip("/")
            server = MemoryServer.named(name) if name else MemoryServer()
            return self._address, server.dialer(background)
        if self._scheme == "embedded":
            from streamq.embedded import EmbeddedServer  # noqa: PLC0415 - an extra

            embedded = EmbeddedServer(self.url.partition("://")[2] or None)
            await stack.enter_async_context(embedded)
            return Address.parse(embedded.url), None
        return self._address, None


@asynccontextmanager
async def _cancelled_at_the_end() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group whose tasks are cancelled when the block ends."""
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()
