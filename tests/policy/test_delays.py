"""Delayed tasks: soon enough on an idle worker, and for nothing while they wait. Figures: `measure_delays`."""

from __future__ import annotations

import statistics

import anyio

from streamq import RedisBroker
from tests.at_work import working
from tests.policy.measure_delays import counted, delayed_until, fill, lateness
from tests.servers import fresh_server

TICK = 5.2  # seconds: in each of these a scheduler looks once, whatever happens


async def test_a_delayed_task_starts_when_it_is_due(real_server, anyio_backend):
    """At most 50 ms late, half of the time at least: this machine may be busy."""
    found = await lateness(real_server.url, 20, within=0.6)
    assert len(found) == 20
    assert found[0] >= -0.002  # never early, but for the server's whole milliseconds
    assert statistics.median(found) < 0.05


async def test_what_waits_costs_an_idle_worker_nothing(anyio_backend):
    """The same commands, those inside scripts too, with nothing delayed and with 10,000 tasks for tomorrow."""
    found = {}

    async def idle(waiting):
        with fresh_server("valkey") as server:
            await fill(server.url, waiting)
            async with RedisBroker(server.url) as broker, working(broker, delayed_until):
                await anyio.sleep(0.5)
                before = counted(server)
                await anyio.sleep(TICK)
                after = counted(server)
            found[waiting] = {name: calls - before.get(name, 0) for name, calls in after.items() if name != "ping"}

    async with anyio.create_task_group() as group:
        group.start_soon(idle, 0)
        group.start_soon(idle, 10_000)
    assert found[0] == found[10_000]
    assert 0 < found[0]["evalsha"] <= 4
