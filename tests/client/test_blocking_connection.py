"""Blocking reads: no entry that arrives is lost, and every read ends."""

from __future__ import annotations

import random
import signal

import anyio
import anyio.lowlevel
import pytest
from redis import exceptions

from streamq.client import Client, OutcomeUnknown
from tests.client.scripted import Server

pytestmark = pytest.mark.anyio

ROUNDS = 200


def read_new(stream, block=10.0):
    return ("XREADGROUP", "GROUP", "g", "me", "COUNT", 10, "BLOCK", int(block * 1000), "STREAMS", stream, ">")


def ids(reply):
    return [entry for _, entries in reply or [] for entry, _ in entries]


@pytest.fixture
async def client(plain):
    async with Client.from_url(plain.unix) as client:
        await client.flushall()
        await client.xgroup_create("s", "g", id="0", mkstream=True)
        yield client


def never(reply):
    pytest.fail(f"no reply was late, yet on_late_reply got {reply}")


async def test_reads_and_times_out(client):
    """A read returns what is there, or None after its block."""
    async with client.blocking() as blocking:
        assert "idle" in repr(blocking)
        entry = await client.xadd("s", {"a": 1})
        assert ids(await blocking.read(read_new("s"), block=10, on_late_reply=never)) == [entry]
        assert await blocking.read(read_new("s", 0.05), block=0.05, on_late_reply=never) is None
        assert "connected" in repr(blocking)


async def test_blocking_does_not_delay_others(client):
    """While one connection blocks, the shared one answers; the read wakes by an XADD."""
    results = []
    async with client.blocking() as blocking, anyio.create_task_group() as tasks:

        async def read():
            results.append(ids(await blocking.read(read_new("s"), block=10, on_late_reply=never)))

        tasks.start_soon(read)
        with anyio.fail_after(2):
            while not (await client.info("clients"))["blocked_clients"]:
                await anyio.sleep(0.005)
            assert "reading" in repr(blocking)
            entry = await client.xadd("s", {"a": 1})
    assert results == [[entry]]


@pytest.mark.slow
async def test_race_of_xadd_and_cancellation_loses_nothing(client):
    """Each entry is returned by the read or passed to on_late_reply, whoever wins the race."""
    added, returned, passed_on = [], [], []
    luck = random.Random(7)
    async with client.blocking() as blocking:
        for number in range(ROUNDS):
            pauses = [luck.uniform(0, 0.002) for _ in range(2)]
            async with anyio.create_task_group() as tasks:

                async def read(scope=tasks.cancel_scope):
                    reply = await blocking.read(
                        read_new("s"), block=10, on_late_reply=lambda reply: passed_on.extend(ids(reply))
                    )
                    returned.extend(ids(reply))

                async def add(pause=pauses[0], number=number):
                    await anyio.sleep(pause)
                    with anyio.CancelScope(shield=True):
                        added.append(await client.xadd("s", {"n": number}))

                tasks.start_soon(read)
                tasks.start_soon(add)
                await anyio.sleep(pauses[1])
                tasks.cancel_scope.cancel()
        late = ids(await blocking.read(read_new("s", 0.01), block=0.01, on_late_reply=never))
    assert len(added) >= ROUNDS // 4
    assert sorted(returned + passed_on + late) == sorted(added)
    assert (await client.xpending("s", "g"))["pending"] == len(added)
    assert passed_on


async def test_cancelled_before_it_reached_the_server(client):
    """A read cancelled at once neither hangs nor leaves the connection blocked."""
    async with client.blocking() as blocking:
        for turns in range(12):
            with anyio.fail_after(2):
                async with anyio.create_task_group() as tasks:

                    async def read():
                        await blocking.read(read_new("s"), block=10, on_late_reply=never)

                    tasks.start_soon(read)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
        with anyio.fail_after(2):
            assert await blocking.read(read_new("s", 0.01), block=0.01, on_late_reply=never) is None


async def test_unblock(client):
    """unblock ends the current read with None, does nothing without a read, and never ends a later one."""
    async with client.blocking() as blocking:
        await blocking.unblock()
        for turns in range(30):
            results = []
            with anyio.fail_after(2):
                async with anyio.create_task_group() as tasks:
                    started = anyio.Event()

                    async def read(results=results, started=started):
                        started.set()
                        results.append(await blocking.read(read_new("s"), block=10, on_late_reply=never))

                    tasks.start_soon(read)
                    await started.wait()
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    await blocking.unblock()
            assert results == [None]
        await blocking.unblock()
        entry = await client.xadd("s", {"a": 1})
        assert ids(await blocking.read(read_new("s"), block=10, on_late_reply=never)) == [entry]


async def test_a_read_that_somebody_unblocks_has_read_nothing(client):
    """CLIENT UNBLOCK id ERROR, by an operator: no error, and the next read is served."""
    results = []
    async with client.blocking() as blocking:
        async with anyio.create_task_group() as tasks:

            async def read():
                results.append(await blocking.read(read_new("s"), block=10, on_late_reply=never))

            tasks.start_soon(read)
            with anyio.fail_after(5):
                while not results:
                    for row in await client.client_list():
                        if "b" in row["flags"]:
                            await client.command("CLIENT", "UNBLOCK", row["id"], "ERROR")
        assert results == [None]
        entry = await client.xadd("s", {"a": 1})
        assert ids(await blocking.read(read_new("s"), block=10, on_late_reply=never)) == [entry]


