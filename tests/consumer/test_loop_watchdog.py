"""A handler that blocks the event loop is named while it still does."""

from __future__ import annotations

import functools
import logging
import time

import anyio
import pytest

from streamq import RedisBroker, Worker, task
from streamq.consumer.loop_watchdog import Watchdog


@task
async def block(seconds: float) -> None:
    """Block the event loop."""
    time.sleep(seconds)  # noqa: ASYNC251 - that is the fault


@pytest.mark.slow
async def test_a_task_that_blocks_the_loop_is_named_with_its_stack(anyio_backend, caplog):
    """P3: it is said before the leases are lost, once for each time, with the line that blocks."""
    async with RedisBroker("memory://") as broker:
        await broker.enqueue(block, 0.6)
        with caplog.at_level(logging.ERROR, "streamq"):
            await Worker(broker, [block], visibility_timeout=1.2, burst=True).run()
    (record,) = [record for record in caplog.records if "blocked" in record.message]
    assert "task 'block'" in record.message
    assert "time.sleep(seconds)" in record.message


@pytest.mark.slow
async def test_a_loop_that_is_well_is_left_alone(anyio_backend, caplog):
    """Nothing is said of handlers that wait as they should."""
    watchdog = Watchdog("w", [block], visibility_timeout=0.3)
    async with anyio.create_task_group() as group:
        group.start_soon(watchdog.watch_forever)
        await anyio.sleep(0.4)
        group.cancel_scope.cancel()
    assert not caplog.records
    assert "w" in repr(watchdog)


@pytest.mark.slow
async def test_what_is_no_task_is_named_as_that(anyio_backend, caplog):
    """Other code of the program may block the loop too; a callable without code does no harm."""
    watchdog = Watchdog("w", [block, task(name="printer")(functools.partial(print))], visibility_timeout=0.3)
    async with anyio.create_task_group() as group:
        group.start_soon(watchdog.watch_forever)
        await anyio.sleep(0.05)
        time.sleep(0.25)  # noqa: ASYNC251 - that is the fault
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    assert "code that is no task" in caplog.text
