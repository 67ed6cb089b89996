"""Blocked clients of `memory://`: which one gets an entry, when, and that no entry is lost."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import hiredis
import pytest

from streamq.embedded import MemoryServer
from tests.embedded.raw import Site, site

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.embedded.raw import RawClient

pytestmark = pytest.mark.anyio

ADD = ("XADD", "q", "1-1", "f", "v")
ENTRY = [[b"q", [[b"1-1", [b"f", b"v"]]]]]


def read(consumer: str, count: int = 1, block: int = 0, streams: str = "q") -> tuple[str | int, ...]:
    names = streams.split()
    return (
        *("XREADGROUP", "GROUP", "g", consumer, "COUNT", count, "BLOCK", block),
        *("STREAMS", *names, *[">"] * len(names)),
    )


def with_group(*streams: str) -> MemoryServer:
    server = MemoryServer()
    for stream in streams or ("q",):
        server.execute("XGROUP", "CREATE", stream, "g", "0", "MKSTREAM")
    return server


@pytest.mark.parametrize(
    "write",
    [
        [ADD],
        [("EVAL", "return redis.call('XADD', KEYS[1], '1-1', 'f', 'v')", 1, "q")],
        [("MULTI",), ADD, ("EXEC",)],
    ],
    ids=["command", "script", "transaction"],
)
async def test_a_write_wakes_the_reader(write: list[tuple[str | int, ...]]) -> None:
    """A blocked reader gets an entry at once, whatever command wrote it."""
    async with site(with_group()) as here:
        reader, writer = await here.blocked(*read("a")), await here.client()
        assert await reader.nothing_comes()
        for command in write:
            await writer(*command)
        assert await reader.receive() == ENTRY
        assert not here.server.blocked


async def test_an_entry_that_is_there_is_returned_at_once() -> None:
    async with site(with_group()) as here:
        here.server.execute(*ADD)
        assert await (await here.client())(*read("a")) == ENTRY


async def test_time_runs_out() -> None:
    """BLOCK is in milliseconds, the timeouts of pops are in seconds. After them the reply is nil."""
    async with site(with_group()) as here:
        client = await here.client()
        for command in (read("a", block=30), ("BLPOP", "l", "0.03"), ("XREAD", "BLOCK", 30, "STREAMS", "q", "$")):
            before = anyio.current_time()
            assert await client(*command) is None
            assert 0.02 < anyio.current_time() - before < 1
        assert str(await client(*read("a", block=-1))).startswith("ERR timeout is negative")
        assert str(await client("BLPOP", "l", "x")).startswith("ERR timeout is not a float")
        assert not here.server.blocked


async def test_first_come_first_served() -> None:
    """The reader that has waited longest gets up to COUNT entries, the next one gets the rest."""
    async with site(with_group()) as here:
        readers = [await here.blocked(*read(name, count=2)) for name in "abc"]
        here.server.execute("EVAL", "for i = 1, 3 do redis.call('XADD', 'q', i, 'f', i) end", 0)
        (first,), (second,) = await readers[0].receive(), await readers[1].receive()
        assert [entry[0] for entry in first[1]] == [b"1-0", b"2-0"]
        assert [entry[0] for entry in second[1]] == [b"3-0"]
        assert await readers[2].nothing_comes()
        await readers[0].send(*read("a"))  # a reader that comes back joins the end of the queue
        await anyio.wait_all_tasks_blocked()
        here.server.execute("XADD", "q", "9-0", "f", "v")
        assert (await readers[2].receive())[0][1][0][0] == b"9-0"


async def test_one_of_several_streams_is_enough() -> None:
    async with site(with_group("q", "r")) as here:
        reader = await here.blocked(*read("a", streams="r q"))
        here.server.execute(*ADD)
        assert await reader.receive() == ENTRY
        await reader.send("XREAD", "BLOCK", 0, "STREAMS", "r", "q", "0", "$")
        await anyio.wait_all_tasks_blocked()
        here.server.execute("XADD", "q", "2-1", "f", "v")
        assert await reader.receive() == [[b"q", [[b"2-1", [b"f", b"v"]]]]]


async def test_dollar_is_the_newest_entry_at_the_time_of_the_request() -> None:
    """Two entries in one step: XREAD from `$` gets both, also of a stream that did not exist."""
    async with site(MemoryServer()) as here:
        reader = await here.blocked("XREAD", "BLOCK", 0, "STREAMS", "new", "$")
        here.server.execute("EVAL", "for i = 1, 2 do redis.call('XADD', 'new', i, 'f', i) end", 0)
        assert len((await reader.receive())[0][1]) == 2


async def test_unblock_answers_nil_or_an_error() -> None:
    """CLIENT UNBLOCK ends a wait and loses no later entry. It replies 0 if the client is not blocked."""
    async with site(with_group()) as here:
        reader, operator = await here.client(), await here.client()
        number = await reader("CLIENT", "ID")
        assert await operator("CLIENT", "UNBLOCK", number) == 0
        for reason in ("TIMEOUT", "ERROR"):
            await reader.send(*read("a"))
            await anyio.wait_all_tasks_blocked()
            assert await operator("CLIENT", "UNBLOCK", number, reason) == 1
            assert await operator("CLIENT", "UNBLOCK", number) == 0
            answer = await reader.receive()
            assert answer is None if reason == "TIMEOUT" else str(answer).startswith("UNBLOCKED ")
        await operator(*ADD)
        assert await reader(*read("a")) == ENTRY
        assert str(await operator("CLIENT", "UNBLOCK", number, "NOW")).startswith("ERR")


async def test_unblock_after_delivery_loses_nothing() -> None:
    """An entry that arrived in the same instant is the reply, and UNBLOCK replies 0."""
    async with site(with_group()) as here:
        reader, operator = await here.blocked(*read("a")), await here.client()
        (blocked,) = here.server.blocked
        here.server.execute(*ADD)
        assert await operator("CLIENT", "UNBLOCK", blocked.connection.id) == 0
        assert await reader.receive() == ENTRY


@pytest.mark.parametrize("end", ["aclose", "send_eof"])
async def test_a_reader_that_has_left_takes_nothing(end: str) -> None:
    """The entry goes to the next reader, even if it arrives before the server has seen the close."""
    async with site(with_group()) as here:
        gone, stays = await here.blocked(*read("a")), await here.blocked(*read("b"))
        with anyio.CancelScope() as scope:
            scope.cancel()  # the close takes effect at once, without a turn of the loop
            await getattr(gone.stream, end)()
        here.server.execute(*ADD)
        assert await stays.receive() == ENTRY
        assert [row[1] for row in here.server.execute("XPENDING", "q", "g", "-", "+", 9)] == [b"b"]
        await anyio.wait_all_tasks_blocked()
        assert len(here.server.connections) == 1


async def test_a_cancelled_server_side_takes_nothing() -> None:
    """When the task group is cancelled, a reader leaves the queue, and its client gets the end of the stream."""
    server = with_group()
    async with site(server) as here:
        reader = await here.blocked(*read("a"))
    assert not server.blocked
    assert not server.connections
    with pytest.raises(anyio.EndOfStream):
        await reader.receive()
    server.execute(*ADD)
    assert server.execute("XPENDING", "q", "g")[0] == 0


@pytest.mark.parametrize("command", [("FLUSHALL",), ("DEL", "q")])
async def test_a_stream_that_vanishes_ends_the_wait(command: tuple[str, ...]) -> None:
    """After FLUSHALL a blocked worker gets NOGROUP, as from a real server since version 7."""
    async with site(with_group()) as here:
        reader = await here.blocked(*read("a"))
        here.server.execute(*command)
        assert str(await reader.receive()).startswith("NOGROUP ")


async def test_requests_wait_behind_a_blocked_one() -> None:
    """A blocked connection answers later requests after the wait, in order."""
    async with site(with_group()) as here:
        reader = await here.blocked(*read("a"))
        await reader.send("PING")
        assert await reader.nothing_comes()
        here.server.execute(*ADD)
        assert [await reader.receive(), await reader.receive()] == [ENTRY, b"PONG"]


async def test_pops_wait_too() -> None:
    """BLPOP, BRPOP, BLMOVE, BZPOPMIN: first come, first served, and a move wakes the next client."""
    async with site(MemoryServer()) as here:
        one = await here.blocked("BLMOVE", "a", "b", "LEFT", "RIGHT", 0)
        two = await here.blocked("BRPOP", "x", "b", 0)
        three = await here.blocked("BZPOPMIN", "z", 0)
        here.server.execute("RPUSH", "a", "1")
        assert await one.receive() == b"1"
        assert await two.receive() == [b"b", b"1"]
        here.server.execute("ZADD", "z", 1, "m", 2, "n")
        assert await three.receive() == [b"z", b"m", b"1"]
        here.server.execute("SET", "s", "x")
        assert str(await one("BLPOP", "s", 1)).startswith("WRONGTYPE")
        assert await one("MULTI") == b"OK"
        await one("BLPOP", "nope", 0)
        assert await one("EXEC") == [None]


async def test_scripts_never_wait() -> None:
    """A blocking command in a script does not hang: a real server refuses it or answers at once."""
    async with site(with_group()) as here:
        client = await here.client()
        with anyio.fail_after(1):
            await client("EVAL", "return redis.pcall('BLPOP', 'nope', 0)", 0)
            await client("EVAL", "return redis.pcall('XREAD', 'BLOCK', 0, 'STREAMS', 'q', '$')", 0)
            await client("EVAL", "return redis.pcall(unpack(ARGV))", 0, *read("a"))


# --- many ------------------------------------------------------------------------------------------


async def test_connections_leave_nothing_behind() -> None:
    """Hundreds of connections, closed in every state, leave no task, thread, descriptor or watch."""
    server = with_group()
    async with site(server) as here:
        before = resources()
        for _ in range(3):
            clients: list[RawClient] = []
            for number in range(100):
                kind = number % 4
                if kind == 0:
                    clients.append(await here.blocked(*read(f"c{number}")))
                    continue
                client = await here.client()
                clients.append(client)
                if kind == 1:
                    await client("SUBSCRIBE", "x")
                elif kind == 2:
                    await client("MULTI")
            assert len(server.connections) == 100
            for client in clients:
                await client.stream.aclose()
            await anyio.wait_all_tasks_blocked()
            assert not server.connections
            assert not server.blocked
            assert not server.subscribers
            assert server.execute("PUBLISH", "x", "y") == 0
        gc.collect()
        # An idle thread of an earlier test may end meanwhile: only more than before is a leak.
        assert all(now <= then for now, then in zip(resources(), before, strict=True))
        assert len(server.dataset.server.sockets) == 0
        assert not server.dataset.server.dbs[0]._watches


def resources() -> tuple[int, int]:
    """Return the numbers of threads and descriptors of this process."""
    return threading.active_count(), len(list(Path("/dev/fd").iterdir()))


def in_thread(backend: str, work: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            anyio.run(work, backend=backend)
        except BaseException as error:  # noqa: BLE001 - for the other thread to see
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failures


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_two_loops_in_two_threads_share_a_name(other: str) -> None:
    """A worker in another thread and loop gets every entry once, and its replies come back."""
    MemoryServer.discard("loops")
    server = MemoryServer.named("loops")
    server.execute("XGROUP", "CREATE", "q", "g", "0", "MKSTREAM")
    total = 500

    async def worker() -> None:
        async with site(MemoryServer.named("loops")) as there:
            reader, acker = await there.client(), await there.client()
            done = 0
            while done < total:
                reply = await reader(*read("worker", count=7))
                for entry, fields in reply[0][1]:
                    await acker("XACK", "q", "g", entry)
                    await acker("PUBLISH", "done", fields[1])
                    done += 1

    thread, failures = in_thread(other, worker)
    with anyio.fail_after(20):
        async with site(server) as here:
            listener, writer = await here.client(), await here.client()
            await listener("SUBSCRIBE", "done")
            for number in range(total):
                await writer("XADD", "q", "*", "n", number)
            heard = [int((await listener.receive())[2]) for _ in range(total)]
            assert heard == list(range(total))
            await anyio.to_thread.run_sync(thread.join)
    assert not failures
    assert server.execute("XPENDING", "q", "g")[0] == 0
    assert not server.connections
    MemoryServer.discard("loops")


def test_a_loop_that_has_ended_raises_nothing() -> None:
    """Waking a reader whose loop has ended raises nothing."""
    server = with_group()

    async def leave_a_reader() -> None:
        async with site(server) as here:
            await here.blocked(*read("a"))

    for backend in ("asyncio", "trio"):
        thread, failures = in_thread(backend, leave_a_reader)
        thread.join()
        assert not failures
    server.execute(*ADD)
    assert server.execute("XPENDING", "q", "g")[0] == 0


def test_timeouts_follow_the_clock_of_trio() -> None:
    """Under trio's autojump clock an hour of BLOCK takes no time."""
    trio = pytest.importorskip("trio")
    testing = pytest.importorskip("trio.testing")

    async def main() -> float:
        start = trio.current_time()
        async with anyio.create_task_group() as task_group:
            client = await Site(with_group(), task_group).client()
            assert await client(*read("a", block=3_600_000)) is None
            task_group.cancel_scope.cancel()
        return float(trio.current_time() - start)

    assert trio.run(main, clock=testing.MockClock(autojump_threshold=0)) == pytest.approx(3600)


async def test_replies_of_execute_are_those_of_hiredis() -> None:
    """`execute` returns values, and errors as objects, so that tests need no client."""
    assert isinstance(with_group().execute("XADD", "q", "0-0", "f", "v"), hiredis.ReplyError)
