"""Connecting, logging in, reconnecting, closing: which caller gets which error, and when."""

from __future__ import annotations

import anyio
import pytest
from redis import exceptions
from redis.backoff import ConstantBackoff

from streamq.client import Address, Client, OutcomeUnknown
from streamq.client.login import RefusedAddressError, _login_refused
from streamq.errors import ConfigurationError
from streamq.testing.clock import VirtualTime
from tests.client.scripted import MEMORY, Faults, Server, echo

pytestmark = pytest.mark.anyio

REFUSED = ConnectionRefusedError(111, "Connection refused")


def answering(**replies):
    """Return a handler with these replies to the named commands; other commands get the replies of `echo`."""
    return lambda command: replies.get(command[0].decode()) or echo(command)


async def test_states():
    """repr shows closed, idle or connected."""
    client = Server().client()
    assert repr(client) == "<Client memory://scripted closed>"
    with pytest.raises(exceptions.ConnectionError, match="async with"):
        await client.command("PING")
    async with client:
        assert "idle" in repr(client)
        await client.command("PING")
        assert "connected" in repr(client)
        await client.reset()
        assert "idle" in repr(client)
    assert "closed" in repr(client)
    with pytest.raises(exceptions.ConnectionError, match="closed"):
        await client.command("PING")
    with pytest.raises(RuntimeError):
        await client.__aenter__()


async def test_first_failure_is_raised_at_once():
    """Before the first connection, one failed dial raises. The next call tries again."""
    server = Server(faults=[REFUSED])
    async with server.client() as client:
        with pytest.raises(exceptions.ConnectionError, match="memory: Connection refused") as caught:
            await client.command("PING")
        assert not isinstance(caught.value, OutcomeUnknown)
        assert await client.command("PING") == b"PONG"


async def test_unsent_commands_survive_a_reconnect():
    """After the first connection, callers wait for the next one."""
    server = Server(faults=[Faults(), REFUSED, REFUSED])
    async with server.client() as client:
        await client.command("PING")
        await server.connections[0].aclose()
        await anyio.wait_all_tasks_blocked()
        assert await client.command("PING") == b"PONG"
        assert server.dials == 4


@pytest.mark.slow
async def test_waiting_for_a_reconnect_is_bounded():
    """After the connect timeout a caller gets an error, with the reason of the last attempt."""
    server = Server(faults=[Faults(), *[REFUSED] * 1000])
    client = Client(MEMORY, dial=server, connect_timeout=0.3, backoff=ConstantBackoff(0.05), jitter=lambda: 1.0)
    async with client:
        await client.command("PING")
        await client.reset()
        with anyio.fail_after(2), pytest.raises(exceptions.ConnectionError, match="Connection refused") as caught:
            await client.command("PING")
        assert not isinstance(caught.value, OutcomeUnknown)
        assert 3 <= server.dials <= 12


@pytest.mark.slow
async def test_a_server_that_drops_us_is_not_dialled_without_a_pause():
    """There is a backoff after a connection that breaks before its first reply."""
    server = Server(faults=[Faults(cut_sent=0)] * 1000)
    client = Client(MEMORY, dial=server, backoff=ConstantBackoff(0.05), jitter=lambda: 1.0)
    async with client:
        with anyio.move_on_after(0.4):
            while True:
                with pytest.raises(OutcomeUnknown):
                    await client.command("ECHO", "x")
    assert server.dials <= 10


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_full_jitter(backend):
    """The pause is the backoff times a random number: 0 is no pause, 1 the whole backoff."""

    async def pause(jitter):
        server = Server(faults=[REFUSED])
        async with Client(MEMORY, dial=server, backoff=ConstantBackoff(0.2), jitter=lambda: jitter) as client:
            with pytest.raises(exceptions.ConnectionError):
                await client.command("PING")
            before = anyio.current_time()
            await client.command("PING")
            return anyio.current_time() - before

    virtual = VirtualTime()
    pauses = [virtual.run(pause, jitter, backend=backend) for jitter in (0.0, 0.5, 1.0)]
    assert pauses == pytest.approx([0.0, 0.1, 0.2])


async def test_loading_is_waited_for():
    """A server that still loads its data is waited for, even at the first use."""
    answers = iter([b"-LOADING Redis is loading\r\n", b"-MASTERDOWN Link\r\n", b"+PONG\r\n", b"+PONG\r\n"])
    server = Server(lambda command: next(answers) if command == [b"PING"] else echo(command))
    async with server.client() as client:
        assert await client.command("ECHO", "x") == b"x"
        assert server.dials == 3


async def test_loading_for_too_long():
    """LOADING until the connect timeout raises an error that says so."""
    server = Server(answering(PING=b"-LOADING Redis is loading\r\n"))
    async with Client(MEMORY, dial=server, connect_timeout=0.2, backoff=ConstantBackoff(0.02)) as client:
        with pytest.raises(exceptions.ConnectionError, match="loading"):
            await client.command("ECHO", "x")


@pytest.mark.parametrize(
    ("handler", "kind", "text"),
    [
        (
            answering(CLIENT=b"-NOAUTH Authentication required.\r\n"),
            exceptions.AuthenticationError,
            r"requires a login: Authentication required; write the user and the password into the URL: memory://user:",
        ),
        (answering(CLIENT=b"-ERR max number of clients reached\r\n"), exceptions.ConnectionError, "max number"),
        (answering(CLIENT=b"-DENIED protected mode\r\n", PING=b"-DENIED protected mode\r\n"), None, "protected mode"),
        (answering(CLIENT=b"HTTP/1.1 400 Bad Request\r\n"), RefusedAddressError, "memory does not answer as"),
    ],
)
async def test_refused_handshake(handler, kind, text):
    """The reason that the server gave is in the message."""
    async with Server(handler).client() as client:
        with pytest.raises(kind or exceptions.ConnectionError, match=text):
            await client.command("ECHO", "x")


