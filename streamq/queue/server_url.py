"""From the URL of a broker to an open client. Starts an embedded server first, where the URL names one.

It knows no keys and no commands: `store.py` speaks to the server through the client that is opened here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio.abc

from streamq.client import Address, BackgroundTasks, Client, OwnedGroup, Resources
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from streamq.client.sync_client import SyncClient

_EMBEDDED = ("memory", "embedded")


class ServerUrl:
    """A URL of a server, or of an embedded server that is still to be started.

    Raises ConfigurationError for a URL that cannot be used.
    """

    __slots__ = ("_address", "_scheme", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self._scheme = url.partition("://")[0].lower()
        if self._scheme in _EMBEDDED:
            _check_embedded(self._scheme, url)
            self._address = Address("memory", path=url.partition("://")[2])  # that of `embedded` is known once it runs
        else:
            self._address = Address.parse(url)

    def __repr__(self) -> str:
        """Return the URL without its password."""
        return self.url if self._scheme in _EMBEDDED else str(self._address)

    async def connect(
        self, resources: Resources, connect_timeout: float | None, reply_timeout: float | None
    ) -> tuple[Client, anyio.abc.TaskGroup]:
        """Open a client, and a task group for what uses it, among `resources`.

        Timeouts are in seconds. None: as the URL says, else the client's default.
        """
        # The tasks that use the client end before it, those that an embedded server runs on end after it.
        background = await resources.open(BackgroundTasks())
        address, dial = await self._start(resources, background)
        client = Client(
            address, dial=dial, connect_timeout=connect_timeout, reply_timeout=reply_timeout,
            client_name=address.client_name or "streamq",
        )  # fmt: skip
        await resources.open(client)
        return client, await resources.open(OwnedGroup())

    def connect_sync(self, connect_timeout: float | None, reply_timeout: float | None) -> tuple[SyncClient, Any]:
        """Return a client that blocks, and the embedded server that was started for it, None if there is none.

        Timeouts as for `connect`.
        """
        from streamq.client.sync_client import SyncClient  # noqa: PLC0415 - programs with an event loop need it not

        address, dial, server = self._address, None, None
        if self._scheme == "memory":
            from streamq.embedded.sync_stream import SyncMemoryDial  # noqa: PLC0415 - an extra

            dial = SyncMemoryDial(self._memory_server())
        elif self._scheme == "embedded":
            from streamq.embedded import EmbeddedServer  # noqa: PLC0415 - an extra

            server = EmbeddedServer(self.url.partition("://")[2] or None)
            server.start()
            address = Address.parse(server.url)
        client = SyncClient(
            address, dial=dial, connect_timeout=connect_timeout, reply_timeout=reply_timeout,
            client_name=address.client_name or "streamq",
        )  # fmt: skip
        return client, server

    def _memory_server(self) -> Any:
        from streamq.embedded import MemoryServer  # noqa: PLC0415 - an extra

        name = self.url.partition("://")[2].strip("/")
        return MemoryServer.named(name) if name else MemoryServer()

    async def _start(self, resources: Resources, background: BackgroundTasks) -> tuple[Address, Any]:
        """Return the address, and the dialer if it is not that of sockets. Starts an embedded server."""
        if self._scheme == "memory":
            return self._address, self._memory_server().dialer(background)
        if self._scheme == "embedded":
            from streamq.embedded import EmbeddedServer  # noqa: PLC0415 - an extra

            embedded = EmbeddedServer(self.url.partition("://")[2] or None)
            await resources.open(embedded)
            return Address.parse(embedded.url), None
        return self._address, None


def _check_embedded(scheme: str, url: str) -> None:
    """Raise ConfigurationError for what the URL of an embedded server cannot have. It is not shown."""
    rest = url.partition("://")[2]
    if any(char in rest for char in "?#@") or not rest.isprintable():
        raise ConfigurationError(
            f"the URL {scheme}://*** cannot be used: an embedded server has no options, user or password; "
            f"write {'memory:// or memory://name' if scheme == 'memory' else 'embedded:// or embedded:///path/to/data'}"
        )
