"""Every caller gets its own reply, an error or its cancellation, whatever breaks at any moment."""

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


class Outcomes:
    """How many calls got their own replies, an error, or were cancelled."""

    def __init__(self) -> None:
        self.own = 0
        self.errors: list[Exception] = []
        self.cancelled = 0


async def one_caller(client, name, size, outcomes, rounds=3):
    for number in range(rounds):
        values = [b"%s-%d-%d" % (name, number, place) for place in range(size)]
        try:
            replies = await client.call([("ECHO", value) for value in values])
        except exceptions.ConnectionError as error:
            outcomes.errors.append(error)
        except anyio.get_cancelled_exc_class():
            outcomes.cancelled += 1
            raise
        else:
            assert replies == values
            outcomes.own += 1


async def cancelled_after(turns, scope):
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def cancellable_caller(client, name, size, turns, outcomes):
    async with anyio.create_task_group() as tasks:
        if turns is not None:
            tasks.start_soon(cancelled_after, turns, tasks.cancel_scope)
        await one_caller(client, name, size, outcomes)
        tasks.cancel_scope.cancel()


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(callers=CALLERS, faults=st.lists(FAULTS, max_size=3))
@example(callers=[(1, None), (3, 2), (1, None)], faults=[Faults(chunk=1, cut_received=20)])
async def test_no_reply_reaches_another_caller(callers, faults):
    """Concurrent callers, some cancelled, over connections that are cut anywhere: each gets its own replies."""
    server = Server(faults=faults)
    outcomes = Outcomes()
    with anyio.fail_after(10):
        async with server.client() as client:
            async with anyio.create_task_group() as tasks:
                for number, (size, turns) in enumerate(callers):
                    tasks.start_soon(cancellable_caller, client, b"%d" % number, size, turns, outcomes)
            for _ in range(len(faults) + 1):  # connections that have not broken yet
                await one_caller(client, b"breaking", 9, outcomes, rounds=1)
                await client.reset()
            await client.reset()
            assert await client.call([("ECHO", "last")]) == [b"last"]


