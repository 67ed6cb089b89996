"""A replay takes away the results that say that the later steps of a workflow failed: a new wait gets the new end."""

from __future__ import annotations

import pytest

from streamq import RedisBroker, Status, group, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import ResultTimeoutError, TaskFailedError
from tests.at_work import burst, working

pytestmark = pytest.mark.paired("memory")

up: set[str] = set()


@task(retries=0, result_ttl=60)
async def convert(currency: str) -> str:
    if currency not in up:
        raise KeyError(currency)
    return currency


@task(result_ttl=60)
async def join(parts: list[str]) -> list[str]:
    return parts


@pytest.fixture
async def broker(server):
    up.clear()
    up.add("EUR")
    async with RedisBroker(server.url) as opened:
        yield opened


async def died(broker, flow):
    started = await broker.start(flow)
    await burst(broker, convert, join)
    with pytest.raises(TaskFailedError, match="upstream"):
        await started.result(timeout=1)
    up.add("CHF")
    return started


@pytest.mark.parametrize("shape", ["chain", "group", "group in the middle"])
async def test_a_wait_right_after_the_replay_gets_the_new_end(server, broker, shape):
    """Not the older failure, wherever the dead step stands; and the status of the later steps is that of now."""
    flow = {
        "chain": convert.call("CHF").then(convert).then(convert),
        "group": group(convert.call("EUR"), convert.call("CHF").then(convert)).then(join),
        "group in the middle": convert.call("CHF").then(group(convert.call("EUR"), convert.call("EUR"))).then(join),
    }[shape]
    started = await died(broker, flow)
    assert await started.steps[-1].status() is Status.FAILED
    assert len(await DeadLetterQueue(broker=broker).replay(reason="retries_exhausted")) == 1
    assert await started.steps[-1].status() is Status.UNKNOWN
    with pytest.raises(ResultTimeoutError):
        await started.result(timeout=0)
    async with working(broker, convert, join):
        got = await started.result(timeout=5)
    assert got == {"chain": "CHF", "group": ["EUR", "CHF"], "group in the middle": ["EUR", "EUR"]}[shape]


async def test_a_failure_of_another_member_stays(server, broker):
    """Two members died: the end says of one of them that it failed, until that one is replayed, too."""
    flow = group(convert.call("CHF").then(convert), convert.call("CHF").then(convert)).then(join)
    started = await died(broker, flow)
    letters = DeadLetterQueue(broker=broker)
    with pytest.raises(TaskFailedError) as caught:
        await started.result(timeout=1)
    dead = [started.steps[0].task_id, started.steps[2].task_id]
    named = next(task_id for task_id in dead if f" {task_id} before" in str(caught.value))
    dead.remove(named)
    await letters.replay(task_id=dead[0])
    with pytest.raises(TaskFailedError, match=named):
        await started.result(timeout=1)
    await letters.replay(task_id=named)
    async with working(broker, convert, join):
        assert await started.result(timeout=5) == ["CHF", "CHF"]


async def test_the_dead_task_keeps_its_failure(server, broker):
    """It did fail, and its replay is a task with another id: a wait for it would never end."""
    started = await died(broker, convert.call("CHF").then(convert))
    await DeadLetterQueue(broker=broker).replay(task_id=started.steps[0].task_id)
    with pytest.raises(TaskFailedError, match="retries_exhausted"):
        await started.steps[0].result(timeout=1)


async def test_a_replay_that_is_refused_leaves_the_results(server, broker):
    """Another client took the dead letter first."""
    started = await died(broker, convert.call("CHF").then(convert))
    letters = DeadLetterQueue(broker=broker)
    letter = await letters.find(started.steps[0].task_id)
    await letters.purge()
    with pytest.raises(LookupError):
        await letters.replay_entry(letter)
    with pytest.raises(TaskFailedError, match="upstream"):
        await started.result(timeout=1)


async def test_without_the_right_the_replay_goes_on_and_the_old_results_stay(real_server, anyio_backend):
    """An operator who may not delete results: as before, they are there until the new ones."""
    up.clear()
    async with RedisBroker(real_server.url) as admin:
        started = await died(admin, convert.call("CHF").then(convert))
        keys = ("~queue:dead", "~queue:standard*", "~queue:workflow:*")
        real_server.command("ACL", "SETUSER", "bob", "reset", "on", ">pw", *keys, "+@all")
        try:
            async with RedisBroker(real_server.url.replace("unix://", "unix://bob:pw@")) as broker:
                await DeadLetterQueue(broker=broker).replay(task_id=started.steps[0].task_id)
        finally:
            real_server.command("ACL", "DELUSER", "bob")
        with pytest.raises(TaskFailedError, match="upstream"):
            await started.result(timeout=1)
        await burst(admin, convert)
        assert await started.result(timeout=1) == "CHF"
