"""P9: the server may vanish, forget, fill up or refuse; the worker waits and goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

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
