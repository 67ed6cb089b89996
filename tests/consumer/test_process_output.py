"""P13: what a process prints or logs, however much, leaves the event loop of its worker to the others."""

from __future__ import annotations

import logging
import os
import signal
import time

import anyio
import pytest

from streamq import RedisBroker
from streamq.consumer import process_output
from streamq.logs import JsonFormatter, TaskFields
from tests.at_work import watched_loop, working
from tests.consumer.output_tasks import fills_its_pipe, leaves_a_program, logs_much, prints_empty_lines, warms_up

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.paired, pytest.mark.timeout(120)]

LONGEST_GAP = 0.7  # seconds; it was as long as the lines of a full pipe take, several seconds


@pytest.fixture
def lines(monkeypatch):
    """The lines that processes have logged and printed, made as in production. The bound is low: tests are quick."""
    monkeypatch.setattr(process_output, "LINES", 2_000)
    found: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            self.format(record)
            found.append(record)

    handler, root = Kept(), logging.getLogger()
    handler.setFormatter(JsonFormatter())
    handler.addFilter(TaskFields())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield found
    root.removeHandler(handler)
    root.setLevel(level)


def of(lines, event):
    return [record.__dict__ for record in lines if record.__dict__.get("event") == event]


@pytest.mark.parametrize("number", [60_000, 500_000])
async def test_what_a_run_prints_is_bounded_and_said_to_be(real_server, lines, number):
    async with RedisBroker(real_server.url) as broker, working(broker, warms_up, prints_empty_lines, processes=1):
        await (await broker.enqueue(warms_up)).result(timeout=30)
        handle = await broker.enqueue(prints_empty_lines, number)
        async with watched_loop() as longest:
            await handle.result(timeout=60)
    assert longest[0] < LONGEST_GAP
    logged, (left_out,) = of(lines, "output"), of(lines, "output_left_out")
    assert len(logged) == process_output.LINES
    assert logged[0]["args"] == ("first",)
    assert len(logged) + left_out["lines"] == number + 1
    assert left_out["bytes"] == left_out["lines"]
    assert (left_out["task_id"], left_out["stream"]) == (handle.task_id, "stdout")
    assert {line["task_id"] for line in logged} == {handle.task_id}


async def test_what_is_in_the_pipe_as_a_run_ends_is_logged_in_pieces(real_server, lines):
    """It was logged in one piece: renewals, timeouts and other runs waited for it."""
    async with RedisBroker(real_server.url) as broker, working(broker, warms_up, fills_its_pipe, processes=1):
        await (await broker.enqueue(warms_up)).result(timeout=30)
        handle = await broker.enqueue(fills_its_pipe)
        async with watched_loop() as longest:
            await handle.result(timeout=60)
    assert longest[0] < LONGEST_GAP
    (left_out,) = of(lines, "output_left_out")
    assert len(of(lines, "output")) + left_out["lines"] == 60_000


async def test_a_program_that_was_left_behind_costs_little(real_server, lines):
    """It writes for ever, as fast as it can: the worker has its time for tasks, also for one of that process."""
    async with RedisBroker(real_server.url) as broker, working(broker, warms_up, leaves_a_program, processes=1):
        pid = await (await broker.enqueue(leaves_a_program)).result(timeout=30)
        try:
            await anyio.sleep(1.5)  # what it may have is used up
            begun, wall = time.process_time(), time.monotonic()
            async with watched_loop() as longest:
                await anyio.sleep(2)
            share = (time.process_time() - begun) / (time.monotonic() - wall)
            await (await broker.enqueue(warms_up)).result(timeout=30)
        finally:
            os.kill(pid, signal.SIGKILL)
        assert longest[0] < LONGEST_GAP
        assert share < 0.4
        of_none = [line for line in of(lines, "output") if not line.get("task_id")]
        assert len(of_none) <= process_output.LINES_BETWEEN


async def test_what_a_run_logs_leaves_the_event_loop_to_others(real_server, lines):
    """A process makes a line faster than the worker logs it: nothing else ran until it ended. None is lost."""
    async with RedisBroker(real_server.url) as broker, working(broker, warms_up, logs_much, processes=1):
        await (await broker.enqueue(warms_up)).result(timeout=30)
        handle = await broker.enqueue(logs_much, 2_000)
        async with watched_loop() as longest:
            await handle.result(timeout=60)
    assert longest[0] < LONGEST_GAP
    found = [record for record in lines if record.name == "shop.much"]
    assert [record.getMessage() for record in found] == [f"line {number}" for number in range(2_000)]
    assert {record.__dict__["task_id"] for record in found} == {handle.task_id}
