"""Sizes (P13): what a message can make larger has a bound, in the worker, on the server, and in what people read."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from streamq import RedisBroker, TaskRef, group, step, task
from streamq.consumer.counting import MOST_STRANGERS
from streamq.consumer.unknown_tasks import UnknownTasks
from streamq.errors import PayloadTooLargeError
from streamq.monitoring import QueueMonitor
from streamq.tasks.outcome import Postpone
from streamq.wire.bounds import WORKFLOW_BYTES
from streamq.wire.dead_letter_fields import ERROR_KEPT, EVIDENCE_BYTES
from streamq.wire.delivery import Delivery
from tests.at_work import assert_nothing_left, burst, dead, until, working

held: list[int] = []


@task(retries=0, validate=False)
async def echo(*what: Any, **more: Any) -> Any:
    return what[0] if what else None


@task(retries=0)
async def total(parts: list[str], more: str = "") -> None: ...


@task(retries=0)
async def large(_: str) -> str:
    return "x" * 900_000


@task(retries=0)
async def waits(_: str) -> None:
    held.append(1)
    await anyio.sleep(0.05)


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_a_worker_holds_a_bounded_number_of_bytes(anyio_backend, server):
    """Not as many large messages as it has slots; all of them run."""
    held.clear()
    text = json.dumps(["x" * 500_000])
    for _ in range(30):
        server.command("XADD", "queue:standard", "*", "task", "waits", "args", text)
    most = 0
    async with RedisBroker(server.url) as broker:
        async with working(broker, waits, prefetch_bytes=2 << 20) as worker:

            def done() -> bool:
                nonlocal most
                if worker._consumer is not None:
                    most = max(most, worker._consumer.buffer.held_bytes)
                return len(held) == 30

            await until(done, 20)
        assert 500_000 <= most <= 17 * 500_100  # the first read does not know how large they are
    assert_nothing_left(server)


async def test_a_workflow_that_would_become_too_large_is_refused_at_the_start(anyio_backend):
    """Nothing is sent; the bound is named."""
    async with RedisBroker("memory://") as broker:
        flow = group(*(echo.call(n) for n in range(1000))).then(total, more="x" * 60_000)
        with pytest.raises(PayloadTooLargeError, match=str(int(WORKFLOW_BYTES.highest))):
            await broker.start(flow)
        assert await broker.client.keys("*") == []


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_the_results_of_a_group_are_bounded_together(anyio_backend, server):
    """A member whose result would make the list too large is a dead letter; the list is never built."""
    async with RedisBroker(server.url) as broker:
        await broker.start(group(large.call("a"), *(echo.call(n) for n in range(39))).then(total))
        await burst(broker, echo, large, total)
    (letter,) = dead(server)
    assert (letter["task"], letter["reason"]) == ("large", "rejected")
    assert letter["error_type"].endswith("PayloadTooLargeError")


async def test_strangers_names_are_counted_up_to_a_number(anyio_backend):
    """Then they are one; the worker's own tasks are counted by name whatever came before."""
    async with RedisBroker("memory://") as broker:
        await broker.enqueue_many([TaskRef(f"stranger-{n}").call() for n in range(MOST_STRANGERS * 3)])
        await broker.enqueue_many([TaskRef("x" * 200).call() for n in range(3)])
        await broker.enqueue_many([echo.call(n) for n in range(5)])
        await burst(broker, echo, unknown_wait=0.1)
        metrics = await QueueMonitor(broker=broker).snapshot()
    names = set(metrics.tasks)
    assert len(names) <= MOST_STRANGERS + 2
    assert {"echo", "(other)"} <= names


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_an_entry_that_cannot_be_decoded_is_kept_once_within_a_bound(anyio_backend, server):
    """By bytes and by fields; what does not fit is counted."""
    server.command("XADD", "queue:standard", "*", "task", "echo", "args", "[" + "x" * 1_000_000)
    server.command("XADD", "queue:standard", "*", "task", "echo", *(f"f{n}" for n in range(6000)))
    server.command("XADD", "queue:standard", "*", "task", "echo", "args", "{small")
    async with RedisBroker(server.url) as broker:
        await burst(broker, echo)
    first, second, third = dead(server)
    for letter in (first, second, third):
        assert sum(len(name) + len(value) for name, value in letter.items()) < EVIDENCE_BYTES + 10_000
        assert "args" not in letter
    assert (
        first["cut"] == f"{1_000_001 - (EVIDENCE_BYTES - len('task') - len('echo') - len('args'))} bytes, 0 of 2 fields"
    )
    assert second["cut"].endswith("2001 of 3001 fields")
    assert "cut" not in third
    assert third["raw.args"] == "{small"


@task(retries=0)
async def fails_at_length() -> None:
    raise ValueError("x" * 5_000_000)


async def test_an_error_is_kept_and_logged_within_a_bound(anyio_backend, caplog):
    """Its message, and each line of the log."""
    caplog.set_level("DEBUG")
    async with RedisBroker("memory://") as broker:
        await broker.enqueue(fails_at_length)
        await burst(broker, fails_at_length)
        ((_, letter),) = await broker.client.xrange("queue:dead")
    assert len(letter[b"error"]) <= ERROR_KEPT
    assert len(letter[b"traceback"]) <= 8_000
    assert all(len(record.getMessage()) < 20_000 for record in caplog.records)


def test_the_pause_of_an_unknown_task_grows():
    """By half of what it has waited, up to 5 s; never beyond its wait."""
    tasks, now, pauses = UnknownTasks({b"echo": echo}, wait=300), 1.8e9, []
    for waited in (0, 2, 8, 50, 200, 298):
        fields = [b"task", b"nobody", b"unknown_since", b"%.0f" % ((now - waited) * 1000)]
        outcome = tasks.outcome(Delivery(1, "standard", b"1-1", fields), now)
        assert isinstance(outcome, Postpone)
        pauses.append(outcome.delay)
    assert pauses[:2] == [2.0, 2.0]
    assert pauses[2:5] == [pytest.approx(4, abs=0.1), 5.0, 5.0]
    assert pauses[5] == pytest.approx(2, abs=0.1)


def test_a_step_is_what_a_group_may_have():
    """So that the imports of this module are what a program writes."""
    assert step(total) is not None
