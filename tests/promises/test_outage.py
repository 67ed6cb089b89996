"""P9: the server may vanish, forget, fill up or refuse; the worker waits and goes on."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import anyio
import pytest

from streamq import Backoff, Event, Recovered, RedisBroker, Trouble, Worker, task
from streamq.errors import BrokerError, OutcomeUnknownError
from tests.servers import REAL_KINDS, Kind, RealServer, available, fresh_server

pytestmark = [pytest.mark.slow, pytest.mark.paired, pytest.mark.timeout(90)]
effects: list[int] = []


@task(retries=20, backoff=Backoff(base=0.02, cap=0.1))
async def effect(number: int) -> None:
    """Record it."""
    await anyio.sleep(0.001)
    effects.append(number)


@pytest.fixture(params=REAL_KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    if not available(request.param):
        pytest.skip(f"no {request.param}-server on PATH")
    effects.clear()
    return request.param


@asynccontextmanager
async def at_work(server: RealServer) -> AsyncIterator[tuple[RedisBroker, Worker]]:
    """A broker and its worker; the worker must end by itself when told to."""
    async with RedisBroker(server.url, connect_timeout=1, reply_timeout=1) as broker:
        worker = Worker(broker, [effect], concurrency=20, visibility_timeout=2, grace_period=2)
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            yield broker, worker
            assert worker.state == "running"
            worker.stop()
        assert worker.state == "stopped"


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds; fails after `seconds`."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.01)


async def sent(broker: RedisBroker, numbers: range) -> set[int]:
    """Send effects as a patient producer does, and return those that were accepted for certain."""
    accepted = set()
    for number in numbers:
        while True:
            try:
                await broker.enqueue(effect.options(task_id=f"effect-{number}"), number)
            except OutcomeUnknownError as error:
                assert error.task_id == f"effect-{number}"  # noqa: PT017 - and then it is sent again
            except BrokerError:
                await anyio.sleep(0.05)
            else:
                accepted.add(number)
                break
    return accepted


async def test_a_server_that_was_away_for_longer_than_every_lease(anyio_backend: str) -> None:
    """P3: all leases have ended, and yet nobody takes what another still runs: all get the time to come back."""
    starts: list[str] = []

    @task
    async def long(number: int) -> None:
        starts.append(f"{number}")
        await anyio.sleep(8)

    with fresh_server("valkey", "--appendonly", "yes", "--appendfsync", "always") as server:
        async with (
            RedisBroker(server.url, connect_timeout=1, reply_timeout=1) as one,
            RedisBroker(server.url, connect_timeout=1, reply_timeout=1) as other,
            anyio.create_task_group() as group,
        ):
            workers = [Worker(broker, [long], concurrency=20, visibility_timeout=1.5) for broker in (one, other)]
            for worker in workers:
                await group.start(worker.run)
            await one.enqueue_many([long.call(number) for number in range(8)])
            await until(lambda: len(starts) == 8)
            server.kill()
            await anyio.sleep(3.5)
            server.restart()
            await until(lambda: server.command("XLEN", "queue:standard") == 0, 30)
            for worker in workers:
                worker.stop()
    assert sorted(starts) == [f"{number}" for number in range(8)]


async def test_a_server_that_restarts_empty(kind: Kind, anyio_backend: str) -> None:
    """NOGROUP: groups are made again, from the beginning, and nothing sent since is missed."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, worker):
            await sent(broker, range(50))
            await until(lambda: len(set(effects)) == 50)
            server.kill()
            await until(lambda: worker.health.trouble is not None)
            server.restart()
            await sent(broker, range(50, 100))
            await until(lambda: set(effects) == set(range(100)))
            await until(lambda: worker.health.trouble is None)


async def test_a_server_that_restarts_with_its_data(kind: Kind, anyio_backend: str) -> None:
    """What was accepted before the crash is done after it (AOF, fsync always)."""
    with fresh_server(kind, "--appendonly", "yes", "--appendfsync", "always") as server:
        async with at_work(server) as (broker, _):
            async with anyio.create_task_group() as group:
                group.start_soon(sent, broker, range(400))
                await until(lambda: len(effects) > 50)
                server.kill()
                await anyio.sleep(0.3)
                server.restart()
            await until(lambda: set(effects) == set(range(400)))


