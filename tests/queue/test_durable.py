"""`durable=`: an enqueue that returns once the task would outlive its server."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import anyio
import pytest

from streamq import RedisBroker, task
from streamq.errors import BrokerError, ConfigurationError, NotDurableError, OutcomeUnknownError
from tests.servers import REAL_KINDS, Kind, RealServer, available, fresh_server


@task
async def send(to: str) -> None: ...


@pytest.fixture(params=REAL_KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[RealServer, RealServer]]:
    """A primary and its replica."""
    kind: Kind = request.param
    if not available(kind):
        pytest.skip(f"no {kind}-server on PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        primary = stack.enter_context(fresh_server(kind, "--port", str(port), "--repl-diskless-sync-delay", "0"))
        replica = stack.enter_context(fresh_server(kind))
        replica.command("REPLICAOF", "127.0.0.1", port)
        deadline = time.monotonic() + 20
        while b"state=online" not in primary.command("INFO", "replication"):
            assert time.monotonic() < deadline, "the replica does not come"
            time.sleep(0.02)
        yield primary, replica


def depth(server: RealServer) -> int:
    return int(server.command("XLEN", "queue:standard"))


@pytest.mark.slow
async def test_a_durable_task_is_on_the_replica_when_enqueue_returns(pair):
    """P1: each of them, though the replica gets its share only now and then."""
    primary, replica = pair
    async with RedisBroker(primary.url) as broker:
        for number in range(1, 21):
            await broker.enqueue(send.options(durable="replica"), "a@b.c")
            assert depth(replica) == number
        await broker.enqueue_many([send.options(durable="replica").call("a"), send.call("b")])
        assert depth(replica) == 22
        await broker.enqueue(send.options(durable="replica", delay=60, task_id="later"), "a@b.c")
        assert replica.command("ZCARD", "queue:standard:delayed") == 1
    assert replica.command("PTTL", "queue:durable") <= 1000


@pytest.mark.slow
async def test_many_durable_enqueues_at_once_share_their_connection(pair):
    """And do not hold up others, which do not wait."""
    primary, replica = pair
    async with RedisBroker(primary.url) as broker, anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(broker.enqueue, send.options(durable="replica"), "a@b.c")
        await broker.enqueue(send, "a@b.c")
    assert depth(replica) == 51


@pytest.mark.slow
async def test_what_no_replica_confirms_is_said_so(pair):
    """The task is there; a repetition with its id waits again, for the first one's write as well."""
    primary, replica = pair
    durable = send.options(durable="replica", task_id="mine")
    async with RedisBroker(primary.url, reply_timeout=2) as broker:
        await broker.enqueue(send.options(durable="replica"), "a@b.c")
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                with pytest.raises(NotDurableError, match=r"durable='replica' was not confirmed: no replica") as caught:
                    await broker.enqueue(durable, "a@b.c")
                assert isinstance(caught.value, OutcomeUnknownError)
                assert (caught.value.task_id, caught.value.wanted) == ("mine", "replica")
            assert depth(primary) == 2
            with anyio.fail_after(1.5):  # others do not wait for it
                await broker.enqueue(send, "a@b.c")
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        with anyio.fail_after(20):
            while True:  # until the replica is back
                try:
                    assert not (await broker.enqueue(durable, "a@b.c")).fresh
                    break
                except NotDurableError:
                    await anyio.sleep(0.05)
    assert depth(replica) == 3


@pytest.mark.slow
async def test_a_durable_task_is_on_disk_when_enqueue_returns(anyio_backend):
    """P1: the server is killed at once, and remembers, though it flushes once a second only."""
    with fresh_server("valkey", "--appendonly", "yes", "--appendfsync", "everysec") as server:
        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([send.call("a")] * 10)
            await broker.enqueue(send.options(durable="aof"), "a@b.c")
        server.kill()
        server.restart()
        assert depth(server) == 11


async def test_a_server_without_an_append_only_file_is_told_apart(anyio_backend):
    """It was accepted, and the reason is the server's own."""
    with fresh_server("valkey") as server:
        async with RedisBroker(server.url) as broker:
            with pytest.raises(NotDurableError, match="appendonly"):  # the server's words name the setting
                await broker.enqueue(send.options(durable="aof"), "a@b.c")
        assert depth(server) == 1


async def test_a_server_that_cannot_wait_for_its_file_is_not_sent_anything(anyio_backend):
    """Redis before 7.2: refused, with the remedy."""
    if not available("redis"):
        pytest.skip("no redis-server on PATH")
    with fresh_server("redis") as server:
        async with RedisBroker(server.url) as broker:
            if (await broker.client.server_features()).has("WAITAOF"):
                pytest.skip("this redis-server has WAITAOF")
            with pytest.raises(BrokerError, match="no WAITAOF") as caught:
                await broker.enqueue(send.options(durable="aof"), "a@b.c")
            assert not isinstance(caught.value, OutcomeUnknownError)
        assert server.command("EXISTS", "queue:standard") == 0


async def test_in_memory_nothing_is_durable(anyio_backend):
    """And that is said, not ignored."""
    async with RedisBroker("memory://") as broker:
        with pytest.raises(NotDurableError):
            await broker.enqueue(send.options(durable="replica"), "a@b.c")
        with pytest.raises(BrokerError, match="no WAITAOF"):
            await broker.enqueue(send.options(durable="aof"), "a@b.c")


@pytest.mark.parametrize("value", ["disk", "", 1, True])
def test_only_what_can_be_waited_for_is_an_option(value):
    with pytest.raises(ConfigurationError, match="durable="):
        send.options(durable=value)
