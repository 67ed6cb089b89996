"""Pub/sub whose callers are cancelled at any moment: what is wanted and what the connection has meet again."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from contextlib import suppress

import anyio
import hiredis
import pytest
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint
from redis import exceptions

from streamq.client import Client
from streamq.client.background_tasks import BackgroundTasks
from streamq.client.connection import Connection
from streamq.client.subscriber import MISSED, Subscriber
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.anyio


class HeldServer(ByteStream):
    """One connection to a server that carries out a command, for one channel, when the test says so."""

    def __init__(self) -> None:
        self.subscribed: set[str] = set()
        self.commands: deque[tuple[str, str]] = deque()  # received, and not carried out
        self.takes = anyio.Event()  # set: it takes the second half of what is sent
        self.takes.set()
        self._parser = hiredis.Reader()
        self._out = bytearray()
        self._some = anyio.Event()
        self._ended = False

    def __repr__(self) -> str:
        return f"<HeldServer {self.subscribed} {list(self.commands)}>"

    async def send(self, item: bytes) -> None:
        half = len(item) // 2
        self._parser.feed(bytes(item[:half]))
        await self.takes.wait()
        self._parser.feed(bytes(item[half:]))
        while (request := self._parser.gets()) is not False:
            name, *channels = [part.decode() for part in request]
            self.commands += [(name, channel) for channel in channels]

    def carry_out(self, count: int = 1) -> None:
        for _ in range(min(count, len(self.commands))):
            name, channel = self.commands.popleft()
            (self.subscribed.add if name == "SUBSCRIBE" else self.subscribed.discard)(channel)
            self._say(name.lower(), channel, len(self.subscribed))

    def publish(self, channel: str, text: str) -> None:
        if channel in self.subscribed:
            self._say("message", channel, text)

    def end(self) -> None:
        self._ended = True
        self._some.set()

    def _say(self, kind: str, channel: str, last: str | int) -> None:
        tail = f":{last}\r\n" if isinstance(last, int) else f"${len(last)}\r\n{last}\r\n"
        self._out += f"*3\r\n${len(kind)}\r\n{kind}\r\n${len(channel)}\r\n{channel}\r\n{tail}".encode()
        self._some.set()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while not (self._out or self._ended):
            self._some = anyio.Event()
            await self._some.wait()
        await checkpoint()
        if self._ended:
            raise anyio.EndOfStream
        data, self._out = bytes(self._out), bytearray()
        return data

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None:
        self.end()
        await checkpoint()


class Connects:
    """A connector to servers that the test holds; while it is `closed` none is made."""

    timeout = 30.0

    class address:  # noqa: N801 - stands for an Address
        place = "here"

    def __init__(self) -> None:
        self.servers: list[HeldServer] = []
        self.open = anyio.Event()
        self.open.set()

    @property
    def server(self) -> HeldServer:
        return self.servers[-1]

    async def connect(self) -> Connection:
        await self.open.wait()
        self.servers.append(HeldServer())
        return Connection(self.servers[-1], "here")

    def failed(self) -> None: ...
    def succeeded(self) -> None: ...


class Asking:
    """A call of `subscribe` that can be cancelled."""

    def __init__(self, subscriber: Subscriber, *channels: str) -> None:
        self.channels = channels
        self.ended = self.done = False
        self._subscriber = subscriber
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        with self._scope, suppress(exceptions.ConnectionError):  # the subscriber is closed
            await self._subscriber.subscribe(*self.channels)
            self.done = True
        self.ended = True

    def cancel(self) -> None:
        self._scope.cancel()


@pytest.fixture
async def connects():
    return Connects()


@pytest.fixture
async def tasks():
    async with BackgroundTasks() as group:
        yield group


@pytest.fixture
async def subscriber(connects, tasks):
    start = lambda function, name: tasks.start_soon(function, name=name)  # noqa: E731
    async with Subscriber(connects, reply_timeout=60, start=start) as opened:  # type: ignore[arg-type]
        yield opened


async def settled():
    """Let all tasks go on until they wait; anyio's own function sleeps a tenth of a second under asyncio."""
    for _ in range(15):
        await checkpoint()


async def asking(tasks, subscriber, *channels):
    call = Asking(subscriber, *channels)
    tasks.start_soon(call.run)
    await settled()
    return call


async def test_a_channel_whose_confirmation_is_on_its_way_is_given_back(plain):
    """The caller goes away after the server has carried out SUBSCRIBE and before it is confirmed."""
    with Proxy(plain.socket) as proxy:
        async with (
            Client.from_url(plain.unix) as other,
            Client.from_url(proxy.url) as client,
            client.subscriber() as subscriber,
        ):

            async def until(count):
                with anyio.fail_after(8):
                    while (await other.command("PUBSUB", "NUMSUB", "goes"))[1] != count:
                        await anyio.sleep(0.002)

            await subscriber.subscribe("stays")
            proxy.blackhole(requests=False)
            async with anyio.create_task_group() as group:
                group.start_soon(subscriber.subscribe, "goes")
                await until(1)
                group.cancel_scope.cancel()
            await subscriber.unsubscribe("goes")
            proxy.heal()
            await until(0)
            assert "connected channels=1" in repr(subscriber)
            assert (await other.command("PUBSUB", "NUMSUB", "stays"))[1] == 1