async def test_a_server_that_hangs(kind: Kind, anyio_backend: str) -> None:
    """A frozen server is noticed, and used again when it goes on."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, worker):
            await sent(broker, range(20))
            await until(lambda: len(set(effects)) == 20)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await until(lambda: worker.health.trouble is not None)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await sent(broker, range(20, 60))
            await until(lambda: set(effects) == set(range(60)))


async def test_everything_is_flushed_and_connections_are_killed_under_load(kind: Kind, anyio_backend: str) -> None:
    """FLUSHALL, SCRIPT FLUSH and CLIENT KILL storms: the worker goes on each time."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, _):
            for round_ in range(8):
                await sent(broker, range(round_ * 30, round_ * 30 + 30))
                if round_ % 2:
                    server.command("CLIENT", "KILL", "TYPE", "normal")
                    server.command("CLIENT", "KILL", "TYPE", "pubsub")
                else:
                    server.command("SCRIPT", "FLUSH")
            await until(lambda: set(effects) == set(range(240)))
            server.command("FLUSHALL")
            await sent(broker, range(240, 270))
            await until(lambda: set(effects) >= set(range(240, 270)))


async def test_a_server_out_of_memory(kind: Kind, anyio_backend: str) -> None:
    """OOM: enqueue says so, what was accepted is still done and settled, later ones are accepted again."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, _):
            await sent(broker, range(20))
            await until(lambda: len(set(effects)) == 20)
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(BrokerError) as raised:
                await broker.enqueue(effect, 20)
            assert raised.value.code == "OOM"
            await anyio.sleep(1.0)
            server.command("CONFIG", "SET", "maxmemory", "0")
            await sent(broker, range(20, 60))
            await until(lambda: set(effects) == set(range(60)))


async def test_a_server_that_is_a_replica_for_a_while(kind: Kind, anyio_backend: str) -> None:
    """READONLY: waited out; the lease of nothing is lost."""
    with fresh_server(kind) as server, fresh_server(kind, "--port", "0") as _:
        async with at_work(server) as (broker, worker):
            await sent(broker, range(20))
            await until(lambda: len(set(effects)) == 20)
            server.command("REPLICAOF", "127.0.0.1", "1")  # a master that nobody is: data stays
            with pytest.raises(BrokerError) as raised:
                await broker.enqueue(effect, 20)
            assert raised.value.code == "READONLY"
            await until(lambda: worker.health.trouble is not None)
            server.command("REPLICAOF", "NO", "ONE")
            await sent(broker, range(20, 60))
            await until(lambda: set(effects) == set(range(60)))


async def test_a_cut_of_milliseconds_is_over_at_once(kind: Kind, anyio_backend: str) -> None:
    """An idle worker whose connections were cut does not wait for its next blocking read to end (5 s)."""
    heard: list[Event] = []
    with fresh_server(kind) as server:
        async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
            worker = Worker(broker, [effect], listeners=[heard.append])
            await group.start(worker.run)
            await anyio.sleep(0.3)
            for _ in range(3):
                said = len(heard)
                server.command("CLIENT", "KILL", "TYPE", "normal")
                await until(lambda: any(isinstance(event, Trouble) for event in heard[said:]), 2)  # noqa: B023
                await until(lambda: worker.health.trouble is None, 2)
                await anyio.sleep(0.2)  # it blocks again
            worker.stop()
    assert max(event.after for event in heard if isinstance(event, Recovered)) < 1


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def until_it_blocks(server: RealServer, command: bytes = b"xreadgroup") -> bytes:
    """Wait until a client blocks in this command, and return its id."""
    ids: list[bytes] = []

    def blocks() -> bool:
        for line in server.command("CLIENT", "LIST").splitlines():
            fields = dict(pair.split(b"=", 1) for pair in line.split())
            if fields[b"cmd"] == command and b"b" in fields[b"flags"]:
                ids.append(fields[b"id"])
        return bool(ids)

    await until(blocks)
    return ids[0]


async def fail_over(server: RealServer) -> None:
    """Make the server a replica while something blocks in it, and a primary again."""
    server.command("REPLICAOF", "127.0.0.1", "1")
    await anyio.sleep(0.5)
    server.command("REPLICAOF", "NO", "ONE")


async def test_a_failover_loses_nothing_and_says_so(
    kind: Kind, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server ends the blocked read with UNBLOCKED: it is a replica now, and no stream is gone."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, worker):
            await until_it_blocks(server)
            await fail_over(server)
            await until(lambda: worker.health.trouble is None)
            await sent(broker, range(20))
            await until(lambda: set(effects) == set(range(20)))
    said = warned(caplog)
    assert any("instance state changed" in line and "waiting for the server" in line for line in said), said
    assert not [line for line in said if "lost" in line or "created anew" in line]


async def test_a_loop_by_hand_goes_on_after_a_failover(kind: Kind, anyio_backend: str) -> None:
    """`consume` waits for the server, as a worker does."""
    with fresh_server(kind) as server:
        async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:

            async def send_after_failover() -> None:
                await until_it_blocks(server)
                await fail_over(server)
                await sent(broker, range(1))

            group.start_soon(send_after_failover)
            with anyio.fail_after(20):
                async with aclosing(broker.consume()) as messages:
                    message = await anext(messages)
                    assert message.args == [0]
                    await broker.ack(message.task_id)


async def test_an_operator_who_unblocks_a_read_disturbs_nothing(
    kind: Kind, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """CLIENT UNBLOCK id ERROR: the worker blocks again at once, and has nothing to say."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, worker):
            for _ in range(5):
                server.command("CLIENT", "UNBLOCK", await until_it_blocks(server), "ERROR")
            await until_it_blocks(server)
            assert worker.health.trouble is None
            await sent(broker, range(5))
            await until(lambda: set(effects) == set(range(5)))
    assert warned(caplog) == []


