"""A handler that a test calls itself has what a worker would give it."""

from __future__ import annotations

import anyio
import pytest

from streamq import (
    Delivery,
    Progress,
    RedisBroker,
    batch_task,
    cancel_requested,
    current_batch,
    current_broker,
    current_cancellation,
    current_delivery,
    once,
    report_progress,
    report_progress_sync,
    task,
)
from streamq.errors import ArgumentsError, ConfigurationError
from streamq.logs import task_fields
from streamq.testing import fake_delivery


@task
async def send(to: str, n: int = 1) -> Delivery:
    await report_progress(1, 2, "half", data={"to": to})
    await anyio.to_thread.run_sync(report_progress_sync, 2, 2)
    return current_delivery()


@task(run_in="thread")
def count() -> bool:
    assert current_cancellation()
    return cancel_requested()


@batch_task
async def index(items: list[int]) -> list[str]:
    return [one.task_id for one in current_batch()]


async def test_the_delivery_and_progress():
    with fake_delivery(
        send.call("a@b.c", n=2), attempt=3, task_id="x", headers={"tenant": "t"}, state="pool", tier="bulk"
    ) as fake:
        seen = await send("a@b.c", n=2)
        assert task_fields()["task_id"] == "x"
    assert (seen.task, seen.task_id, seen.attempt, seen.tier_name) == ("send", "x", 3, "bulk")
    assert (seen.args, seen.kwargs, seen.headers, seen.state) == (["a@b.c"], {"n": 2}, {"tenant": "t"}, "pool")
    first, second = fake.progress
    assert first == Progress(1, 2, "half", {"to": "a@b.c"}, first.at)
    assert second.fraction == 1
    assert "2 reports" in repr(fake)


async def test_there_is_none_afterwards():
    with fake_delivery():
        assert current_delivery().task == "fake"
    for function in (current_delivery, current_cancellation, current_batch):
        with pytest.raises(LookupError):
            function()
    with pytest.raises(LookupError):
        await report_progress(1)


def test_cancellation():
    """For a handler in a thread; an async one has none."""
    with fake_delivery(count.call()) as fake:
        assert not count()
        fake.cancel()
        assert count()
    with fake_delivery(send.call("a")), pytest.raises(LookupError):
        current_cancellation()


async def test_batch():
    with fake_delivery(index.call(1), index.call(2), task_id="x"):
        assert await index([1, 2]) == ["x", "x-2"]
    with fake_delivery(index.call(1)):
        assert await index([1]) == ["fake"]


async def test_what_needs_a_broker():
    async with RedisBroker("memory://") as broker:
        with fake_delivery(broker=broker):
            assert current_broker() is broker
            async with once("order:1") as effect:
                assert not effect.done
            async with once("order:1") as effect:
                assert effect.done


def test_what_could_not_be_sent_is_refused():
    with pytest.raises(ArgumentsError), fake_delivery(send.call(1, 2, 3)):
        pass
    with pytest.raises(ConfigurationError, match="is no call"), fake_delivery(send):
        pass
    with pytest.raises(ConfigurationError), fake_delivery(attempt=-1):
        pass
