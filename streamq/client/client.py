"""The client: redis-py's command methods over one shared connection, on anyio.

It puts the parts of this folder together: the multiplexer for commands, and connections of their
own for blocking reads and for pub/sub.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
from redis import exceptions
from redis.backoff import AbstractBackoff, ExponentialBackoff
from redis.commands import AsyncCoreCommands

from streamq.client.address import Address
from streamq.client.background_tasks import BackgroundTasks
from streamq.client.blocking_connection import BlockingConnection
from streamq.client.connection import Connector
from streamq.client.dial import Dial, dial_to
from streamq.client.multiplexer import Multiplexer
from streamq.client.owner import Owner
from streamq.client.pipeline import Pipeline
from streamq.client.resp_codec import Command, Encoder, apply_callback, build_command, check_shareable, pack
from streamq.client.scripts import Script, with_source
from streamq.client.server_features import FEATURE_QUERIES, ServerFeatures, read_features
from streamq.client.subscriber import Subscriber
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from streamq.client.send_queue import EventFactory
    from streamq.client.shared_connection import SharedConnection

DEFAULT_BACKOFF = ExponentialBackoff(cap=2.0, base=0.05)


class Client(AsyncCoreCommands):
    """A Redis client for any number of tasks at once, under asyncio and under trio.

    It connects at the first use inside `async with client:`, and again whenever the connection
    is lost. All callers share one connection, and their commands are pipelined automatically.
    Blocking reads and subscriptions have connections of their own.

    `connect_timeout` (seconds) bounds a dial with its login. It also bounds the time that a
    caller waits for a lost connection to come back. `reply_timeout` (seconds) is how long the
    server may be silent while it owes a reply. `backoff` gives the longest pause between failed
    dials; the pause is that times `jitter()`, a random number from 0 to 1. Without an argument,
    the timeouts and the client name of the address apply.

    Raises ConfigurationError if the certificates of the address cannot be loaded, and for a timeout below 0.001.
    """

    _is_async_client: Literal[True] = True  # redis-py's annotations depend on it
    _event_dispatcher: Any = None  # redis-py's own clients have one; its command methods do not use it

    _pack = staticmethod(pack)

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
        self.connect_timeout = _seconds("connect_timeout", connect_timeout, address.connect_timeout, 5.0)
        self.reply_timeout = _seconds("reply_timeout", reply_timeout, address.reply_timeout, 10.0)
        self._dial = dial or dial_to(address)
        self._client_name = client_name or address.client_name
        self._backoff = backoff
        self._jitter = jitter
        self._decode = decode_responses
        self._encoder = Encoder(decode_responses=decode_responses)
        self._multiplexer: Multiplexer | None = None
        self._second: Multiplexer | None = None  # of `call_on_second_connection`
        self._owner: Owner | None = None
        self._tasks: BackgroundTasks | None = None
        self._closed = False
        self._blocking_connections: dict[SharedConnection, None] = {}  # in the order in which they were opened
        self._features: tuple[SharedConnection | None, ServerFeatures] | None = None

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a client from a URL (see `Address.parse`) and the options of the class."""
        return cls(Address.parse(url), **options)

    def __repr__(self) -> str:
        state = "closed" if self._multiplexer is None else self._multiplexer.state
        return f"<Client {self.address} {state}>"

    # --- open and close ------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._tasks is not None or self._closed:
            raise RuntimeError("this client was opened before; make another one")
        self._owner = owner = Owner(f"the broker or client of {self.address}")
        tasks = self._tasks = await BackgroundTasks().__aenter__()
        self._multiplexer = Multiplexer(self.connector(), owner, event_factory(), reply_timeout=self.reply_timeout)
        tasks.start_soon(self._multiplexer.run, name="streamq client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks is None or self._multiplexer is None or self._closed:
            return
        if not self.owner.was_forked:  # a child leaves its copy of the block; it has no socket of the parent
            self.owner.check()
        self._closed = True  # nothing new starts from here on
        self._multiplexer.close()
        if self._second is not None:
            self._second.close()
        for connection in tuple(self._blocking_connections):
            connection.close("the client was closed")
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            for connection in tuple(self._blocking_connections):  # those whose task never began
                await connection.aclose()

    def _running(self) -> tuple[BackgroundTasks, Multiplexer]:
        if self._tasks is None or self._multiplexer is None or self._closed:
            raise exceptions.ConnectionError("the client is not open: use it inside 'async with client:'")
        self.owner.check()
        return self._tasks, self._multiplexer

    def connector(self) -> Connector:
        """Return a new Connector with the settings of this client. Each kind of connection has its own."""
        return Connector(
            self.address,
            self._dial,
            timeout=self.connect_timeout,
            backoff=self._backoff,
            client_name=self._client_name,
            jitter=self._jitter,
        )

    # --- commands ------------------------------------------------------------------------------

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their raw replies in order.

        A reply is bytes, int, None or a list of those. An error reply is not raised: the list
        has the exception that redis-py has for it (a `redis.exceptions.RedisError`). If the
        server does not know the script of an EVALSHA, the command is repeated with the source of
        the registered `Script` after the other commands ran. If the connection is lost then, the
        list has that error in its place, because the other commands did run. MULTI and EXEC may
        be in one call.

        Raises OutcomeUnknown if the commands may have reached the server and no reply came,
        redis.exceptions.ConnectionError (AuthenticationError, BusyLoadingError) if they were
        certainly not sent, redis.exceptions.DataError if they cannot be sent, and WrongLoopError if
        this client was opened in another thread, event loop or process.
        """
        multiplexer = self._multiplexer
        if multiplexer is None:
            multiplexer = self._running()[1]
        if not commands:
            return []
        replies = await multiplexer.exchange(self._pack(commands), len(commands))
        for reply in replies:
            if reply.__class__ is exceptions.NoScriptError:
                return await self._with_sources(multiplexer, commands, replies)
        return replies

    async def call_on_second_connection(self, commands: Sequence[Command]) -> list[Any]:
        """As `call`, over a second shared connection: for commands that delay all later ones, such as WAIT.

        Scripts are sent with their source, so that all commands run once and in order.
        """
        tasks, _ = self._running()
        if self._second is None:
            owner = self.owner
            self._second = Multiplexer(self.connector(), owner, event_factory(), reply_timeout=self.reply_timeout)
            tasks.start_soon(self._second.run, name="streamq client, second connection")
        whole = [with_source(command) or command for command in commands]
        return await self._second.exchange(pack(whole), len(whole))

    async def command(self, *command: bytes | str | float) -> Any:  # type: ignore[override]
        """Send one command and return its raw reply. Raises error replies.

        Raises DataError for a command that a shared connection cannot carry (blocking commands, subscriptions, SELECT,
        MULTI, ...). Raises as `call` otherwise. (redis-py's method of this name, COMMAND, is `command_info` here.)
        """
        check_shareable(command)
        (reply,) = await self.call((command,))
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command that redis-py's command methods built, and return its reply as they promise it.

        Raises error replies. Raises DataError for a command that a shared connection cannot
        carry (blocking commands, subscriptions, SELECT, ...). Raises as `call` otherwise.
        """
        multiplexer = self._multiplexer
        if multiplexer is None:
            multiplexer = self._running()[1]
        command, callback = build_command(args)
        replies = await multiplexer.exchange(self._pack((command,)), 1)
        if replies[0].__class__ is exceptions.NoScriptError:
            replies = await self._with_sources(multiplexer, (command,), replies)
        return apply_callback(replies[0], callback, options, decode=self._decode)

    async def _with_sources(
        self, multiplexer: Multiplexer, commands: Sequence[Command], replies: list[Any]
    ) -> list[Any]:
        """Repeat the commands whose script the server does not know, if the script is registered here."""
        places: list[int] = []
        repeated: list[Command] = []
        for place, (command, reply) in enumerate(zip(commands, replies, strict=True)):
            if isinstance(reply, exceptions.NoScriptError) and (full := with_source(command)) is not None:
                places.append(place)
                repeated.append(full)
        if repeated:
            try:
                answers = await multiplexer.exchange(self._pack(repeated), len(repeated))
            except exceptions.ConnectionError as error:  # the replies of the other commands are not lost with it
                answers = [error] * len(repeated)
            for place, answer in zip(places, answers, strict=True):
                replies[place] = answer
        return replies

    def get_encoder(self) -> Encoder:
        """Return the encoder that redis-py's command methods use for single values."""
        return self._encoder

    def register_script(self, script: str) -> Script:  # type: ignore[override]
        """Return a `Script`. Its source is registered for every client of the process."""
        return Script(script)

    def pipeline(self, transaction: bool = True) -> Pipeline:
        """Return a pipeline: redis-py's methods queue commands there, and `execute` sends them."""
        return Pipeline(self.call, transaction=transaction, decode_responses=self._decode)

    # --- connections ---------------------------------------------------------------------------

    @property
    def owner(self) -> Owner:
        """The process, thread and event loop in which this client was opened. Raises ConnectionError before that."""
        if self._owner is None:
            raise exceptions.ConnectionError("the client is not open: use it inside 'async with client:'")
        return self._owner

    @property
    def ever_connected(self) -> bool:
        """Whether the server could be used once since this client was opened."""
        return self._multiplexer is not None and self._multiplexer.ever_connected

    @property
    def closed(self) -> bool:
        """Whether this client was closed: no command of it is carried out again."""
        return self._closed

    async def reset(self) -> None:  # type: ignore[override]
        """Give up the current connection. The next command connects again.

        Outstanding replies get a second to arrive. After a READONLY reply the client does this
        by itself: the server has become a replica.
        """
        await self._running()[1].reset()

    def blocking(self) -> BlockingConnection:
        """Return a connection for blocking reads. Open it with `async with`."""
        return BlockingConnection(
            self.connector(), reply_timeout=self.reply_timeout, send=self.command, start=self._start_connection
        )

    def subscriber(self) -> Subscriber:
        """Return a connection for pub/sub. Open it with `async with`."""
        return Subscriber(self.connector(), reply_timeout=self.reply_timeout, start=self._start_task)

    async def server_features(self) -> ServerFeatures:
        """Return the product, the version and the commands of the server. It is asked once per connection.

        Raises as `call`.
        """
        multiplexer = self._running()[1]
        if self._features is not None and multiplexer.current is not None and self._features[0] is multiplexer.current:
            return self._features[1]
        features = read_features(await self.call(FEATURE_QUERIES))
        self._features = (multiplexer.current, features)
        return features

    async def server_product(self) -> ServerFeatures:
        """Return the product and the version of the server, without its commands: for this nobody needs a right.

        Raises as `call`.
        """
        (hello,) = await self.call([("HELLO",)])
        return read_features([hello, None, None, None])

    async def pause(self, seconds: float) -> None:
        """Let others run for `seconds`; 0 is one turn of the event loop."""
        await anyio.sleep(seconds)

    def _start_connection(self, connection: SharedConnection) -> None:
        """Run the connection of a BlockingConnection. It is closed with the client."""
        tasks = self._running()[0]
        self._blocking_connections[connection] = None
        tasks.start_soon(self._run_connection, connection, name="streamq blocking connection")

    async def _run_connection(self, connection: SharedConnection) -> None:
        try:
            await connection.run()
        finally:
            self._blocking_connections.pop(connection, None)

    def _start_task(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        self._running()[0].start_soon(function, name=name)


def _seconds(name: str, given: float | None, of_address: float | None, default: float) -> float:
    """Return the first of these that is given. Raises ConfigurationError unless it is at least 0.001."""
    value = next((one for one in (given, of_address) if one is not None), default)
    if not 0.001 <= value < float("inf"):  # 0 would not mean "none": nothing connects in no time
        raise ConfigurationError(f"{name}={value!r} cannot be used: give a number of at least 0.001")
    return value


def event_factory() -> EventFactory:
    """Return the Event class of the current backend: the cheapest way to make an anyio.Event."""
    return type(anyio.Event())


name_remedies(Client, "broker.client")
