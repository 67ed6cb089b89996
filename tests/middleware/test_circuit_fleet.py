"""A circuit that all workers share: with several workers, without a server, in the monitor."""

from __future__ import annotations

import contextlib
import os
import time
from types import SimpleNamespace

import anyio
import pytest

from streamq import RedisBroker, current_delivery, task
from streamq.errors import BrokerUnavailableError, CircuitOpenError, ConfigurationError
from streamq.middleware import CircuitBreaker, MiddlewareChain, RemoteFailureError
from streamq.monitoring import QueueMonitor
from streamq.queue.refusals import Refusals
from streamq.wire.keys import Keys
from tests.at_work import assert_nothing_left, burst, dead, until, working
from tests.crew import Crew, say

pytestmark = pytest.mark.paired("memory")


@pytest.mark.slow
def fleet(threshold=2, reset=60.0, **options):
    """Return a breaker of the fleet; every worker of a test has its own."""
    return CircuitBreaker(threshold, reset, scope="fleet", **options)


@contextlib.contextmanager
def counted(broker):
    """Count the commands that are sent meanwhile."""
    client = broker.store.client
    call, sent = client.call, []

    async def spy(commands):
        sent.extend(commands)
        return await call(commands)

    client.call = spy
    try:
        yield sent
    finally:
        client.call = call


