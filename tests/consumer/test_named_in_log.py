"""A line of the log about one task names it, and has its id."""

from __future__ import annotations

import re

import pytest

from streamq import RedisBroker, RetryLater, task
from streamq.tasks.batch import batch_task
from tests.at_work import burst

pytestmark = pytest.mark.paired("memory")


@task(retries=0, result_ttl=60)
async def odd_result() -> object:
    return object()


@task(retries=0)
async def never() -> None:
    raise RetryLater(after=float("nan"))


@task(retries=1, backoff=lambda _n, _error: -5, max_backoff=0.01)
async def soon() -> None:
    raise ValueError("no")


@task
async def takes(value: int) -> None: ...


@batch_task(size=1, retries=0, result_ttl=60)
async def odd_batch(items: list[int]) -> list[object]:
    return [object() for _ in items]


async def test_each_line_about_a_task_has_its_id(server, caplog):
    """Also where a result, a request or a backoff cannot be used."""
    async with RedisBroker(server.url) as broker:
        for one, ident in ((odd_result, "id-1"), (never, "id-2"), (soon, "id-3")):
            await broker.enqueue(one.options(task_id=ident))
        await broker.enqueue(odd_batch.options(task_id="id-4"), 1)
        await broker.start(odd_result.call().then(takes), workflow_id="id-5")
        await burst(broker, odd_result, never, soon, odd_batch, takes)
    lines = caplog.text
    assert "task odd_result id-1: its result cannot be kept" in lines
    assert re.search("<Delivery never id-2 .*> asked to run again, and has failed", lines)
    assert re.search("<Delivery soon id-3 .*>: backoff ", lines)
    assert "task odd_batch id-4: its result cannot be kept" in lines
    assert "task odd_result id-5.1: task 'takes'" in lines
    about = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert [line for line in about if not any(f"id-{n}" in line for n in range(1, 6))] == []
