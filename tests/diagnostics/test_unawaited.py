"""A call that nobody awaits: Python's warning says what to write."""

from __future__ import annotations

import gc
import inspect
import warnings

import pytest

from streamq import Handle, RedisBroker, Workflow, task
from streamq.dead_letter import DeadLetterQueue


@task
async def send(to: str) -> str:
    return to


@pytest.mark.paired("memory")
async def test_the_warning_says_what_to_write(anyio_backend):
    """Of what sends, and of what waits for its end; nothing was sent."""
    async with RedisBroker("memory://") as broker:
        handle = await broker.enqueue(send, "a")
        flow = await broker.start(send.call("a"))
        before = await broker.client.xlen("queue:standard")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            broker.enqueue(send, "a")
            broker.enqueue_many([send.call("a")])
            broker.start(send.call("a"))
            handle.result()
            flow.result()
            flow.progress()
            DeadLetterQueue(broker=broker).purge()
            gc.collect()
        assert await broker.client.xlen("queue:standard") == before
    texts = [str(one.message).partition("\n")[0] for one in caught if one.category is RuntimeWarning]
    assert texts == [
        "coroutine 'RedisBroker.enqueue [use: await broker.enqueue(...)]' was never awaited",
        "coroutine 'RedisBroker.enqueue_many [use: await broker.enqueue_many(...)]' was never awaited",
        "coroutine 'RedisBroker.start [use: await broker.start(...)]' was never awaited",
        "coroutine 'Handle.result [use: await handle.result(...)]' was never awaited",
        "coroutine 'Workflow.result [use: await workflow.result(...)]' was never awaited",
        "coroutine 'WorkflowHandle.progress [use: await workflow.progress(...)]' was never awaited",
        "coroutine 'DeadLetterQueue.purge [use: await dlq.purge(...)]' was never awaited",
    ]


def test_a_name_changes_nothing_else():
    """Signature, name and bound methods are what they were."""
    for method in (RedisBroker.enqueue, Handle.result, Workflow.cancel):
        assert inspect.iscoroutinefunction(method)
        assert method.__name__ in method.__qualname__
    assert [*inspect.signature(Handle.result).parameters] == ["self", "timeout"]
