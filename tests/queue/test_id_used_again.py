"""P9: a task id that is used again after its hour: what the earlier task has left is not taken for the new one's."""

from __future__ import annotations

import anyio
import pytest

from streamq import RedisBroker, Status, group, report_progress, task
from streamq.errors import ResultTimeoutError, TaskFailedError
from streamq.queue.sending import ACCEPTED_KEPT
from tests.at_work import burst, working

pytestmark = pytest.mark.paired("memory")

KEPT = 2 * ACCEPTED_KEPT
WAYS = {
    "now": {},
    "later": {"delay": 0.01},
    "with a deduplication key": {"dedup_key": "k"},
    "debounce": {"dedup_key": "k", "dedup_mode": "debounce", "delay": 0.01},
    "keep_last": {"dedup_key": "k", "dedup_mode": "keep_last"},
}


@task(result_ttl=KEPT, retries=0)
async def report(day: str) -> str:
    if day == "bad":
        raise ValueError(day)
    await report_progress(1, 2)
    return day


@task(result_ttl=KEPT, retries=0)
async def collect(days: list[str]) -> list[str]:
    return days


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def an_hour_later(server):
    """Let the guard keys expire, those of task ids and those of deduplication."""
    for pattern in ("queue:id:*", "queue:dedup:*", "queue:latest:*"):
        for key in server.command("KEYS", pattern):
            server.command("DEL", key)


@pytest.mark.parametrize("before", ["monday", "bad"])
@pytest.mark.parametrize("way", WAYS)
async def test_the_older_result_is_gone(server, broker, way, before):
    """Whether the older task succeeded or failed, and however the new one is sent; and so is its progress."""
    mine = report.options(task_id="daily", **WAYS[way])
    await broker.enqueue(mine, before)
    await burst(broker, report)
    assert server.command("EXISTS", "queue:result:daily") == 1
    assert not (await broker.enqueue(mine, "too early")).fresh
    assert server.command("EXISTS", "queue:result:daily") == 1, "a refused enqueue has changed nothing"
    an_hour_later(server)
    handle = await broker.enqueue(mine, "tuesday")
    assert handle.fresh
    assert await handle.status() in (Status.QUEUED, Status.DELAYED)
    assert await handle.progress() is None
    with pytest.raises(ResultTimeoutError):
        await handle.result(timeout=0)
    async with working(broker, report):
        assert await handle.result(timeout=5) == "tuesday"


async def test_without_the_right_the_task_is_sent_and_the_older_result_stays(real_server, anyio_backend):
    """A producer that may send and no more: its tasks are accepted as ever."""
    async with RedisBroker(real_server.url) as admin:
        await admin.enqueue(report.options(task_id="daily"), "monday")
        await burst(admin, report)
        an_hour_later(real_server)
        rules = ("reset", "on", ">pw", "~queue:standard*", "~queue:id:*", "&*", "+@all")
        real_server.command("ACL", "SETUSER", "bob", *rules)
        try:
            async with RedisBroker(real_server.url.replace("unix://", "unix://bob:pw@")) as broker:
                assert (await broker.enqueue(report.options(task_id="daily"), "tuesday")).fresh
        finally:
            real_server.command("ACL", "DELUSER", "bob")
        assert await admin.handle("daily").result(timeout=1) == "monday"
        await burst(admin, report)
        assert await admin.handle("daily").result(timeout=1) == "tuesday"


@pytest.mark.parametrize("own", [False, True], ids=["workflow_id", "task_id"])
async def test_a_workflow_that_is_started_again_waits_for_its_own_end(server, broker, own):
    """By the id of the workflow, or by those of its steps."""
    last = report.options(task_id="last") if own else report

    async def start(day):
        return await broker.start(report.call(day).then(last), workflow_id=None if own else "w")

    first = await start("monday")
    await burst(broker, report)
    assert await first.result(timeout=1) == "monday"
    an_hour_later(server)
    second = await start("tuesday")
    assert second.fresh
    with pytest.raises(ResultTimeoutError):
        await second.result(timeout=0)
    await burst(broker, report)
    assert await second.result(timeout=1) == "tuesday"


async def test_a_group_that_is_started_again_joins_no_older_result(server, broker):
    """A member of the older one had succeeded, another had failed: what was kept for a replay is another day's."""
    gate = anyio.Event()

    @task(retries=0)
    async def slow(day: str) -> str:
        await gate.wait()
        return day

    old = await broker.start(group(report.call("monday"), report.call("bad")).then(collect), workflow_id="w")
    await burst(broker, report)
    with pytest.raises(TaskFailedError, match="before it failed"):
        await old.result(timeout=1)
    an_hour_later(server)
    new = await broker.start(group(slow.call("tuesday"), report.call("tuesday")).then(collect), workflow_id="w")
    async with working(broker, report, slow, collect):
        assert await new.steps[1].result(timeout=5) == "tuesday"
        await anyio.sleep(0.1)
        gate.set()
        assert await new.result(timeout=5) == ["tuesday", "tuesday"]
