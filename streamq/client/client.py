"""The client: redis-py's command methods, carried by one shared connection over anyio."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
from redis import exceptions
from redis.backoff import AbstractBackoff, ExponentialBackoff
from redis.commands import AsyncCoreCommands

from streamq.client.address import Address
from streamq.client.background_tasks import Shelter
from streamq.client.blocking_connection import BlockingConnection
from streamq.client.codec import Command, Encoder, pack, shape, words
from streamq.client.connection import Connector
from streamq.client.dial import Dial, dial_to
from streamq.client.multiplexer import Multiplexer
from streamq.client.pipeline import Pipeline
from streamq.client.scripts import Script, with_source
from streamq.client.server_features import QUESTIONS, ServerFacts, read_facts
from streamq.client.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from streamq.client.shared_connection import EventFactory, Link

DEFAULT_BACKOFF = ExponentialBackoff(cap=2.0, base=0.05)


class Client(AsyncCoreCommands):
    """Redis for any number of tasks at once, under asyncio and under trio.

    Connects at the first use inside `async with client:`, and again whenever the connection
    is lost. All callers share one connection, on which their commands are pipelined
    automatically; blocking reads and subscriptions have connections of their own.

    `connect_timeout` bounds, in seconds, a dial with its login, and the time that a caller
    waits for a lost connection to come back. `reply_timeout` is how long the server may be
    silent while it owes a reply. `backoff` gives the longest pause between failed dials, of
    which `jitter` (from 0 to 1) takes a part. Timeouts and the name in the address are used
    where no argument says otherwise.

    Raises ConfigurationError if the certificates of the address cannot be loaded.
    """

    _is_async_client: Literal[True] = True  # what redis-py's annotations go by
    _event_dispatcher: Any = None  # redis-py's own clients have one; its command methods do not use it

    def __init__(
        self,
        address: Address,
        *,
        dial: Dial | None = None,
        connect_timeout: float | None = None,
        reply_timeout: float | None = None,
        client_name: str | None = None,
        backoff: AbstractBackoff = DEFAULT_BACKOFF,
        decode_responses: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.address = address
        self.connect_timeout = connect_timeout or address.connect_timeout or 5.0
        self.reply_timeout = reply_timeout or address.reply_timeout or 10.0
        self._dial = dial or dial_to(address)
        self._client_name = client_name or address.client_name
        self._backoff = backoff
        self._jitter = jitter
        self._decode = decode_responses
        self._encoder = Encoder(decode_responses=decode_responses)
        self._mux: Multiplexer | None = None
        self._apart: Multiplexer | None = None
        self._tasks: Shelter | None = None
        self._closed = False
        self._links: set[Link] = set()  # of blocking connections
        self._facts: tuple[Link | None, ServerFacts] | None = None

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a client of a URL (see `Address.parse`) and the options of the class."""
        return cls(Address.parse(url), **options)

    def __repr__(self) -> str:
        state = "closed" if self._mux is None else self._mux.state
        return f"<Client {self.address} {state}>"

    # --- life ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._tasks is not None or self._closed:
            raise RuntimeError("a client is opened once; make another one")
        tasks = self._tasks = await Shelter().__aenter__()
        self._mux = Multiplexer(self.connector(), event_factory(), reply_timeout=self.reply_timeout)
        tasks.start_soon(self._mux.run, name="streamq client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks, mux = self._running()
        self._closed = True  # from here on nothing new starts
        mux.close()
        if self._apart is not None:
            self._apart.close()
        for link in tuple(self._links):
            link.close("the client was closed")
        return await tasks.__aexit__(kind, error, trace)

    def _running(self) -> tuple[Shelter, Multiplexer]:
        if self._tasks is None or self._mux is None or self._closed:
            raise exceptions.ConnectionError("the client is not open: use it inside 'async with client:'")
        return self._tasks, self._mux

    def connector(self) -> Connector:
        """Return what dials and logs in as this client does; one for each kind of connection."""
        return Connector(
            self.address,
            self._dial,
            timeout=self.connect_timeout,
            backoff=self._backoff,
            client_name=self._client_name,
            jitter=self._jitter,
        )

    # --- commands --------------------------------------------------------------------------

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their raw replies in order.

        A reply is bytes, int, None or a list of those; an error reply stands in its place as
        the exception that redis-py has for it (a `redis.exceptions.RedisError`) and is not
        raised. An EVALSHA of a registered `Script` that the server does not know is repeated
        with its source after the other commands ran; if the connection is lost then, that error
        stands in its place, because the others did run. MULTI and EXEC may stand in one call.

        Raises OutcomeUnknown if the commands may have reached the server and no reply came,
        redis.exceptions.ConnectionError (AuthenticationError, BusyLoadingError) if they were
        certainly not sent, and redis.exceptions.DataError if they cannot be sent.
        """
        mux = self._mux
        if mux is None:
            mux = self._running()[1]
        if not commands:
            return []
        replies = await mux.exchange(pack(commands), len(commands))
        for reply in replies:
            if reply.__class__ is exceptions.NoScriptError:
                return await self._with_sources(mux, commands, replies)
        return replies

    async def call_apart(self, commands: Sequence[Command]) -> list[Any]:
        """As `call`, over another connection: for what holds up all that comes after it, as WAIT does.

        Scripts are sent whole, so that all commands run once and in their order.
        """
        tasks, _ = self._running()
        if self._apart is None:
            self._apart = Multiplexer(self.connector(), event_factory(), reply_timeout=self.reply_timeout)
            tasks.start_soon(self._apart.run, name="streamq client, apart")
        whole = [with_source(command) or command for command in commands]
        return await self._apart.exchange(pack(whole), len(whole))

    async def command(self, *command: bytes | str | float) -> Any:  # type: ignore[override]
        """Send one command and return its raw reply; an error reply is raised.

        Raises as `call`. (redis-py's method of this name, COMMAND, is `command_info` here.)
        """
        (reply,) = await self.call((command,))
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command as redis-py's command methods build it; shape its reply as they say.

        Raises error replies, DataError for a command that a shared connection cannot carry
        (blocking ones, subscriptions, SELECT, ...), and as `call` for the connection.
        """
        mux = self._mux
        if mux is None:
            mux = self._running()[1]
        command, callback = words(args)
        replies = await mux.exchange(pack((command,)), 1)
        if replies[0].__class__ is exceptions.NoScriptError:
            replies = await self._with_sources(mux, (command,), replies)
        return shape(replies[0], callback, options, decode=self._decode)

    async def _with_sources(self, mux: Multiplexer, commands: Sequence[Command], replies: list[Any]) -> list[Any]:
        """Repeat what failed for want of a script that is registered here."""
        places: list[int] = []
        repeated: list[Command] = []
        for place, (command, reply) in enumerate(zip(commands, replies, strict=True)):
            if isinstance(reply, exceptions.NoScriptError) and (full := with_source(command)) is not None:
                places.append(place)
                repeated.append(full)
        if repeated:
            try:
                answers = await mux.exchange(pack(repeated), len(repeated))
            except exceptions.ConnectionError as error:  # the replies of the others are not lost with it
                answers = [error] * len(repeated)
            for place, answer in zip(places, answers, strict=True):
                replies[place] = answer
        return replies

    def get_encoder(self) -> Encoder:
        """Return what redis-py's command methods encode single values with."""
        return self._encoder

    def register_script(self, script: str) -> Script:  # type: ignore[override]
        """Return a `Script`; its source is registered for every client of the process."""
        return Script(script)

    def pipeline(self, transaction: bool = True) -> Pipeline:
        """Return a pipeline: commands queued by redis-py's methods, sent by `execute`."""
        return Pipeline(self.call, transaction=transaction, decode_responses=self._decode)

    # --- connections -----------------------------------------------------------------------

    async def reset(self) -> None:  # type: ignore[override]
        """Give up the current connection; the next use dials again.

        Replies that are outstanding get a second to arrive. After a READONLY reply this
        happens by itself: the server has become a replica.
        """
        await self._running()[1].reset()

    def blocking(self) -> BlockingConnection:
        """Return a connection for blocking reads; open it with `async with`."""
        return BlockingConnection(self)

    def subscriber(self) -> Subscriber:
        """Return a connection for pub/sub; open it with `async with`."""
        return Subscriber(self)

    async def facts(self) -> ServerFacts:
        """Return what the server is and can do; asked once for each connection.

        Raises as `call` for the connection.
        """
        mux = self._running()[1]
        if self._facts is not None and mux.link is not None and self._facts[0] is mux.link:
            return self._facts[1]
        facts = read_facts(await self.call(QUESTIONS))
        self._facts = (mux.link, facts)
        return facts

    def start(self, link: Link) -> None:
        """Run a link of a blocking connection among the tasks of this client."""
        tasks = self._running()[0]
        self._links.add(link)
        tasks.start_soon(self._carry, link, name="streamq blocking link")

    async def _carry(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            self._links.discard(link)

    @property
    def tasks(self) -> Shelter:
        """The task group of the open client. Raises ConnectionError if it is not open."""
        return self._running()[0]


def event_factory() -> EventFactory:
    """Return the cheapest way to make an anyio.Event here: the class that the backend uses."""
    return type(anyio.Event())
