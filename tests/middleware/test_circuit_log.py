"""The log names a circuit that opens and one that closes, each once, whatever it is used for."""

from __future__ import annotations

import logging

import anyio
import pytest

from streamq import RedisBroker, task
from streamq.errors import CircuitOpenError
from streamq.middleware import CircuitBreaker, MiddlewareChain, RemoteFailureError
from streamq.middleware.circuit_log import CircuitLog
from streamq.middleware.circuit_state_machine import State
from streamq.middleware.circuit_view import CircuitView
from streamq.monitoring import QueueMonitor
from tests.at_work import working
from tests.doctor.examined import examined, one

pytestmark = pytest.mark.anyio

OPEN = CircuitView(State.OPEN, 5, ConnectionError("refused"))
CLOSED = CircuitView()


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines(caplog):
    """The lines about circuits, with their levels."""
    caplog.set_level(logging.INFO, "streamq")
    return lambda: [(record.levelname, record.message) for record in caplog.records if "circuit" in record.message]


def test_a_circuit_is_named_once_while_it_is_open(lines, anyio_backend):
    """A probe that fails opens it again: no news. After ten minutes it is named again, and once when it has closed."""
    clock = Clock()
    said = CircuitLog("payments", 5, clock)
    opened = "the circuit 'payments:charge' is open: 5 calls in a row failed, the last with ConnectionError: refused; "
    for _ in range(3):
        said.note("charge", OPEN, 60.0)
        said.note("charge", CircuitView(State.HALF_OPEN, 5), 0.0)
        clock.now += 60
    assert lines() == [("WARNING", f"{opened}its calls wait, and it is tried again in 60 s")]
    clock.now += 600
    said.note("charge", OPEN, 60.0)
    assert lines()[1:] == [("WARNING", lines()[0][1].replace("is open:", "is open still, for 780 s:"))]
    said.note("charge", CLOSED, 0.0)
    said.note("charge", CLOSED, 0.0)
    assert lines()[2:] == [("INFO", "the circuit 'payments:charge' is closed again, after 780 s")]


def test_the_cause_is_that_of_its_rule(lines, anyio_backend):
    """A rate, and a failure of another process."""
    said = CircuitLog("", None, Clock())
    said.note("send", CircuitView(State.OPEN, 1, RemoteFailureError("OSError", "gone", None)), 7.0)
    ((_, line),) = lines()
    assert line.startswith("the circuit 'send' is open: too many calls failed, the last with OSError: gone; its calls")


def test_keys_of_messages_do_not_fill_the_log(lines, anyio_backend):
    """Of a thousand circuits twenty are named, and others once these have gone."""
    clock = Clock()
    said = CircuitLog("", 5, clock)
    for number in range(1000):
        said.note(f"host{number}", OPEN, 60.0)
        said.note(f"other{number}", CLOSED, 0.0)
    assert len(lines()) == len(said.open) == 20
    clock.now += 601
    said.note("host1000", OPEN, 60.0)
    assert len(lines()) == 21


def counted(seen, *texts):
    return [sum(text in line for _, line in seen) for text in texts]


@task(retries=0)
async def call(fail: bool) -> None:
    if fail:
        raise ConnectionError("payments are down")


@pytest.mark.parametrize("scope", ["process", "fleet"])
async def test_a_worker_says_when_its_circuit_opens_and_when_it_closes(server, scope, lines):
    """As middleware, for twenty tasks that wait; the doctor names it meanwhile, and the monitor."""
    guard = CircuitBreaker(2, 2.0, name="api", scope=scope, release_rate=1000)
    async with (
        RedisBroker(server.url) as broker,
        working(broker, call, middleware=MiddlewareChain(guard), concurrency=1),
    ):
        await broker.enqueue_many([call.call(number < 2) for number in range(22)])
        with anyio.fail_after(20):
            while not (circuits := (await QueueMonitor(broker=broker).snapshot()).circuits):
                await anyio.sleep(0.01)
            found = one(await examined(server.url), "circuits_open")
            while guard.state != "closed" or (await QueueMonitor(broker=broker).snapshot()).depth:
                await anyio.sleep(0.01)
    assert (circuits[0].name, circuits[0].error) == ("api:call", "payments are down")
    assert "ConnectionError: payments are down" in found.message
    assert found.evidence["circuits"][0]["name"] == "api:call"
    assert (found.evidence["circuits"][0]["worker"] is None) == (scope == "fleet")
    assert counted(lines(), "circuit 'api:call' is open", "circuit 'api:call' is closed again") == [1, 1]


@pytest.mark.parametrize("scope", ["process", "fleet"])
async def test_another_worker_says_what_it_learns(server, scope, lines):
    """Of the fleet: as soon as it asks. A breaker of a process knows its own circuit only."""
    async with RedisBroker(server.url) as broker:
        options = {"scope": scope, "name": "db", "broker": broker if scope == "fleet" else None}
        first, second = (CircuitBreaker(1, 0.2, **options) for _ in range(2))
        with pytest.raises(OSError, match="gone"):
            async with first:
                raise OSError("gone")
        for _ in range(3):
            try:
                async with second:
                    pass
            except CircuitOpenError:
                assert scope == "fleet"
        assert counted(lines(), "'db' is open") == [2 if scope == "fleet" else 1]
        await anyio.sleep(0.25)
        async with first:
            pass
        async with second:
            pass
    assert counted(lines(), "'db' is closed again") == [2 if scope == "fleet" else 1]


async def test_a_circuit_that_decides_while_the_server_is_away_is_named_too(server, lines):
    """It closes for this process when the server answers, and says that its circuit is closed."""
    async with RedisBroker(server.url) as broker:
        guard = CircuitBreaker(1, 30.0, name="db", scope="fleet", broker=broker)
        async with guard:
            pass
        with pytest.raises(OSError, match="gone"):
            async with guard:
                raise OSError("gone")
        await broker.client.command("DEL", broker.keys.circuit("db"))  # as the docs say
        async with guard:
            pass
    assert counted(lines(), "'db' is open", "'db' is closed again") == [1, 1]
