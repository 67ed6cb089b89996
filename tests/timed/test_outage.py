"""P9 to the second: how long who waits for a server that is away."""

from __future__ import annotations

import random

import anyio
import pytest

from streamq import task
from streamq.consumer.events import Listeners, Recovered, Trouble
from streamq.consumer.outage import Outage
from streamq.errors import BrokerError, BrokerUnavailableError
from tests.timed.stage import TICK, Cable, OnTime, WiredServer


@pytest.fixture
def noted(stage):
    """A task that notes when it starts."""

    @task
    async def noted() -> None:
        stage.note("noted")

    return noted


async def test_pauses_grow_and_stop_growing(virtual):
    """0.1, 0.2, 0.4, ... 2 s and no more, each between half of it and all of it, as the seed says."""
    outage = Outage("w", Listeners(), random.Random(7), virtual.clock)
    again, pauses = random.Random(7), []
    for _ in range(2000):
        before = virtual.elapsed()
        await outage.wait("round trips", BrokerUnavailableError("away"))
        pauses.append(virtual.elapsed() - before)
    ceilings = [0.1, 0.2, 0.4, 0.8, 1.6] + [2.0] * 1995
    assert pauses == pytest.approx([ceiling * again.uniform(0.5, 1.0) for ceiling in ceilings], abs=1e-6)


async def test_each_loop_has_a_streak_of_its_own(virtual):
    """One that cannot go on does not slow the others down, and said is it once."""
    said = []
    outage = Outage("w", Listeners([said.append]), random.Random(7), virtual.clock)
    for _ in range(10):
        await outage.wait("round trips", BrokerUnavailableError("away"))
    before = virtual.elapsed()
    await outage.wait("renew", BrokerUnavailableError("away"))
    assert virtual.elapsed() - before <= 0.1
    outage.over("round trips")
    assert outage
    outage.over("renew")
    assert not outage
    assert said == [Trouble("away"), Recovered(pytest.approx(virtual.elapsed()))]


async def test_another_cause_is_logged_again(virtual, caplog):
    """A lost connection, then a refused login: the log has both, each once, whatever numbers they have."""
    outage = Outage("w", Listeners(), random.Random(7), virtual.clock)
    for _ in range(3):
        await outage.wait("renew", BrokerUnavailableError("port 7 was lost"))
        await outage.wait("sweep", BrokerUnavailableError("port 8 was lost"))
    for _ in range(3):
        await outage.wait("renew", BrokerError("refuses user 'x'", code="NOAUTH"))
        await outage.wait("sweep", BrokerUnavailableError("port 9 was lost"))
    assert [record.getMessage() for record in caplog.records] == [
        "w: port 7 was lost; waiting for the server",
        "w: still waiting for the server, now: refuses user 'x'",
    ]
    outage.over("renew")
    outage.over("sweep")
    await outage.wait("renew", BrokerUnavailableError("port 7 was lost"))
    assert caplog.messages[-1] == "w: port 7 was lost; waiting for the server"


async def test_a_state_of_the_server_is_one_cause_whatever_was_refused(virtual, caplog):
    """A replica refuses a reclaim in other words than an enqueue; a full disk is another cause."""
    outage = Outage("w", Listeners(), random.Random(7), virtual.clock)
    for loop, text in [("renew", "READONLY (at XADD)"), ("sweep", "READONLY (at XAUTOCLAIM)"), ("cron", "READONLY")]:
        await outage.wait(loop, BrokerError(text, code="READONLY"))
    await outage.wait("renew", BrokerError("MISCONF no disk", code="MISCONF"))
    await outage.wait("cron", BrokerError("READONLY (at XADD)", code="READONLY"))
    assert [line.partition(";")[0] for line in caplog.messages] == [
        "w: READONLY (at XADD)",
        "w: still waiting for the server, now: MISCONF no disk",
    ]