CUTS = st.builds(
    Cut,
    received=st.none() | st.integers(95, 600),  # the handshake has 94 bytes
    replied=st.none() | st.integers(17, 200),  # and its replies 16
    pause=st.integers(0, 4),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(callers=CALLERS, cuts=st.lists(CUTS, max_size=3))
async def test_no_reply_reaches_another_caller_over_sockets(callers, cuts):
    """The same over sockets, where a single caller sends at once, and no task reads under asyncio."""
    outcomes = Outcomes()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as serving, PairServer(serving, cuts).client() as client:
            async with anyio.create_task_group() as tasks:
                for number, (size, turns) in enumerate(callers):
                    tasks.start_soon(cancellable_caller, client, b"%d" % number, size, turns, outcomes)
            for _ in range(len(cuts) + 1):
                await one_caller(client, b"breaking", 9, outcomes, rounds=1)
                await client.reset()
            assert await client.call([("ECHO", "last")]) == [b"last"]


async def test_more_than_the_kernel_takes():
    """The kernel does not take all of a large command: the writer sends the rest, and other callers continue."""
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


async def test_a_single_caller_sends_at_once_and_many_share_a_write():
    """A single caller costs one read of the server per call. A hundred at once cost two: the first, and the rest."""
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
    """The replies end after n bytes: complete replies arrive, the others are OutcomeUnknown."""
    size = len(b"".join(bulk(b"%d-0-0" % number) for number in range(3)))
    for cut in range(size):
        for chunk in (1, 1 << 20):
            server, outcomes = Server(faults=[Faults(chunk=chunk, cut_received=cut)]), Outcomes()
            async with server.client() as client:
                async with anyio.create_task_group() as tasks:
                    for number in range(3):
                        tasks.start_soon(one_caller, client, b"%d" % number, 1, outcomes, 1)
                assert outcomes.own == cut // len(bulk(b"0-0-0"))
                assert all(isinstance(error, OutcomeUnknown) for error in outcomes.errors)
                assert await client.call([("ECHO", "next")]) == [b"next"]


async def test_cut_at_every_byte_sent():
    """Sending fails after n bytes: each caller gets its reply or an error, and none hangs."""
    for cut in range(75):  # the bytes that three callers send
        server, outcomes = Server(faults=[Faults(cut_sent=cut)]), Outcomes()
        async with server.client() as client:
            async with anyio.create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(one_caller, client, b"%d" % number, 1, outcomes, 1)
            assert outcomes.own + len(outcomes.errors) == 3
            assert await client.call([("ECHO", "next")]) == [b"next"]


class CancelAt:
    """Await a coroutine, and cancel `scope` when it waits for the nth time."""

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
    """A caller cancelled at any of its awaits leaves the connection in order for the others."""
    for nth in range(20):
        server = Server(faults=[Faults(chunk=1)])
        async with server.client() as client:
            if connected:
                await client.command("PING")
            async with anyio.create_task_group() as tasks:
                outcomes = Outcomes()
                for number in range(3):
                    tasks.start_soon(one_caller, client, b"%d" % number, 2, outcomes)
                with anyio.CancelScope() as scope:
                    await CancelAt(client.call([("ECHO", "gone")] * 2), scope, nth)
            assert outcomes.own == 9
            assert server.dials == 1
        if not scope.cancelled_caught:
            return
    pytest.fail("the call waits more often than expected")


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
    """Commands that wait at the same time are sent together: automatic pipelining."""
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
        outcomes = Outcomes()
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(one_caller, client, b"%d" % number, 1, outcomes, 1)
        assert outcomes.own == 50
        assert len(sends) <= 2


async def test_unasked_reply_ends_the_connection():
    """A reply without a request would shift all later replies: the connection is given up."""
    server = Server()
    async with server.client() as client:
        await client.command("PING")
        server.connections[0].say(b"+surprise\r\n")
        await anyio.wait_all_tasks_blocked()
        assert await client.command("ECHO", "mine") == b"mine"
        assert server.dials == 2


async def test_garbage_ends_the_connection():
    """Bytes that are not RESP end the connection, and raise no other error."""
    server = Server(lambda command: b"HTTP/1.1 400\r\n" if command[0] == b"BAD" else echo(command))
    async with server.client() as client:
        with pytest.raises(OutcomeUnknown):
            await client.command("BAD")
        assert await client.command("ECHO", "mine") == b"mine"


async def test_silent_server_is_noticed():
    """A reply owed for longer than the reply timeout raises OutcomeUnknown in every caller that waits."""
    server = Server()
    async with server.client(reply_timeout=0.1) as client:
        with anyio.fail_after(2), pytest.raises(OutcomeUnknown, match=r"within 0\.1 s"):
            await client.command("NEVER")
        assert await client.command("ECHO", "mine") == b"mine"


async def test_server_that_takes_nothing_is_noticed():
    """The reply timeout bounds a send that blocks. Commands that wait behind it were not sent."""
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
                tasks.start_soon(caller, 1 << 20)  # fills the queue
                tasks.start_soon(caller, 10)  # waits for room
        assert errors == [OutcomeUnknown]
        assert server.dials == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_progress_is_not_silence(backend):
    """A server that keeps answering keeps its connection, even if later replies take long."""
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
    """After READONLY the server is a replica: the reply is delivered, and the next call connects again."""
    server = Server(lambda command: b"-READONLY no\r\n" if command[0] == b"SET" else echo(command))
    async with server.client() as client:
        replies = await client.call([("SET", "a", 1), ("ECHO", "x")])
        assert isinstance(replies[0], exceptions.ReadOnlyError)
        assert replies[1] == b"x"
        assert await client.command("ECHO", "y") == b"y"
        assert server.dials == 2


async def test_commands_that_would_break_sharing_are_refused():
    """Subscriptions, blocking commands and changes of state are refused before anything is sent."""
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
