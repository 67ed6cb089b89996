"""What an idle worker asks of a real server in ten seconds, those commands inside scripts too.

`tests/timed/test_idle.py` has every window of virtual hours, exactly; here is a server's own count of one.
"""

from __future__ import annotations

import time

import anyio
import pytest

from streamq import RedisBroker, task
from tests.at_work import working
from tests.policy.measure_delays import counted, fill
from tests.servers import REAL_KINDS, available, fresh_server

pytestmark = pytest.mark.slow

IDLE = {"xreadgroup", "ping", "evalsha", "time", "zadd", "xpending", "xinfo|consumers", "zrange"}
_MIDWAY = 5  # a seed with which the sweep is far from the other loops


@task
async def nothing() -> None: ...


async def test_an_idle_worker_asks_at_most_twice_a_second(anyio_backend):
    """17 commands in ten seconds, be nothing delayed or 10,000 tasks; where the machine stands still, less."""
    found = {}

    async def idle(kind, waiting):
        with fresh_server(kind) as server:
            await fill(server.url, waiting)
            async with RedisBroker(server.url) as broker, working(broker, nothing, seed=_MIDWAY):
                before: dict[str, int] = {}
                while before != (before := counted(server)):  # it is starting
                    await anyio.sleep(0.7)
                started = time.monotonic()
                await anyio.sleep(10)
                after = counted(server)
            calls = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
            found[kind, waiting] = calls, time.monotonic() - started

    async with anyio.create_task_group() as group:
        for kind in REAL_KINDS:
            for waiting in (0, 10_000) if available(kind) else ():
                group.start_soon(idle, kind, waiting)
    for (kind, waiting), (calls, took) in found.items():
        said = f"{kind}, {waiting} delayed: {sum(calls.values())} commands in {took:.1f} s: {calls}"
        print(said)
        assert calls.keys() <= IDLE, said
        assert sum(calls.values()) <= 2 * max(10.0, took), said