class TestFleet:
    async def test_one_workers_failures_open_it_for_all(self, server):
        """The failures of one worker postpone the tasks of another; they wait in Redis and spend no attempt."""
        ran = []

        @task(retries=0)
        async def call(number):
            ran.append(number)
            raise ConnectionError("down")

        one, other = fleet(), fleet()
        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([call.call(number) for number in range(2)])
            await burst(broker, call, middleware=MiddlewareChain(one), concurrency=1)
            await broker.enqueue_many([call.call(number) for number in range(2, 5)])
            async with working(broker, call, middleware=MiddlewareChain(other)):
                await until(lambda: server.command("ZCARD", "queue:standard:delayed") == 3)
            snapshot = await QueueMonitor(broker=broker).snapshot()
        assert ran == [0, 1]
        assert (one.state, other.state, other.failures) == ("open", "open", 2)
        assert isinstance(one.last_failure, ConnectionError)
        assert isinstance(other.last_failure, RemoteFailureError)
        assert (other.last_failure.error_type, other.last_failure.error) == ("ConnectionError", "down")
        (circuit,) = snapshot.circuits
        assert (circuit.name, circuit.scope, circuit.worker, circuit.state) == ("call", "fleet", None, "open")
        assert (circuit.failures, circuit.error_type, circuit.error) == (2, "ConnectionError", "down")
        assert abs((snapshot.taken_at - circuit.since).total_seconds()) < 30
        assert len(dead(server)) == 2
        assert server.command("PTTL", "queue:circuit:call") > 0
        assert server.command("PTTL", "queue:circuits") > 0

    @pytest.mark.slow
    async def test_several_workers_close_it_together(self, server):
        """Tasks of two workers wait, one probes, and all of them succeed, each once."""
        ran = []

        @task(retries=0)
        async def call(number):
            ran.append(number)
            if number < 0:
                raise ConnectionError("down")

        async with RedisBroker(server.url) as broker:
            await broker.enqueue(call, -1)
            await burst(broker, call, middleware=MiddlewareChain(fleet(1, 0.5)))
            breakers = [fleet(1, 0.5, release_rate=100) for _ in range(2)]
            await broker.enqueue_many([call.call(number) for number in range(20)])
            async with (
                working(broker, call, middleware=MiddlewareChain(breakers[0]), concurrency=3),
                working(broker, call, middleware=MiddlewareChain(breakers[1]), concurrency=3),
            ):
                await until(lambda: len(ran) == 21, 20)
            assert sorted(ran) == list(range(-1, 20))
            view = await fleet(name="", broker=broker).refresh("call")
            assert (view.state, view.failures) == ("closed", 0)
            assert not (await QueueMonitor(broker=broker).snapshot()).circuits
        server.command("DEL", "queue:circuit:call")
        assert_nothing_left(server)

    async def test_costs(self, server):
        """One command per call of a closed circuit; two for one that fails, and for a success after it."""
        async with RedisBroker(server.url) as broker:
            guard = fleet(3, name="db", broker=broker)
            with counted(broker) as sent:
                for _ in range(5):
                    async with guard:
                        pass
            assert len(sent) == 5
            with counted(broker) as sent, contextlib.suppress(OSError):
                async with guard:
                    raise OSError
            assert len(sent) == 2
            for expected in (2, 1):
                with counted(broker) as sent:
                    async with guard:
                        pass
                assert len(sent) == expected
            assert guard.failures == 0

    async def test_a_rate_counts_successes_for_many_at_once(self, server):
        """Successes are sent together, and yet the share of failures is that of all calls."""
        async with RedisBroker(server.url) as broker:
            guard = fleet(None, name="db", broker=broker, failure_rate=0.5, window=600.0, min_calls=10)

            async def succeed():
                async with guard:
                    await anyio.sleep(0.01)

            with counted(broker) as sent:
                async with anyio.create_task_group() as group:
                    for _ in range(50):
                        group.start_soon(succeed)
            assert 51 <= len(sent) <= 60
            failures = 0
            with contextlib.suppress(CircuitOpenError):
                while failures < 200:
                    with contextlib.suppress(OSError):
                        async with guard:
                            failures += 1
                            raise OSError
            assert failures == 50

    async def test_outside_a_worker(self, server):
        """With a broker the decorator asks the server; `refresh` reads a circuit that this process has not used."""
        async with RedisBroker(server.url) as broker:
            guard, watcher = fleet(1, name="db", broker=broker), fleet(1, name="db", broker=broker)

            @guard
            async def query():
                raise OSError("gone")

            with pytest.raises(OSError, match="gone"):
                await query()
            with pytest.raises(CircuitOpenError, match="'db' is open"):
                await query()
            assert watcher.state == "closed"
            view = await watcher.refresh()
            assert (view.state, view.failures, watcher.state) == ("open", 1, "open")
            assert repr(watcher) == "<CircuitBreaker db fleet open failures=1/1 not closed: (own)>"
            assert "gone" in str(watcher.last_failure)

    async def test_mistakes_are_refused(self):
        """No name, no broker, no such scope."""
        async with RedisBroker("memory://") as broker:
            with pytest.raises(ConfigurationError, match="needs a name"):
                async with fleet(broker=broker):
                    pass
            with pytest.raises(ConfigurationError, match="broker=broker"):
                async with fleet(name="db"):
                    pass
            with pytest.raises(ConfigurationError, match="scope='fleet'"):
                CircuitBreaker(broker=broker)
            with pytest.raises(ConfigurationError, match="scope='world'"):
                CircuitBreaker(scope="world")

    async def test_in_a_handler_it_needs_no_broker(self, server):
        """The decorator asks the server of the worker that runs the handler."""
        guard = fleet(1, name="db")

        @guard
        async def query():
            raise OSError("gone")

        @task(retries=0)
        async def call():
            await query()

        async with RedisBroker(server.url) as broker:
            await broker.enqueue(call)
            await burst(broker, call)
            view = await fleet(1, name="db", broker=broker).refresh()
            assert view.state == "open"

    async def test_a_cancelled_probe_makes_room(self, server):
        """At once, although the call is being cancelled."""
        async with RedisBroker(server.url) as broker:
            guard = fleet(1, 0.2, name="db", broker=broker)
            with contextlib.suppress(OSError):
                async with guard:
                    raise OSError
            await anyio.sleep(0.25)
            with anyio.CancelScope() as scope:
                async with guard:
                    scope.cancel()
                    await anyio.sleep(1)
            assert server.command("HGET", "queue:circuit:db", "probes").split() == []


class Away:
    """A queue whose server cannot be used."""

    refusals = Refusals()
    keys = Keys.of("queue", "workers", [])
    clock = SimpleNamespace(elapsed=time.monotonic)
    asked = 0

    async def call(self, commands):
        self.asked += 1
        raise BrokerUnavailableError("connection refused")

    async def one(self, command):
        await self.call([command])


