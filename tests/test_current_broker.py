"""`current_broker()` is the broker of the worker whose handler asks, and an error with a reason elsewhere."""

from __future__ import annotations

import threading

import anyio
import anyio.from_thread
import pytest

from streamq import RedisBroker, Worker, batch_task, current_broker, task

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired("memory")]

sent: list[str] = []


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    sent.clear()


@task
async def note(what: str) -> None:
    sent.append(what)


@task
async def in_loop() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(current_broker().enqueue, note, "from a task of a handler in the loop")
    await current_broker().enqueue(note, "from the loop")


@task
def in_thread() -> None:
    anyio.from_thread.run(current_broker().enqueue, note, "from a thread")


@batch_task(size=2, wait=0.05)
async def in_batch(numbers: list[int]) -> None:
    await current_broker().enqueue_many([note.call(f"from a batch: {number}") for number in numbers])


@task(run_in="process", result_ttl=60)
def in_process() -> str:
    try:
        current_broker()
    except LookupError as error:
        return str(error)
    return "no error"


async def test_a_handler_sends_with_the_broker_of_its_worker(server):
    """In the loop, in tasks of its own, in a thread, in a batch."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([in_loop.call(), in_thread.call(), in_batch.call(1), in_batch.call(2)])
        await Worker(broker, [note, in_loop, in_thread, in_batch], burst=True).run()
    assert sorted(sent) == [
        "from a batch: 1", "from a batch: 2", "from a task of a handler in the loop", "from a thread", "from the loop",
    ]  # fmt: skip


async def test_it_is_the_broker_itself_of_each_worker(server):
    """Two brokers in one loop are not mixed up."""
    found = []

    @task
    async def who(name: str) -> None:
        found.append((name, current_broker()))

    async with RedisBroker(server.url) as one, RedisBroker(server.url, namespace="other") as other:
        for broker in (one, other):
            await broker.enqueue(who, broker.keys.namespace)
            await Worker(broker, [who], burst=True).run()
        assert found == [("queue", one), ("other", other)]


async def test_elsewhere_it_is_an_error(server):
    """Beside a worker, in a thread of one's own."""
    async with RedisBroker(server.url):
        with pytest.raises(LookupError, match="inside a task's handler, or give a broker"):
            current_broker()
    errors: list[Exception] = []

    def ask() -> None:
        try:
            current_broker()
        except LookupError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(errors) == 1


async def test_a_process_has_none(server):
    """It is told why, and what to do."""
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(in_process)
        await Worker(broker, [in_process], burst=True).run()
        assert "pass what it needs as arguments" in await handle.result(timeout=5)
