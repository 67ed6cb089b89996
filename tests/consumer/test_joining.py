"""P14: a worker starts on a server that refuses writes if its groups exist, and waits for one that will take them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from contextlib import aclosing, asynccontextmanager

import anyio
import pytest

from streamq import RedisBroker, Worker, task
from streamq.errors import BrokerError
from streamq.queue.remedies import remedy_of
from tests.servers import REAL_KINDS, available, fresh_server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired, pytest.mark.slow]

runs: list[int] = []


@task
async def note(number: int) -> None:
    runs.append(number)


@pytest.fixture(params=REAL_KINDS)
def server(request, tmp_path):
    if not available(request.param):
        pytest.skip(f"no {request.param}-server on PATH")
    runs.clear()
    (tmp_path / "data").mkdir()
    with fresh_server(request.param, "--dir", str(tmp_path / "data")) as started:
        yield started


def full(server, *, yes: bool) -> None:
    server.command("CONFIG", "SET", "maxmemory", "1" if yes else "0")


def read_only(server, *, yes: bool) -> None:
    server.command("REPLICAOF", *(("no.such.host.invalid", 1) if yes else ("NO", "ONE")))


def without_replicas(server, *, yes: bool) -> None:
    server.command("CONFIG", "SET", "min-replicas-to-write", int(yes))


def without_disk(server, *, yes: bool) -> None:
    """MISCONF: a snapshot has failed, because its folder is gone."""
    if not yes:
        server.command("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        return
    shutil.rmtree(server.command("CONFIG", "GET", "dir")[1])
    server.command("CONFIG", "SET", "save", "3600 1")
    server.command("BGSAVE")
    while b"rdb_last_bgsave_status:err" not in server.command("INFO", "persistence"):
        time.sleep(0.01)


REFUSALS = {"OOM": full, "READONLY": read_only, "NOREPLICAS": without_replicas, "MISCONF": without_disk}


REMEDIES = {
    "OOM": "; run more workers", "READONLY": "; it is a replica: give", "NOREPLICAS": "; start the replicas",
    "MISCONF": "; look for errors",
}  # fmt: skip


async def until(condition, seconds: float = 15) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.01)


@asynccontextmanager
async def with_groups(server, tasks: int):
    """A broker; its groups exist, and so many tasks wait."""
    async with RedisBroker(server.url) as broker:
        await Worker(broker, [note], burst=True).run()
        await broker.enqueue_many([note.call(n) for n in range(tasks)])
        yield broker


async def test_a_worker_starts_on_a_full_server_and_works_it_off(server):
    """Settling needs no memory; that the groups exist is found out by reading."""
    async with with_groups(server, 200) as broker:
        full(server, yes=True)
        await Worker(broker, [note], burst=True).run()
        assert sorted(runs) == list(range(200))
        assert server.command("XLEN", "queue:standard") == 0


@pytest.mark.parametrize("refuse", [read_only, without_replicas, without_disk])
async def test_a_worker_starts_on_a_server_that_takes_no_writes_and_works_when_it_does(server, refuse):
    """`group.start` returns, health names the trouble, and nothing is read before the worker counts as alive."""
    async with with_groups(server, 3) as broker, anyio.create_task_group() as group:
        refuse(server, yes=True)
        worker = Worker(broker, [note])
        with anyio.fail_after(10):
            await group.start(worker.run)
        await until(lambda: worker.health.trouble is not None)
        assert worker.state == "running"
        assert runs == []
        refuse(server, yes=False)
        await until(lambda: len(runs) == 3)
        await until(lambda: worker.health.trouble is None)
        assert server.command("ZCARD", "queue:standard:alive:workers") == 1
        worker.stop()


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_worker_waits_for_groups_that_cannot_be_created_yet(server, name, caplog):
    """It says so in its health and, once, in the log; it starts when they can be."""
    refuse = REFUSALS[name]
    async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
        refuse(server, yes=True)
        worker = Worker(broker, [note])
        group.start_soon(worker.run)
        await until(lambda: worker.health.trouble is not None)
        assert worker.state == "starting"
        await anyio.sleep(1.2)
        (line,) = [line for line in caplog.messages if "waiting for the server" in line]
        assert REMEDIES[name] in line
        refuse(server, yes=False)
        await until(lambda: worker.state == "running")
        assert worker.health.trouble is None
        await broker.enqueue(note, 1)
        await until(lambda: runs == [1])
        worker.stop()


async def test_a_worker_that_waits_for_its_start_can_be_cancelled(server):
    """At once, and its broker is left."""
    with anyio.fail_after(5):
        async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
            full(server, yes=True)
            worker = Worker(broker, [note])
            group.start_soon(worker.run)
            await until(lambda: worker.health.trouble is not None)
            group.cancel_scope.cancel()


async def test_a_server_that_dies_during_the_start_is_waited_for(server):
    """It was reached, so the address is right."""
    async with RedisBroker(server.url, connect_timeout=0.3) as broker, anyio.create_task_group() as group:
        await broker.client.ping()
        server.kill()
        worker = Worker(broker, [note])
        group.start_soon(worker.run)
        await until(lambda: worker.health.trouble is not None)
        server.restart()
        await until(lambda: worker.state == "running")
        worker.stop()


@pytest.mark.parametrize("code", ["NOPERM", "NOAUTH"])
async def test_what_waiting_does_not_help_is_raised(server, code):
    """A missing right, where the group is missing too, and wrong credentials."""
    server.command("ACL", "SETUSER", "bob", "on", ">right", "~*", "&*", "+@all", "-xgroup")
    password = "right" if code == "NOPERM" else "wrong"
    async with RedisBroker(server.url.replace("unix://", f"unix://bob:{password}@")) as broker:
        with pytest.raises(BrokerError) as caught, anyio.fail_after(10):
            await Worker(broker, [note]).run()
        assert caught.value.code == code


@asynccontextmanager
async def grouped(worker):
    """A lifespan with a task group, which wraps every error that it sees."""
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield
        group.cancel_scope.cancel()


@pytest.mark.parametrize("code", ["NOPERM", "WRONGTYPE"])
async def test_a_worker_that_cannot_begin_raises_one_error_and_says_nothing_else(server, code, caplog):
    """Not that everything else goes on, and no group of exceptions: the caller has one error with key and remedy."""
    async with with_groups(server, 0):
        server.command("ACL", "SETUSER", "bob", "on", ">right", "~*", "&*", "+@all")
        if code == "NOPERM":
            server.command("ACL", "SETUSER", "bob", "-evalsha")
        else:
            server.command("DEL", "queue:standard")
            server.command("SET", "queue:standard", "text")
        async with RedisBroker(server.url.replace("unix://", "unix://bob:right@")) as broker:
            with pytest.raises(BrokerError, match=r"queue:(critical|standard)") as caught, anyio.fail_after(10):
                await Worker(broker, [note], lifespan=grouped).run()
    assert caught.value.code == code
    assert ("run 'streamq doctor --role worker'" in str(caught.value)) == (code == "NOPERM")
    assert caplog.messages == []


async def test_a_worker_that_may_read_no_tier_does_not_begin(server, caplog):
    """It ran on for ever and did nothing. What it holds is read: a delivery must not be taken for this."""
    async with with_groups(server, 1):
        server.command("ACL", "SETUSER", "bob", "on", ">right", "~*", "&*", "+@all", "-xreadgroup")
        async with RedisBroker(server.url.replace("unix://", "unix://bob:right@")) as broker:
            with pytest.raises(BrokerError, match=r"NOPERM.*xreadgroup.*streamq doctor --role worker") as caught:
                with anyio.fail_after(10):
                    await Worker(broker, [note]).run()
            server.command("ACL", "SETUSER", "bob", "+xreadgroup")
            await Worker(broker, [note], burst=True).run()
    assert caught.value.code == "NOPERM"
    assert runs == [0]
    assert caplog.messages == []


async def test_a_tier_that_is_refused_at_the_start_is_named_and_the_others_are_served(server, caplog):
    """The worker begins with those that it may serve."""
    async with with_groups(server, 1):
        some = ("~queue:[^b]*", "~queue:bulk", "~queue:bulk:delayed*")
        server.command("ACL", "SETUSER", "bob", "on", ">right", "&*", "+@all", *some)
        async with RedisBroker(server.url.replace("unix://", "unix://bob:right@")) as broker:
            await Worker(broker, [note], burst=True).run()
    assert runs == [0]
    assert [line for line in caplog.messages if "renewing the leases of queue:bulk is refused: NOPERM" in line]
    assert not [line for line in caplog.messages if "renewing the leases of queue:standard" in line]


async def test_a_right_that_is_not_needed_is_named_with_key_and_remedy(server, caplog):
    """The groups exist, so the worker starts. What it says is what every missing right says."""
    async with with_groups(server, 0):
        server.command("ACL", "SETUSER", "bob", "on", ">right", "~*", "&*", "+@all", "-xgroup")
        async with RedisBroker(server.url.replace("unix://", "unix://bob:right@")) as broker:
            await Worker(broker, [note], burst=True).run()
    (line,) = [line for line in caplog.messages if "may not create groups" in line]
    assert "the server refuses" not in line  # it is the right of this user
    assert "XGROUP CREATE on queue:critical; run 'streamq doctor --role worker' as this user" in line
    assert line.endswith("; the consumer groups exist, so this starts")


async def test_a_loop_over_deliveries_starts_on_a_full_server(server):
    """As a worker does."""
    async with with_groups(server, 2) as broker:
        full(server, yes=True)
        with anyio.fail_after(10):
            async with aclosing(broker.consume()) as deliveries:
                async for delivery in deliveries:
                    runs.append(delivery.args[0])
                    await broker.ack(delivery.task_id)
                    if len(runs) == 2:
                        break
        assert server.command("XLEN", "queue:standard") == 0


async def test_a_worker_waits_for_a_server_with_too_many_clients(anyio_backend, server, caplog):
    """It was told that no server answers there, and ended. A producer hears what to do."""
    server.command("CONFIG", "SET", "maxclients", "5")
    async with RedisBroker(server.url) as broker:
        others = contextlib.ExitStack()
        for _ in range(10):
            others.enter_context(socket.socket(socket.AF_UNIX)).connect(
                server.url.partition("unix://")[2].partition("?")[0]
            )
        with pytest.raises(BrokerError, match="max number of clients reached") as refused:
            await broker.enqueue(note, 1)
        assert "CLIENT LIST" in remedy_of(refused.value)
        worker = Worker(broker, [note])
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            with anyio.fail_after(10):
                while "max number of clients" not in str(worker.health.trouble):
                    await anyio.sleep(0.01)
                others.pop_all().close()
                while worker.health.trouble is not None or worker.state != "running":
                    await anyio.sleep(0.01)
                await broker.enqueue(note, 1)
                while not runs:
                    await anyio.sleep(0.01)
            worker.stop()
    assert "max number of clients reached; waiting for the server" in caplog.text
