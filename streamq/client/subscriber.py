"""Pub/sub on a connection of its own that comes back by itself and says when it was away."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from redis import exceptions

from streamq.client.codec import pack_greeting

if TYPE_CHECKING:
    from types import TracebackType

    from streamq.client.client import Client
    from streamq.client.connection import Wire

MISSED: Final = (b"", b"")
"""What `receive` returns after the connection was lost: messages may have been missed."""

_BACKLOG: Final = 10_000  # messages kept for a slow reader; then the server has to wait
_CLOSE_WITHIN: Final = 2.0  # seconds
_MESSAGE_PARTS: Final = 3  # kind, channel, payload or count


class Subscriber:
    """A dedicated connection for pub/sub, made by `Client.subscriber`.

    It dials when there is something to subscribe to. When the connection is lost it dials
    again, as the backoff says, subscribes to the same channels, and has `receive` return
    `(b"", b"")` once. A silent connection is probed with PING.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._connector = client.connector()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._wanted: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._untried: set[bytes] = set()  # wanted, and never confirmed since
        self._asking: Counter[bytes] = Counter()  # how many wait for a channel's confirmation
        self._wire: Wire | None = None
        self._sending = anyio.Lock()
        self._backlog: deque[tuple[bytes, bytes] | Exception] = deque()
        self._changed = anyio.Event()
        self._error: Exception | None = None
        self._heard = 0.0
        self._established_once = False
        self._lost = False  # messages may have been missed, and receive has not said so yet
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._wire is None else "connected"
        return f"<Subscriber {self._client.address} {state} channels={len(self._wanted)}>"

    async def __aenter__(self) -> Self:
        self._client.tasks.start_soon(self._run, name="streamq subscriber")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.cancel()
        with anyio.move_on_after(_CLOSE_WITHIN, shield=True):
            await self._ended.wait()
        self._closed = True

    async def subscribe(self, *channels: bytes | str) -> None:
        """Subscribe to channels; return when the server has confirmed all of them.

        Raises redis.exceptions.ConnectionError (AuthenticationError) if it does not within
        the connect timeout, and ResponseError if an ACL refuses a channel; the channels are
        not subscribed to then.
        """
        names = {_bytes(channel) for channel in channels}
        fresh = names - self._wanted
        self._wanted |= names
        self._untried |= fresh
        self._asking.update(names)
        self._error = None
        self._tell()
        try:
            if self._wire is not None and fresh:
                await self._send(self._wire, "SUBSCRIBE", fresh)
            with anyio.move_on_after(self._client.connect_timeout):
                while not (names <= self._confirmed or self._failed):
                    await self._changed.wait()
        finally:
            confirmed = names <= self._confirmed
            self._asking -= Counter(names)
            given_up = {name for name in names & self._untried if not self._asking[name]}
            self._wanted -= given_up
            self._untried -= given_up
        if not confirmed:
            raise self._failure()

    async def unsubscribe(self, *channels: bytes | str) -> None:
        """Take no more messages of `channels`; those of other channels go on."""
        names = {_bytes(channel) for channel in channels} & self._wanted
        self._wanted -= names
        self._confirmed -= names
        if self._wire is not None and names:
            await self._send(self._wire, "UNSUBSCRIBE", names)

    async def receive(self) -> tuple[bytes, bytes]:
        """Wait for a message and return its channel and payload; called by one task.

        Returns `(b"", b"")` once after the connection was lost and is back. Raises
        AuthenticationError when the server lets us in no more, and ConnectionError when the
        subscriber or its client is closed.
        """
        while not self._backlog:
            if self._closed:
                raise exceptions.ConnectionError("the subscriber is closed")
            await self._changed.wait()
        item = self._backlog.popleft()
        if len(self._backlog) == _BACKLOG - 1:
            self._tell()  # there is room again
        if isinstance(item, Exception):
            raise item
        return item

    @property
    def _failed(self) -> bool:
        return self._closed or self._error is not None

    def _failure(self) -> Exception:
        if self._error is not None:
            return self._error
        if self._closed:
            return exceptions.ConnectionError("the subscriber is closed")
        limit = self._client.connect_timeout
        return exceptions.ConnectionError(
            f"{self._client.address.place} did not confirm the subscription within {limit:g} s"
        )

    def _tell(self) -> None:
        """Wake everybody who waits for a change of state."""
        self._changed.set()
        self._changed = anyio.Event()

    async def _run(self) -> None:
        try:
            with self._scope:
                while True:
                    while not self._wanted:
                        await self._changed.wait()
                    await self._connect_and_read()
        finally:
            self._closed = True
            self._ended.set()
            self._tell()

    async def _connect_and_read(self) -> None:
        """Dial once and read until the connection breaks; raises nothing but cancellation."""
        try:
            wire = await self._connector.connect()
        except exceptions.ConnectionError as error:
            self._refused(error)
            return
        self._wire = wire
        self._heard = anyio.current_time()
        try:
            await self._send(wire, "SUBSCRIBE", self._wanted)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._probe, wire, tasks.cancel_scope)
                try:
                    await self._read(wire)
                except Exception as error:  # noqa: BLE001 - any stream may fail in its own way
                    self._note(error)
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - sending failed: as if the connection had broken
            self._note(error)
        finally:
            self._wire = None
            self._lost = self._established_once
            self._confirmed.clear()
            self._connector.failed()
            await wire.aclose()

    def _note(self, error: Exception) -> None:
        """Keep why the connection broke, for a subscribe that waits."""
        if isinstance(error, exceptions.RedisError):
            self._error = error
            self._tell()

    def _refused(self, error: exceptions.ConnectionError) -> None:
        self._error = error
        denied = isinstance(error, exceptions.AuthenticationError)
        if denied and not (self._backlog and isinstance(self._backlog[-1], Exception)):
            self._backlog.append(error)
        self._tell()

    async def _send(self, wire: Wire, command: str, channels: set[bytes]) -> None:
        """Send one command whole. What cannot be sent breaks the wire, and the next has all channels."""
        if not channels:
            return
        data = pack_greeting([(command, *sorted(channels))])
        try:
            with anyio.CancelScope(shield=True), anyio.fail_after(self._client.reply_timeout):
                async with self._sending:
                    await wire.stream.send(data)
        except Exception:  # noqa: BLE001 - any stream may fail in its own way
            await wire.aclose()

    async def _probe(self, wire: Wire, scope: anyio.CancelScope) -> None:
        """Send PING into silence; end the connection when that is not answered."""
        silence, patience = self._client.reply_timeout, self._client.reply_timeout / 2
        while True:
            heard = self._heard
            await anyio.sleep(max(0.0, heard + silence - anyio.current_time()))
            if self._heard != heard:
                continue
            if len(self._backlog) >= _BACKLOG:  # a slow reader: nobody listens
                await anyio.sleep(patience)
                continue
            try:
                with anyio.fail_after(patience):
                    asked = anyio.current_time()
                    async with self._sending:
                        await wire.stream.send(pack_greeting([("PING",)]))
                    while self._heard < asked:
                        await self._changed.wait()
            except Exception:  # noqa: BLE001 - silent or broken: the same to us
                scope.cancel()
                return

    async def _read(self, wire: Wire) -> None:
        gets = wire.reader.gets
        while True:
            await wire.feed()
            self._heard = anyio.current_time()
            reply = gets()
            while reply is not False:
                self._take(reply)
                reply = gets()
            self._tell()
            while len(self._backlog) >= _BACKLOG:
                await self._changed.wait()

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply, list) or len(reply) != _MESSAGE_PARTS:
            return  # the answer to PING
        kind, channel, payload = reply
        if kind == b"message":
            if channel in self._wanted:
                self._backlog.append((channel, payload))
        elif kind == b"subscribe":
            self._confirmed.add(channel)
            self._untried.discard(channel)
            if self._wanted <= self._confirmed:
                self._established()

    def _established(self) -> None:
        """All channels are subscribed to: from here on nothing is missed."""
        self._connector.succeeded()
        if self._lost:
            self._lost = False
            if not (self._backlog and self._backlog[-1] == MISSED):
                self._backlog.append(MISSED)
        self._established_once = True


def _bytes(channel: bytes | str) -> bytes:
    return channel.encode() if isinstance(channel, str) else channel