class TestWithoutServer:
    async def test_calls_go_through_and_this_process_decides(self, caplog):
        """Not every call waits for a server that is away; the local circuit opens by itself; one line is logged."""
        away = Away()
        guard = fleet(2, name="db", broker=SimpleNamespace(store=away))
        for _ in range(2):
            with pytest.raises(OSError):  # noqa: PT011 - any
                async with guard:
                    raise OSError
        with pytest.raises(CircuitOpenError):
            async with guard:
                pass
        assert (guard.state, guard.failures) == ("open", 2)
        assert away.asked <= 2
        assert len([record for record in caplog.records if "cannot use the server" in record.message]) == 1

    async def test_an_end_that_cannot_be_sent_counts_in_this_process(self, server):
        """The server goes away while the call runs: only the error of the call is raised."""
        async with RedisBroker(server.url) as broker:
            away = Away()
            place = SimpleNamespace(store=broker.store)
            guard = fleet(1, name="db", broker=place)
            call = broker.store.client.call

            @guard
            async def query():
                broker.store.client.call = away.call
                raise OSError("gone")

            with pytest.raises(OSError, match="gone"):
                await query()
            broker.store.client.call = call
            assert guard.state == "open"


class TestMonitor:
    async def test_a_circuit_of_a_process_is_shown_while_it_is_not_closed(self, server):
        """With its worker; it is removed with the end of the worker, and leaves no key."""

        @task(retries=0)
        async def call():
            raise ValueError("no")

        guard = CircuitBreaker(1, 60.0, name="api")
        async with RedisBroker(server.url) as broker:
            monitor = QueueMonitor(broker=broker)
            async with working(broker, call, middleware=MiddlewareChain(guard)):
                await broker.enqueue(call)
                with anyio.fail_after(20):
                    while not (circuits := (await monitor.snapshot()).circuits):
                        await anyio.sleep(0.01)
            (circuit,) = circuits
            assert (circuit.name, circuit.scope, circuit.state) == ("api:call", "process", "open")
            assert (circuit.failures, circuit.error_type, circuit.error) == (1, "ValueError", "no")
            assert circuit.worker is not None
            assert not (await monitor.snapshot()).circuits
        assert_nothing_left(server)

    async def test_it_is_removed_when_it_closes(self, server):
        """Also if a handler uses it as context manager: the change is reported where it happens."""
        guard = CircuitBreaker(1, 0.2, name="api")

        @task(retries=0)
        async def call(*, fail):
            async with guard:
                if fail:
                    raise ValueError("no")

        async with RedisBroker(server.url) as broker:
            monitor = QueueMonitor(broker=broker)
            await broker.enqueue(call, fail=True)
            await burst(broker, call)
            assert [circuit.state for circuit in (await monitor.snapshot()).circuits] == ["open"]
            await broker.enqueue(call, fail=False)
            await burst(broker, call)
            assert not (await monitor.snapshot()).circuits
        assert_nothing_left(server)


# --- a crew, run by the command line --------------------------------------------------------------

RESET = 1.5
shared = CircuitBreaker(1, RESET, name="crew", scope="fleet", release_rate=50)


@task(retries=0, middleware=[shared])
async def crew_call(number):
    say(f"run {number} {time.time()} {os.getpid()}")
    if number == 0:
        raise ConnectionError("down")
    if number == 1 and not current_delivery().redelivered:
        await anyio.sleep(600)


TASKS = [crew_call]


@pytest.mark.slow
async def test_a_worker_that_is_killed_with_a_probe_does_not_keep_it_open(anyio_backend, shared_server, tmp_path):
    """No other call tries while its lease lasts; after `reset_timeout` the others do, and all tasks are done."""
    server = shared_server("valkey" if anyio_backend == "asyncio" else "redis")
    async with RedisBroker(server.url) as broker:
        with Crew("tests.middleware.test_circuit_fleet", server, tmp_path, backend=anyio_backend) as crew:
            workers = {worker.pid: worker for worker in (crew.start("one"), crew.start("other"))}
            await until(lambda: server.command("ZCARD", "queue:standard:alive:workers") == 2, 30)
            await broker.enqueue(crew_call, 0)
            await anyio.to_thread.run_sync(crew.until, "run 0")
            await broker.enqueue(crew_call, 1)
            (line,) = await anyio.to_thread.run_sync(crew.until, "run 1 ")
            probed, victim = float(line.split()[2]), workers[int(line.split()[3])]
            victim.kill()
            victim.wait()
            await broker.enqueue_many([crew_call.call(number) for number in range(2, 8)])

            def all_ran():
                return {line.split()[1] for line in crew.lines("run")} == {str(number) for number in range(8)}

            await until(all_ran, 40)
            others = [float(line.split()[2]) for line in crew.lines("run") if line.split()[1] not in "01"]
            assert min(others) >= probed + RESET - 0.2
            view = await CircuitBreaker(1, RESET, name="crew", scope="fleet", broker=broker).refresh("crew_call")
            assert view.state == "closed"