async def test_causes_without_end_are_bounded(virtual, caplog):
    """Ten lines in ten minutes, whatever the server says."""
    outage = Outage("w", Listeners(), random.Random(7), virtual.clock)
    for number in range(200):
        await outage.wait("renew", BrokerUnavailableError("x" * number))
    assert len(caplog.records) == 10


async def test_a_refused_step_is_no_outage(virtual, caplog):
    """It is named as refused, with the remedy, until it is carried out; nobody waits for the server."""
    said = []
    outage = Outage("w", Listeners([said.append]), random.Random(7), virtual.clock)
    for _ in range(5):
        await outage.wait("renew", BrokerError("NOPERM no right", code="NOPERM"))
    assert not outage
    assert outage.error is None
    assert [one.partition(";")[0] for one in outage.refused] == ["renewing leases: NOPERM no right"]
    outage.over("sweep")
    assert outage.refused
    outage.over("renew")
    assert (outage.refused, said) == ([], [])
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "w: renewing leases is refused: NOPERM no right",
        "w: renewing leases is refused no longer",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("away", [0.5, 30.0, 3600.0])
async def test_goes_on_soon_after_the_server_is_back(stage, noted, away):
    """P9: after half a second as after an hour: within the longest pauses of client and worker."""
    heard = []
    async with stage.broker() as broker, stage.mortal(noted, visibility_timeout=30, listeners=[heard.append]) as cable:
        await anyio.sleep(100)
        cable.cut()
        await anyio.sleep(away)
        await broker.enqueue(noted)
        cable.mend()
        await anyio.sleep(60)
    (at,) = stage.times("noted")
    assert 100 + away <= at <= 100 + away + 4 + TICK
    troubles = [event for event in heard if isinstance(event, Trouble | Recovered)]
    assert [type(event) for event in troubles] == [Trouble, Recovered]
    # Up to a renewal and a sweep later the last loop has had its answer.
    assert away <= troubles[1].after + 5.1
    assert troubles[1].after <= away + 15


async def test_enqueue_waits_for_as_long_as_it_was_told(stage, noted):
    """P9: a clear error after `connect_timeout`, and success if the server is back before."""
    cable = Cable()
    WiredServer.cable.set(cable)
    async with stage.broker(connect_timeout=5) as broker:
        await broker.enqueue(noted)
        cable.cut()
        await anyio.sleep(0.001)  # by now its client knows
        before = stage.at
        with pytest.raises(BrokerUnavailableError):
            await broker.enqueue(noted)
        assert 5 <= stage.at - before <= 5.5 + TICK
        async with anyio.create_task_group() as group:
            group.start_soon(broker.enqueue, noted)
            await anyio.sleep(2)
            cable.mend()
        assert stage.command("XLEN", "queue:standard") == 2


async def test_a_run_goes_on_through_an_outage(stage):
    """P9: what runs runs on; its acknowledgement waits for the server, and the work is not done twice."""

    @task
    async def long() -> None:
        stage.note("begun")
        await anyio.sleep(20)
        stage.note("done")

    async with stage.broker() as broker, stage.mortal(long, visibility_timeout=30) as cable:
        await broker.enqueue(long)
        await anyio.sleep(10)
        cable.cut()
        async with stage.working(broker, long, visibility_timeout=30):
            await anyio.sleep(15)
            cable.mend()
            await anyio.sleep(100)
    assert stage.starts == [("begun", OnTime(0)), ("done", OnTime(20))]
    assert stage.command("XLEN", "queue:standard") == 0


async def test_a_delay_goes_on_through_an_outage(stage, noted):
    """What came due while the server was away starts once it is back."""
    async with stage.broker() as broker, stage.mortal(noted, visibility_timeout=30) as cable:
        await broker.enqueue_many([noted.options(delay=50).call(), noted.options(delay=150).call()])
        await anyio.sleep(20)
        cable.cut()
        await anyio.sleep(80)
        cable.mend()
        await anyio.sleep(100)
    late, on_time = stage.times("noted")
    assert 100 <= late <= 104 + TICK
    assert on_time == OnTime(150)
