"""Every caller gets its own reply, an error or its cancellation: whatever breaks, whenever."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import exceptions

from streamq.client import OutcomeUnknown
from streamq.testing.clock import VirtualTime
from tests.client.over_sockets import Cut, PairServer
from tests.client.scripted import Faults, Server, bulk, echo

pytestmark = pytest.mark.anyio

CALLERS = st.lists(
    st.tuples(st.integers(1, 3), st.none() | st.integers(0, 12)),  # commands of a call; turns until it is cancelled
    min_size=1,
    max_size=8,
)
FAULTS = st.builds(
    Faults,
    chunk=st.integers(1, 9) | st.just(1 << 20),
    cut_sent=st.none() | st.integers(0, 300),
    cut_received=st.none() | st.integers(0, 150),
)


class Tally:
    """What became of the calls."""

    def __init__(self) -> None:
        self.own = 0
        self.errors: list[Exception] = []
        self.cancelled = 0


async def one_caller(client, name, size, tally, rounds=3):
    for number in range(rounds):
        values = [b"%s-%d-%d" % (name, number, place) for place in range(size)]
        try:
            replies = await client.call([("ECHO", value) for value in values])
        except exceptions.ConnectionError as error:
            tally.errors.append(error)
        except anyio.get_cancelled_exc_class():
            tally.cancelled += 1
            raise
        else:
            assert replies == values
            tally.own += 1


async def cancelled_after(turns, scope):
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def cancellable_caller(client, name, size, turns, tally):
    async with anyio.create_task_group() as tasks:
        if turns is not None:
            tasks.start_soon(cancelled_after, turns, tasks.cancel_scope)
        await one_caller(client, name, size, tally)
        tasks.cancel_scope.cancel()


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(callers=CALLERS, faults=st.lists(FAULTS, max_size=3))
@example(callers=[(1, None), (3, 2), (1, None)], faults=[Faults(chunk=1, cut_received=20)])
async def test_no_reply_reaches_another_caller(callers, faults):
    """Concurrent callers, some cancelled, over connections that are cut anywhere: each gets its own."""
    server = Server(faults=faults)
    tally = Tally()
    with anyio.fail_after(10):
        async with server.client() as client:
            async with anyio.create_task_group() as tasks:
                for number, (size, turns) in enumerate(callers):
                    tasks.start_soon(cancellable_caller, client, b"%d" % number, size, turns, tally)
            for _ in range(len(faults) + 1):  # connections that are still to break
                await one_caller(client, b"breaking", 9, tally, rounds=1)
                await client.reset()
            await client.reset()
            assert await client.call([("ECHO", "last")]) == [b"last"]


CUTS = st.builds(
    Cut,
    received=st.none() | st.integers(95, 600),  # the greeting has 94 bytes
    replied=st.none() | st.integers(17, 200),  # and its replies 16
    pause=st.integers(0, 4),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(callers=CALLERS, cuts=st.lists(CUTS, max_size=3))
async def test_no_reply_reaches_another_caller_over_sockets(callers, cuts):
    """The same over sockets, where lone callers send from where they stand, and no task reads under asyncio."""
    tally = Tally()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as serving, PairServer(serving, cuts).client() as client:
            async with anyio.create_task_group() as tasks:
                for number, (size, turns) in enumerate(callers):
                    tasks.start_soon(cancellable_caller, client, b"%d" % number, size, turns, tally)
            for _ in range(len(cuts) + 1):
                await one_caller(client, b"breaking", 9, tally, rounds=1)
                await client.reset()
            assert await client.call([("ECHO", "last")]) == [b"last"]


async def test_more_than_the_kernel_takes():
    """A lone caller whose command is larger than what the kernel holds: the writer sends the rest, and others go on."""
    async with anyio.create_task_group() as serving, PairServer(serving).client() as client:
        large = b"x" * 300_000
        assert await client.call([("ECHO", "small")]) == [b"small"]
        replies = {}

        async def echoed(name, value):
            replies[name] = await client.call([("ECHO", value)])

        async with anyio.create_task_group() as tasks:
            for number, value in enumerate((large, b"after", large)):
                tasks.start_soon(echoed, number, value)
        assert replies == {0: [large], 1: [b"after"], 2: [large]}


async def test_a_lone_caller_sends_at_once_and_many_share_a_write():
    """One read of the server for each call of one caller; for a hundred at once two: the first, and all the others."""
    async with anyio.create_task_group() as serving:
        server = PairServer(serving)
        async with server.client() as client:
            await client.call([("ECHO", "up")])
            server.reads.clear()
            for number in range(5):
                await client.call([("ECHO", str(number))])
            assert server.reads == [1] * 5
            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(client.call, [("ECHO", str(number))])
            assert server.reads[5:] in ([1, 99], [100])


async def test_cut_at_every_byte_received():
    """A reply stream that ends after n bytes: whole replies arrive, the others are unknown."""
    size = len(b"".join(bulk(b"%d-0-0" % number) for number in range(3)))
    for cut in range(size):
        for chunk in (1, 1 << 20):
            server, tally = Server(faults=[Faults(chunk=chunk, cut_received=cut)]), Tally()
            async with server.client() as client:
                async with anyio.create_task_group() as tasks:
                    for number in range(3):
                        tasks.start_soon(one_caller, client, b"%d" % number, 1, tally, 1)
                assert tally.own == cut // len(bulk(b"0-0-0"))
                assert all(isinstance(error, OutcomeUnknown) for error in tally.errors)
                assert await client.call([("ECHO", "next")]) == [b"next"]


async def test_cut_at_every_byte_sent():
    """Sending that fails after n bytes: what may have been sent is unknown, and nobody hangs."""
    for cut in range(75):  # all that three callers send
        server, tally = Server(faults=[Faults(cut_sent=cut)]), Tally()
        async with server.client() as client:
            async with anyio.create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(one_caller, client, b"%d" % number, 1, tally, 1)
            assert tally.own + len(tally.errors) == 3
            assert await client.call([("ECHO", "next")]) == [b"next"]


class CancelAt:
    """Await a coroutine and cancel `scope` when it parks for the nth time."""

    def __init__(self, coroutine, scope, nth):
        self._awaitable, self._scope, self._left = coroutine, scope, nth

    def __await__(self):
        steps = self._awaitable.__await__()
        value, error = None, None
        while True:
            try:
                yielded = steps.throw(error) if error is not None else steps.send(value)
            except StopIteration as stop:
                return stop.value
            if self._left == 0:
                self._scope.cancel()
            self._left -= 1
            value, error = None, None
            try:
                value = yield yielded
            except BaseException as thrown:  # noqa: BLE001 - passed on to the coroutine
                error = thrown


@pytest.mark.parametrize("connected", [False, True])
async def test_cancelled_at_every_await(connected):
    """A caller cancelled wherever it can park leaves the connection in order for the others."""
    for nth in range(20):
        server = Server(faults=[Faults(chunk=1)])
        async with server.client() as client:
            if connected:
                await client.command("PING")
            async with anyio.create_task_group() as tasks:
                tally = Tally()
                for number in range(3):
                    tasks.start_soon(one_caller, client, b"%d" % number, 2, tally)
                with anyio.CancelScope() as scope:
                    await CancelAt(client.call([("ECHO", "gone")] * 2), scope, nth)
            assert tally.own == 9
            assert server.dials == 1
        if not scope.cancelled_caught:
            return
    pytest.fail("the call parks more often than expected")


async def test_cancelled_before_sent_is_withdrawn():
    """A caller cancelled while there is no connection yet sends nothing."""
    server = Server()
    async with server.client() as client:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.call([("ECHO", "gone")])
        assert await client.command("ECHO", "here") == b"here"
        assert [b"ECHO", b"gone"] not in server.connections[0].commands


async def test_callers_share_one_write_and_one_connection():
    """What waits at the same time goes out together: automatic pipelining."""
    sends = []

    class Counting(Server):
        async def __call__(self):
            stream = await super().__call__()
            send = stream.send

            async def counted(item):
                sends.append(item)
                await send(item)

            stream.send = counted
            return stream

    async with Counting().client() as client:
        await client.command("PING")
        sends.clear()
        tally = Tally()
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(one_caller, client, b"%d" % number, 1, tally, 1)
        assert tally.own == 50
        assert len(sends) <= 2


async def test_unasked_reply_ends_the_connection():
    """A reply that belongs to nobody would shift all others: the connection is given up."""
    server = Server()
    async with server.client() as client:
        await client.command("PING")
        server.connections[0].say(b"+surprise\r\n")
        await anyio.wait_all_tasks_blocked()
        assert await client.command("ECHO", "mine") == b"mine"
        assert server.dials == 2


async def test_garbage_ends_the_connection():
    """Bytes that are not RESP are a broken connection, not a crash."""
    server = Server(lambda command: b"HTTP/1.1 400\r\n" if command[0] == b"BAD" else echo(command))
    async with server.client() as client:
        with pytest.raises(OutcomeUnknown):
            await client.command("BAD")
        assert await client.command("ECHO", "mine") == b"mine"


async def test_silent_server_is_noticed():
    """A reply owed for longer than the reply timeout is OutcomeUnknown for everybody who waits."""
    server = Server()
    async with server.client(reply_timeout=0.1) as client:
        with anyio.fail_after(2), pytest.raises(OutcomeUnknown, match=r"within 0\.1 s"):
            await client.command("NEVER")
        assert await client.command("ECHO", "mine") == b"mine"


async def test_server_that_takes_nothing_is_noticed():
    """A send that blocks is bounded by the reply timeout; what waits behind it was not sent."""
    server = Server(faults=[Faults(stall=True)])
    errors = []

    async def caller(size):
        try:
            await client.call([("ECHO", b"x" * size)])
        except exceptions.ConnectionError as error:
            errors.append(type(error))

    async with server.client(reply_timeout=0.2, connect_timeout=1) as client:
        with anyio.fail_after(3):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(caller, 10)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(caller, 1 << 20)  # fills the outbox
                tasks.start_soon(caller, 10)  # waits for room
        assert errors == [OutcomeUnknown]
        assert server.dials == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_progress_is_not_silence(backend):
    """A server that keeps answering is not cut off, however long its queue is."""
    server = Server(lambda command: None if command[0] == b"LATER" else echo(command))

    async def main():
        async with server.client(reply_timeout=0.2) as client:
            await client.command("PING")

            async def slowly():
                for _ in range(10):
                    await anyio.sleep(0.19)
                    server.connections[0].say(b"+x\r\n")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(slowly)
                assert await client.call([("LATER",)] * 10) == [b"x"] * 10

    VirtualTime().run(main, backend=backend)


async def test_readonly_gives_the_connection_up():
    """After READONLY the server is a replica: its reply is delivered and the next call dials again."""
    server = Server(lambda command: b"-READONLY no\r\n" if command[0] == b"SET" else echo(command))
    async with server.client() as client:
        replies = await client.call([("SET", "a", 1), ("ECHO", "x")])
        assert isinstance(replies[0], exceptions.ReadOnlyError)
        assert replies[1] == b"x"
        assert await client.command("ECHO", "y") == b"y"
        assert server.dials == 2


async def test_commands_that_would_break_sharing_are_refused():
    """Subscriptions, blocking reads and state changes are refused before anything is sent."""
    async with Server().client() as client:
        with pytest.raises(exceptions.DataError, match="subscriber"):
            await client.call([("SUBSCRIBE", "a")])
        with pytest.raises(exceptions.DataError, match="blocking"):
            await client.blpop("a")
        with pytest.raises(exceptions.DataError, match="blocking"):
            await client.xread({"s": "$"}, block=10)
        with pytest.raises(exceptions.DataError, match="another Client"):
            await client.execute_command("select", 1)
        with pytest.raises(exceptions.DataError, match="argument 2 of 'SET' is a NoneType"):
            await client.call([("SET", "a", None)])
        with pytest.raises(exceptions.DataError, match="empty"):
            await client.call([()])
        assert await client.call([]) == []
        assert "idle" in repr(client)