async def test_a_destroyed_group_loses_nothing_and_says_so(
    kind: Kind, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """XGROUP DESTROY leaves the stream: what waits there runs, by a group made anew from the beginning."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, worker):
            await until_it_blocks(server)
            await sent(broker, range(50))
            server.command("XGROUP", "DESTROY", "queue:standard", "workers")
            await until(lambda: set(effects) == set(range(50)))
            await until(lambda: worker.health.trouble is None)
    said = warned(caplog)
    assert len([line for line in said if "the consumer group was gone from queue:standard" in line]) == 1, said
    assert not [line for line in said if "are lost" in line]


async def test_a_deleted_stream_is_said_to_be_lost(
    kind: Kind, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """DEL beside a worker that blocks: each kind of server has its own words for it."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, worker):
            await until_it_blocks(server)
            server.command("DEL", "queue:standard")
            await until(lambda: server.command("EXISTS", "queue:standard"))
            await sent(broker, range(5))
            await until(lambda: set(effects) == set(range(5)))
            await until(lambda: worker.health.trouble is None)
    said = warned(caplog)
    assert len([line for line in said if "streams were gone (queue:standard)" in line]) == 1, said
    assert not [line for line in said if "XGROUP DESTROY" in line]


async def test_each_of_several_losses_is_said(kind: Kind, anyio_backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two within seconds, of each kind: the second is a loss like the first."""
    destroy = ("XGROUP", "DESTROY", "queue:standard", "workers")
    commands = [("FLUSHALL",), ("FLUSHALL",), destroy, destroy, ("DEL", "queue:standard")]
    with fresh_server(kind) as server:
        async with at_work(server) as (_, worker):
            for number, command in enumerate(commands, 1):
                await until_it_blocks(server)
                server.command(*command)
                await until(lambda: len(losses_in(caplog)) == number)  # noqa: B023
                await until(lambda: worker.health.trouble is None)
    emptied, destroyed = "server_emptied", "group_restored"
    assert [record.event for record in losses_in(caplog)] == [emptied, emptied, destroyed, destroyed, emptied]


async def test_a_stream_that_was_filled_before_the_worker_looked_is_named(
    kind: Kind, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """FLUSHALL and an enqueue in one transaction: the stream is there again, and its group is not."""
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, worker):
            await until_it_blocks(server)
            async with broker.client.pipeline(transaction=True) as together:
                together.execute_command("FLUSHALL")
                together.xadd("queue:standard", {"task": "effect", "args": "[7]"})
                await together.execute()
            await until(lambda: effects == [7])
            await until(lambda: worker.health.trouble is None)
    (line,) = losses_in(caplog)
    assert "(queue:critical, queue:bulk), and so was the consumer group of queue:standard" in line.getMessage()


STATES = {
    "READONLY": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "NOREPLICAS": (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
}


@pytest.mark.parametrize("state", STATES)
async def test_one_cause_is_one_line(
    kind: Kind, state: str, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The loops of a worker with work of every kind are refused in as many words, and the log has one of them."""
    begin, end = STATES[state]
    with fresh_server(kind) as server:
        async with at_work(server) as (broker, worker):
            await broker.enqueue_many([effect.options(delay=number / 50).call(number) for number in range(200)])
            await until(lambda: len(effects) > 20)
            server.command(*begin)
            await anyio.sleep(3)
            assert worker.health.trouble is not None
            server.command(*end)
            await until(lambda: set(effects) == set(range(200)))
            await until(lambda: worker.health.trouble is None)
    said = warned(caplog)
    assert len([line for line in said if "waiting for the server" in line]) == 1, said
    assert not [line for line in said if "user_script" in line]


def losses_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "event", "") in ("server_emptied", "group_restored")]
