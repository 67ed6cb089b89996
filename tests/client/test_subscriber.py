"""Pub/sub that reconnects, and reports each loss of the connection."""

from __future__ import annotations

import signal

import anyio
import anyio.lowlevel
import pytest
from redis import exceptions

from streamq.client import Client

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(plain):
    async with Client.from_url(plain.unix, reply_timeout=2) as client:
        yield client


async def test_messages_in_order(client):
    """Messages published after subscribe returned are received, in order."""
    async with client.subscriber() as subscriber:
        assert "idle" in repr(subscriber)
        await subscriber.subscribe("a", b"b")
        for number in range(50):
            await client.publish("ab"[number % 2], number)
        received = [await subscriber.receive() for _ in range(50)]
        assert received == [(b"ab"[number % 2 : number % 2 + 1], b"%d" % number) for number in range(50)]
        assert "connected channels=2" in repr(subscriber)
    with pytest.raises(exceptions.ConnectionError, match="closed"):
        await subscriber.receive()


async def test_unsubscribe_and_subscribe_while_receiving(client):
    """Channels come and go while another task waits in receive."""
    received = []
    async with client.subscriber() as subscriber:

        async def receive():
            while True:
                received.append(await subscriber.receive())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await subscriber.subscribe("a")
            await subscriber.subscribe("b")
            await subscriber.subscribe("b")
            await subscriber.unsubscribe("a", "never")
            await client.publish("a", "no")
            await client.publish("b", "yes")
            with anyio.fail_after(2):
                while not received:
                    await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
    assert received == [(b"b", b"yes")]


async def test_reconnects_and_reports_it(client):
    """After a lost connection receive returns (b"", b"") once. Then messages arrive on all channels again."""
    async with client.subscriber() as subscriber:
        await subscriber.subscribe("a", "b")
        for _ in range(3):
            await client.command("CLIENT", "KILL", "TYPE", "pubsub")
            with anyio.fail_after(3):
                assert await subscriber.receive() == (b"", b"")
            await client.publish("b", "x")
            assert await subscriber.receive() == (b"b", b"x")


@pytest.mark.slow
async def test_half_open_connection_is_noticed(launch):
    """A connection without a reply to PING is given up, and the subscriber connects again."""
    process = launch("valkey")
    async with Client.from_url(process.unix, reply_timeout=0.6, connect_timeout=0.6) as client:  # noqa: SIM117 - one line each
        async with client.subscriber() as subscriber:
            await subscriber.subscribe("a")
            await anyio.sleep(1.5)  # silence is no loss while PING gets its reply
            assert (await client.command("PUBSUB", "NUMSUB", "a"))[1] == 1
            process.signal(signal.SIGSTOP)
            try:
                await anyio.sleep(1.5)
                assert "idle" in repr(subscriber)
            finally:
                process.signal(signal.SIGCONT)
            with anyio.fail_after(10):
                assert await subscriber.receive() == (b"", b"")
            await client.publish("a", "x")
            assert await subscriber.receive() == (b"a", b"x")


async def test_refused_channel(plain):
    """A channel that an ACL refuses raises. The other channels stay subscribed."""
    async with Client.from_url(plain.unix) as admin:
        await admin.execute_command("ACL", "SETUSER", "narrow", "on", ">pw", "resetchannels", "&ok", "+@all", "~*")
        async with Client.from_url(plain.unix.replace("//", "//narrow:pw@", 1)) as client:  # noqa: SIM117 - one line each
            async with client.subscriber() as subscriber:
                await subscriber.subscribe("ok")
                with pytest.raises(exceptions.NoPermissionError):
                    await subscriber.subscribe("secret")
                with anyio.fail_after(3):
                    assert await subscriber.receive() == (b"", b"")
                await admin.publish("ok", "x")
                assert await subscriber.receive() == (b"ok", b"x")


async def test_first_connection_fails():
    """Without a server subscribe raises at once."""
    async with Client.from_url("unix:///does/not/exist") as client, client.subscriber() as subscriber:
        with anyio.fail_after(1), pytest.raises(exceptions.ConnectionError, match="No such file"):
            await subscriber.subscribe("a")


async def test_slow_reader_is_bounded(client, monkeypatch):
    """A slow reader makes the server wait. No message is dropped, and memory is bounded."""
    monkeypatch.setattr("streamq.client.subscriber._BACKLOG", 100)
    async with client.subscriber() as subscriber:
        await subscriber.subscribe("a")
        payload = b"x" * 1000
        for _ in range(30):
            await client.call([("PUBLISH", "a", payload)] * 100)
        await anyio.sleep(0.05)
        assert len(subscriber._backlog) < 1000
        with anyio.fail_after(5):
            assert [await subscriber.receive() for _ in range(3000)] == [(b"a", payload)] * 3000


async def test_a_cancelled_subscribe_leaves_the_channel_to_other_callers(client):
    """Two tasks subscribe to one channel, and the first is cancelled: the second gets the messages."""
    for turns in range(6):
        async with client.subscriber() as subscriber, anyio.create_task_group() as tasks:
            first, done = anyio.CancelScope(), anyio.Event()

            async def ask(scope=first, subscriber=subscriber):
                with scope:
                    await subscriber.subscribe("a")

            async def ask_too(subscriber=subscriber, done=done):
                await subscriber.subscribe("a")
                done.set()

            tasks.start_soon(ask)
            tasks.start_soon(ask_too)
            for _ in range(turns + 1):
                await anyio.lowlevel.checkpoint()
            first.cancel()
            with anyio.fail_after(3):
                await done.wait()
                await client.publish("a", "x")
                assert await subscriber.receive() == (b"a", b"x")