async def test_error_reply_is_raised(client):
    """NOGROUP is a ResponseError, and the connection stays open."""
    async with client.blocking() as blocking:
        with pytest.raises(exceptions.ResponseError, match="NOGROUP") as caught:
            await blocking.read(read_new("missing"), block=10, on_late_reply=never)
        assert caught.value.status_code == "NOGROUP"
        assert await blocking.read(read_new("s", 0.01), block=0.01, on_late_reply=never) is None


async def test_killed_connection_comes_back(client):
    """A read whose connection is lost raises OutcomeUnknown. The next one connects again."""
    async with client.blocking() as blocking:
        await blocking.read(read_new("s", 0.01), block=0.01, on_late_reply=never)

        async def kill():
            await anyio.wait_all_tasks_blocked()  # the read is on its way
            await client.client_kill_filter(skipme=True)  # not our own connection: the other one

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            with pytest.raises(OutcomeUnknown):
                await blocking.read(read_new("s"), block=10, on_late_reply=never)
        assert await blocking.read(read_new("s", 0.01), block=0.01, on_late_reply=never) is None


async def test_connection_lost_as_a_read_begins():
    """However early the connection breaks, the read ends. It raises OutcomeUnknown only if it was sent."""
    server = Server()
    async with server.client() as client, client.blocking() as blocking:
        known = 0  # connections on which the server has seen the read
        for turns in range(12):
            assert await blocking.read(("ECHO", "x"), block=0, on_late_reply=never) == b"x"
            outcomes = []

            async def read(outcomes=outcomes):
                try:
                    await blocking.read(("NEVER",), block=10, on_late_reply=never)
                except exceptions.ConnectionError as error:
                    outcomes.append(type(error))

            with anyio.fail_after(2):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    connection = server.connections[-1]
                    await connection.aclose()
                    await anyio.sleep(0.01)
                    if not outcomes and server.connections[-1] is not connection:
                        await server.connections[-1].aclose()  # the read had connected again already
            taken = sum([b"NEVER"] in connection.commands for connection in server.connections)
            assert len(outcomes) == 1
            assert outcomes == [OutcomeUnknown] or taken == known
            known = taken


async def test_closing_the_client_ends_a_read():
    """A read in another task raises OutcomeUnknown when the client closes."""
    outcomes = []
    async with anyio.create_task_group() as tasks, Server().client() as client:
        blocking = client.blocking()

        async def read():
            try:
                await blocking.read(("NEVER",), block=10, on_late_reply=never)
            except OutcomeUnknown as error:
                outcomes.append(error)

        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
    assert len(outcomes) == 1
    with pytest.raises(exceptions.ConnectionError, match="async with"):
        await blocking.read(("NEVER",), block=10, on_late_reply=never)


async def test_one_read_at_a_time(client):
    """A second read at the same time raises BusyResourceError."""
    async with client.blocking() as blocking, anyio.create_task_group() as tasks:

        async def read():
            await blocking.read(read_new("s"), block=10, on_late_reply=never)

        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await blocking.read(read_new("s"), block=10, on_late_reply=never)
        tasks.cancel_scope.cancel()


@pytest.mark.slow
async def test_silent_server_and_cancellation_are_bounded(launch, monkeypatch):
    """A stopped server cannot hold a read beyond the reply timeout, nor a cancelled read."""
    monkeypatch.setattr("streamq.client.blocking_connection._UNBLOCK_WITHIN", 0.3)
    process = launch("valkey")
    async with Client.from_url(process.unix, reply_timeout=0.8) as client:
        await client.xgroup_create("s", "g", id="0", mkstream=True)
        async with client.blocking() as blocking:
            await blocking.read(read_new("s", 0.01), block=0.01, on_late_reply=never)
            process.signal(signal.SIGSTOP)
            try:
                with anyio.fail_after(5), pytest.raises(OutcomeUnknown, match="within"):
                    await blocking.read(read_new("s", 0.1), block=0.1, on_late_reply=never)
            finally:
                process.signal(signal.SIGCONT)
            await blocking.read(read_new("s", 0.01), block=0.01, on_late_reply=never)
            with anyio.fail_after(2):
                async with anyio.create_task_group() as tasks:

                    async def read():
                        await blocking.read(read_new("s"), block=10, on_late_reply=never)

                    tasks.start_soon(read)
                    await anyio.sleep(0.05)
                    process.signal(signal.SIGSTOP)
                    try:
                        tasks.cancel_scope.cancel()
                        with anyio.CancelScope(shield=True):
                            await anyio.sleep(0.5)
                    finally:
                        process.signal(signal.SIGCONT)
            assert await blocking.read(read_new("s", 0.01), block=0.01, on_late_reply=never) is None


async def test_without_permission_to_unblock(plain):
    """If an ACL refuses CLIENT, a cancelled read still passes on an entry that arrives within its block."""
    async with Client.from_url(plain.unix) as admin:
        await admin.flushall()
        await admin.xgroup_create("s", "g", id="0", mkstream=True)
        await admin.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@stream")
        late = []
        async with Client.from_url(plain.unix.replace("unix://", "unix://plain:pw@")) as client:  # noqa: SIM117 - one line each
            async with client.blocking() as blocking, anyio.create_task_group() as tasks:

                async def read():
                    await blocking.read(read_new("s", 1), block=1, on_late_reply=late.append)

                tasks.start_soon(read)
                await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    entry = await admin.xadd("s", {"a": 1})
        assert [ids(reply) for reply in late] == [[entry]]