async def test_handshake_tolerates_an_acl():
    """An ACL that refuses CLIENT and PING does no harm."""
    refused = b"-NOPERM this user has no permissions\r\n"
    async with Server(answering(CLIENT=refused, PING=refused)).client(client_name="me") as client:
        assert await client.command("ECHO", "x") == b"x"


async def test_dial_that_hangs():
    """The connect timeout covers dial and handshake."""

    async def hang():
        await anyio.sleep_forever()

    async with Client(MEMORY, dial=hang, connect_timeout=0.1) as client:
        with pytest.raises(exceptions.ConnectionError, match=r"within 0\.1 s"):
            await client.command("PING")
    async with Server(lambda command: None).client(connect_timeout=0.1) as client:
        with pytest.raises(exceptions.ConnectionError, match=r"within 0\.1 s"):
            await client.command("PING")


async def test_an_error_of_the_block_is_raised_as_it_is():
    """There is no ExceptionGroup around an error of the `async with` block."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with Server().client() as client:
            await client.command("PING")
            raise ZeroDivisionError


async def test_a_cancelled_block_ends_as_cancelled():
    """A block that is cancelled from outside ends at once as cancelled, and the connection is closed."""
    server = Server()
    with anyio.move_on_after(0.05) as scope:
        async with server.client() as client:
            await client.command("NEVER")
    assert scope.cancelled_caught
    assert server.connections[0].closed
    assert "closed" in repr(client)


async def test_closing_fails_callers_that_wait():
    """A caller in another task gets an error when the client closes: OutcomeUnknown if its command was sent."""
    server = Server(faults=[Faults()])
    outcomes = []

    async def caller():
        try:
            await client.command("NEVER")
        except exceptions.ConnectionError as error:
            outcomes.append(type(error))

    async with anyio.create_task_group() as tasks, server.client() as client:
        tasks.start_soon(caller)
        await anyio.wait_all_tasks_blocked()
    assert outcomes == [OutcomeUnknown]
    assert server.connections[0].closed


@pytest.mark.slow
async def test_reset_waits_for_replies_and_only_so_long():
    """reset waits for outstanding replies, for a bounded time."""
    server = Server(lambda command: None if command[0] == b"LATER" else echo(command))
    async with server.client(reply_timeout=0.8) as client, anyio.create_task_group() as tasks:
        results = []

        async def caller():
            try:
                results.append(await client.command("LATER"))
            except OutcomeUnknown:
                results.append("unknown")

        tasks.start_soon(caller)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(client.reset)
        await anyio.wait_all_tasks_blocked()
        server.connections[0].say(b"+x\r\n")
        await anyio.wait_all_tasks_blocked()
        assert results == [b"x"]
        tasks.start_soon(caller)
        await anyio.wait_all_tasks_blocked()
        await client.reset()
        await anyio.wait_all_tasks_blocked()
        assert results == [b"x", "unknown"]
        assert server.dials == 2


async def test_a_server_that_cannot_write_to_its_disk_may_be_read():
    """It refuses PING as it refuses writes. A read is sent and gets its reply."""
    server = Server(answering(PING=b"-MISCONF Errors writing to the AOF file\r\n"))
    async with server.client() as client:
        assert await client.command("GET", "k")


async def test_an_outage_may_last_for_ever():
    """P9: the pause stays at its cap after any number of failed dials."""
    connector = Client(MEMORY, dial=Server(), jitter=lambda: 1.0).connector()
    for _ in range(2000):
        connector.failed()
    assert connector._not_before - anyio.current_time() == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("refused", [REFUSED, Faults(cut_received=0)])
async def test_a_failed_repetition_of_a_script_loses_no_other_reply(refused):
    """P9: the other commands of the call ran, and the caller gets their replies."""
    noscript = b"-NOSCRIPT No matching script.\r\n"
    server = Server(
        answering(EVALSHA=noscript),
        faults=[Faults(cut_received=len(b"$1\r\nx\r\n") + len(noscript)), refused, *[REFUSED] * 50],
    )
    async with server.client(connect_timeout=0.2) as client:
        script = client.register_script("return 1")
        said, failed = await client.call([("ECHO", "x"), script.command([], [])])
    assert said == b"x"
    assert isinstance(failed, exceptions.ConnectionError)


@pytest.mark.parametrize("options", [{"connect_timeout": 0}, {"reply_timeout": 0.0}, {"connect_timeout": -1}])
def test_a_timeout_of_nothing_is_refused(options):
    """It meant the default."""
    with pytest.raises(ConfigurationError, match=r"give a number of at least 0\.001"):
        Client.from_url("redis://localhost", **options)


@pytest.mark.parametrize("url", ["redis://h:1", "rediss://bob:pw@h:1", "unix:///tmp/x", "rediss://[::1]:1/2"])
def test_a_refused_login_shows_the_scheme_and_the_place_to_write(url):
    """Copied as it is, it must not give up TLS. No password is shown."""
    address = Address.parse(url)
    text = str(_login_refused(address, "refuses it", exceptions.AuthenticationError("WRONGPASS no.")))
    begin = url.partition("://")[0]
    assert f"refuses it: WRONGPASS no; write the user and the password into the URL: {begin}://user:password@" in text
    assert text.count(f"password@{address.place}") == 2
    assert "bob" not in text