async def test_an_old_confirmation_does_not_count(connects, tasks, subscriber):
    """A second call, after one that was cancelled, waits for the reply to its own SUBSCRIBE."""
    first = await asking(tasks, subscriber, "a")
    first.cancel()
    await settled()
    second = await asking(tasks, subscriber, "a")
    server = connects.server
    assert list(server.commands) == [("SUBSCRIBE", "a"), ("UNSUBSCRIBE", "a"), ("SUBSCRIBE", "a")]
    for _ in range(2):
        server.carry_out()
        await settled()
        assert not second.done
    server.carry_out()
    await settled()
    assert second.done
    server.publish("a", "x")
    assert await subscriber.receive() == (b"a", b"x")


async def test_who_comes_back_at_once_costs_no_command(connects, tasks, subscriber):
    """A channel that is left and wanted again before anything was sent stays subscribed."""
    await asking(tasks, subscriber, "a")
    connects.server.carry_out()
    await settled()
    await subscriber.unsubscribe("a")
    await subscriber.subscribe("a")
    await settled()
    assert not connects.server.commands
    await subscriber.unsubscribe("a")
    await settled()
    assert list(connects.server.commands) == [("UNSUBSCRIBE", "a")]


async def test_a_channel_that_another_call_waits_for_is_not_given_back(connects, tasks, subscriber):
    """Neither by the end of the first call, nor by `unsubscribe`."""
    first, second = [await asking(tasks, subscriber, "a", name) for name in "bc"]
    first.cancel()
    await settled()
    await subscriber.unsubscribe("a", "b")
    connects.server.carry_out(9)
    await settled()
    assert second.done
    assert connects.server.subscribed == {"a", "c"}


async def test_a_caller_does_not_wait_for_a_server_that_takes_nothing(connects, tasks, subscriber):
    """It is cancelled while its command is sent by half; the command is sent completely, and then taken back."""
    await asking(tasks, subscriber, "a")
    server = connects.server
    server.carry_out()
    server.takes = anyio.Event()
    with anyio.fail_after(5), anyio.move_on_after(0.02):
        await subscriber.subscribe("b")
    server.takes.set()
    await settled()
    assert list(server.commands) == [("SUBSCRIBE", "b"), ("UNSUBSCRIBE", "b")]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_of_asyncio_that_is_cancelled_cuts_no_command(connects, tasks, subscriber):
    """`Task.cancel`, as `asyncio.timeout` does it, is not stopped by a shield of anyio."""
    await asking(tasks, subscriber, "a")
    server = connects.server
    server.carry_out()
    server.takes = anyio.Event()
    task = asyncio.create_task(subscriber.subscribe("b"))
    await settled()
    task.cancel()
    await asyncio.wait([task])
    server.takes.set()
    await asking(tasks, subscriber, "c")
    server.carry_out(9)
    assert server.subscribed == {"a", "c"}


async def test_what_was_left_during_an_outage_is_not_asked_for_again(connects, tasks, subscriber):
    """The next connection begins with what is wanted then, and `receive` reports the loss once that is confirmed."""
    await asking(tasks, subscriber, "a", "b")
    connects.server.carry_out(2)
    await settled()
    cut = await asking(tasks, subscriber, "c")
    connects.open = anyio.Event()
    connects.server.end()
    await settled()
    cut.cancel()
    await subscriber.unsubscribe("b")
    late = await asking(tasks, subscriber, "d")
    connects.open.set()
    await settled()
    later = await asking(tasks, subscriber, "e")
    server = connects.server
    assert list(server.commands) == [("SUBSCRIBE", "a"), ("SUBSCRIBE", "d"), ("SUBSCRIBE", "e")]
    server.carry_out(2)
    assert await subscriber.receive() == MISSED
    await settled()
    assert late.done
    assert not later.done  # and who comes while it is restored does not put off the report


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_calls_cancellations_and_losses(  # noqa: C901 - a list of what may happen
    connects, tasks, subscriber, seed
):
    """A call returns only while the server has its channels, and keeps them; at the end nothing else is subscribed."""
    drawn = random.Random(seed)
    calls: list[Asking] = []
    holders: set[str] = set()

    def note_returned():
        for call in [call for call in calls if call.ended]:
            calls.remove(call)
            if call.done:  # a cancellation may have come too late
                holders.update(call.channels)

    def check():
        note_returned()
        server = connects.server
        for channel in holders:
            if not any(name == "SUBSCRIBE" and channel == one for name, one in server.commands):
                assert channel in server.subscribed, (channel, connects.servers)

    await asking(tasks, subscriber, "0")
    for _ in range(60):
        note_returned()
        match drawn.randrange(8):
            case 0 | 1 | 2:
                calls.append(await asking(tasks, subscriber, *drawn.sample("1234", drawn.randint(1, 2))))
            case 3 if calls:
                drawn.choice(calls).cancel()
            case 4 if holders:
                channel = drawn.choice(sorted(holders))
                holders.discard(channel)
                await subscriber.unsubscribe(channel)
            case 5 if drawn.random() < 0.3:
                connects.server.end()
            case _:
                connects.server.carry_out(drawn.randint(1, 4))
        for _ in range(drawn.randrange(4)):
            await checkpoint()
        if drawn.random() < 0.5:
            await settled()
            check()
    for call in calls:
        call.cancel()
    await settled()
    check()
    connects.server.carry_out(99)
    await settled()
    assert not connects.server.commands
    assert connects.server.subscribed - {"0"} == holders
