"""A call that nobody awaits: Python's warning says what to write."""

from __future__ import annotations

import gc
import inspect
import warnings
from importlib import import_module

import pytest

from streamq import Handle, RedisBroker, Worker, Workflow, gather, report_progress, task
from streamq.dead_letter import DeadLetterQueue
from streamq.monitoring import QueueMonitor
from streamq.testing import RunTasks

PACKAGES = [
    f"streamq{name}" for name in ("", ".dead_letter", ".doctor", ".exporters", ".middleware", ".monitoring", ".testing")
]
CALLED_BY_STREAMQ = {
    "ConcurrencyLimit.live", "Resident.live", "SendMiddleware.enqueue", "TracingMiddleware.enqueue",
}  # fmt: skip


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
            gather(handle)
            report_progress(1)
            QueueMonitor(broker=broker).snapshot()
            Worker(broker, [send]).run()
            RunTasks(broker, [send])()
            broker.client.xlen("queue:standard")
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
        "coroutine 'gather [use: await gather(...)]' was never awaited",
        "coroutine 'report_progress [use: await report_progress(...)]' was never awaited",
        "coroutine 'QueueMonitor.snapshot [use: await monitor.snapshot(...)]' was never awaited",
        "coroutine 'Worker.run [use: await worker.run(...)]' was never awaited",
        "coroutine 'RunTasks.__call__ [use: await run_tasks(...)]' was never awaited",
        "coroutine 'Client.execute_command [use: await broker.client.execute_command(...)]' was never awaited",
    ]


def coroutine_functions(of):
    """Yield the names and the coroutine functions of a package and of its classes that are public."""
    for name in of.__all__:
        value = getattr(of, name)
        if inspect.isfunction(value) and inspect.iscoroutinefunction(value):
            yield name, value
        elif inspect.isclass(value) and not issubclass(value, BaseException):
            for method, function in vars(value).items():
                if method[0] != "_" and inspect.iscoroutinefunction(function):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_coroutine_function_names_the_remedy(package):
    """But for those that a worker calls, and not the user."""
    missing = {
        name for name, one in coroutine_functions(import_module(package)) if "[use: await " not in one.__qualname__
    }
    assert missing <= CALLED_BY_STREAMQ


def test_a_name_changes_nothing_else():
    """Signature, name and bound methods are what they were."""
    for method in (RedisBroker.enqueue, Handle.result, Workflow.cancel):
        assert inspect.iscoroutinefunction(method)
        assert method.__name__ in method.__qualname__
    assert [*inspect.signature(Handle.result).parameters] == ["self", "timeout"]
