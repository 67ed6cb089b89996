"""P14: a broker that is used elsewhere than it was opened says so, at that call, and harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from streamq import RedisBroker, Worker, gather, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import WrongLoopError
from streamq.middleware import ConcurrencyLimit, MiddlewareChain, RateLimitMiddleware
from streamq.monitoring import QueueMonitor
from tests.cancelling import sockets

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired]

runs: list[Any] = []


@task(result_ttl=60)
async def child(number: int) -> int:
    runs.append(number)
    return number


@pytest.fixture(autouse=True)
def no_runs() -> None:
    runs.clear()


@pytest.fixture
def backend(anyio_backend) -> str:
    return anyio_backend


@asynccontextmanager
async def at_work(url: str, *tasks: Any, **options: Any):
    """A broker and its worker, which must be well at the end."""
    async with RedisBroker(url) as broker, anyio.create_task_group() as group:
        worker = Worker(broker, [child, *tasks], grace_period=2, **options)
        await group.start(worker.run)
        yield broker, worker
        handle = await broker.enqueue(child, -1)
        assert await handle.result(timeout=10) == -1
        assert worker.health.trouble is None
        worker.stop()


async def elsewhere(backend: str, function: Callable[[], Any]) -> Any:
    """Await what `function` returns in a loop of its own, in a thread of its own."""

    async def call() -> Any:
        with anyio.fail_after(10):
            return await function()

    return await anyio.to_thread.run_sync(lambda: anyio.run(call, backend=backend))


# --- another thread, another loop ---------------------------------------------------------------------


async def test_a_sync_handler_with_a_loop_of_its_own_fails_with_the_remedy_and_nobody_else_does(server, backend):
    """Its thread has no part in the loop of the broker."""
    errors = []

    @task(retries=0)
    def parent(number: int) -> None:
        try:
            anyio.run(broker.enqueue, child, number, backend=backend)
        except WrongLoopError as error:
            errors.append(error)
            raise

    async with at_work(server.url, parent, concurrency=3) as (broker, _):
        await broker.enqueue_many([parent.call(n) for n in range(6)])
        with anyio.fail_after(15):
            while server.command("XLEN", "queue:dead") < 6:
                await anyio.sleep(0.01)
    assert len(errors) == 6
    assert runs == [-1]
    text = str(errors[0])
    assert "was opened in thread 'MainThread'" in text or "was opened in thread" in text
    assert "another thread" in text
    assert "anyio.from_thread.run(lambda: broker.enqueue(...))" in text
    assert "BlockingPortal" in text
    assert errors[0].forked is False


async def test_the_server_is_named_as_its_url_was_given():
    """An embedded one, too: `memory://shop` was some socket."""
    async with RedisBroker("memory://shop") as broker:
        error = await anyio.to_thread.run_sync(broker.client.owner.error)
    assert str(error).startswith("the broker or client of memory://shop was opened in thread")


async def test_a_sync_handler_sends_by_the_way_that_is_documented(server):
    """`anyio.from_thread.run` carries the call into the loop of the broker."""

    @task
    def parent(number: int) -> None:
        anyio.from_thread.run(broker.enqueue, child, number)

    async with at_work(server.url, parent) as (broker, _):
        await broker.enqueue_many([parent.call(n) for n in range(5)])
        with anyio.fail_after(10):
            while len(runs) < 5:
                await anyio.sleep(0.01)
    assert sorted(runs)[1:] == list(range(5))


async def test_a_thread_of_the_program_sends_through_a_portal(server):
    """A thread that anyio did not start."""
    sent = []
    async with RedisBroker(server.url) as broker, anyio.from_thread.BlockingPortal() as portal:
        thread = threading.Thread(target=lambda: sent.append(portal.call(broker.enqueue, child, 1)))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert sent[0].fresh


USES: dict[str, Callable[[RedisBroker, Any], Any]] = {
    "enqueue": lambda broker, handle: broker.enqueue(child, 1),
    "enqueue durably": lambda broker, handle: broker.enqueue(child.options(durable="replica"), 1),
    "enqueue many": lambda broker, handle: broker.enqueue_many([child.call(1)]),
    "client": lambda broker, handle: broker.client.ping(),
    "pipeline": lambda broker, handle: broker.client.pipeline().ping().execute(),
    "features": lambda broker, handle: broker.client.server_features(),
    "reset": lambda broker, handle: broker.client.reset(),
    "result": lambda broker, handle: handle.result(timeout=5),
    "status": lambda broker, handle: handle.status(),
    "cancel": lambda broker, handle: handle.cancel(),
    "watch": lambda broker, handle: anext(handle.watch(timeout=5)),
    "gather": lambda broker, handle: gather(handle),
    "consume": lambda broker, handle: anext(broker.consume()),
    "schedules": lambda broker, handle: broker.schedules(),
    "monitor": lambda broker, handle: QueueMonitor(broker=broker).snapshot(),
    "dead letters": lambda broker, handle: DeadLetterQueue(broker=broker).peek(),
    "worker": lambda broker, handle: Worker(broker, [child]).run(),
    "leave": lambda broker, handle: broker.__aexit__(None, None, None),
}


@pytest.mark.parametrize("use", USES)
async def test_each_use_in_another_loop_is_an_error_at_that_call(server, backend, use):
    """Nothing is sent, and the broker goes on."""
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(child.options(delay=3600), 1)
        before = server.keys()
        with pytest.raises(WrongLoopError):
            await elsewhere(backend, lambda: USES[use](broker, handle))
        assert server.keys() == before
        assert await handle.cancel()


async def test_a_delivery_is_settled_only_where_it_is_consumed(server, backend):
    """`ack` and `nack` touch the loop of the consumer."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(child, 1)
        async with contextlib.aclosing(broker.consume()) as deliveries:
            async for delivery in deliveries:
                for settle in (broker.ack, broker.nack):
                    with pytest.raises(WrongLoopError):
                        await elsewhere(backend, partial(settle, delivery.task_id))
                await broker.ack(delivery.task_id)
                break
    assert server.command("XLEN", "queue:standard") == 0


def test_a_loop_that_follows_in_the_same_thread_is_another_loop(server):
    """As with one `asyncio.Runner` for each request."""
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        broker = RedisBroker(server.url)
        opened, leave = asyncio.Event(), asyncio.Event()

        async def live() -> None:
            async with broker:
                await broker.client.ping()
                opened.set()
                await leave.wait()

        async def use() -> None:
            with pytest.raises(WrongLoopError, match="another event loop"):
                await asyncio.wait_for(broker.enqueue(child, 1), 5)

        async def end() -> None:
            assert await broker.client.ping()
            leave.set()
            await living

        living = first.create_task(live())
        first.run_until_complete(opened.wait())
        second.run_until_complete(use())
        first.run_until_complete(end())
    finally:
        first.close()
        second.close()


async def test_a_worker_is_stopped_from_any_thread(server):
    """At once, though its loop has nothing else to do."""
    async with RedisBroker(server.url) as broker, anyio.create_task_group() as group:
        worker = Worker(broker, [child])
        await group.start(worker.run)
        await anyio.sleep(0.1)
        stopped = time.monotonic()
        threading.Thread(target=worker.stop).start()
        with anyio.fail_after(3):
            while worker.state != "stopped":
                await anyio.sleep(0.01)
    assert time.monotonic() - stopped < 3


async def test_a_worker_is_stopped_from_a_signal_handler(server):
    """The handler runs in the loop's thread while the loop waits for its selector."""
    async with RedisBroker(server.url) as broker:
        worker = Worker(broker, [child])
        before = signal.signal(signal.SIGUSR1, lambda *_: worker.stop())
        try:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with anyio.fail_after(3):
                await worker.run()
        finally:
            signal.signal(signal.SIGUSR1, before)


async def test_middleware_may_be_shared_by_workers_in_two_loops(server, backend):
    """Each worker has its own broker; the limit is one object."""
    limit = MiddlewareChain()
    limit.add(ConcurrencyLimit(1, key=lambda context: "one"))
    limit.add(RateLimitMiddleware(max_per_second=200.0))

    async def work() -> None:
        async with RedisBroker(server.url) as broker:
            await Worker(broker, [child], middleware=limit, burst=True, concurrency=4).run()

    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([child.call(n) for n in range(20)])
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            group.start_soon(elsewhere, backend, work)
    assert sorted(runs) == list(range(20))


# --- after a fork ---------------------------------------------------------------------------------------


def in_child(function: Callable[[], Any]) -> str:
    """Call a function in a forked child and return what it returned, or raised, as text."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12: a process with threads is forked
        pid = os.fork()
    if pid == 0:
        try:
            said = str(function())
        except BaseException as error:  # noqa: BLE001 - for the parent
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


async def test_a_forked_child_that_uses_the_broker_gets_an_error_and_takes_no_reply_of_its_parent(real_server):
    """Each reply of the parent is its own, however often a child tries."""
    wrong = []
    ended = anyio.Event()

    async def alone(broker: RedisBroker) -> None:
        number = 0
        while not ended.is_set():
            number += 1
            if await broker.client.echo(f"{number}") != f"{number}".encode():
                wrong.append(number)
            await anyio.sleep(0.0005)

    def use() -> str:
        said = in_child(lambda: asyncio.run(broker.client.echo("child")))
        assert said.startswith("WrongLoopError")
        assert "open a new RedisBroker in the child process" in said
        return said

    async with RedisBroker(real_server.url) as broker, anyio.create_task_group() as group:
        group.start_soon(alone, broker)
        for _ in range(10):
            await anyio.to_thread.run_sync(use)
        ended.set()
    assert wrong == []


async def test_a_forked_child_has_no_socket_of_its_parent_and_opens_its_own(real_server):
    """So nothing that it does, nor its end, can reach the server over them."""

    async def own() -> int:
        async with RedisBroker(real_server.url) as another:
            await another.enqueue(child, 1)
        return 1

    def look() -> tuple[int, int]:
        there = sockets()
        return max(0, there - before), asyncio.run(own())

    before = sockets()
    async with at_work(real_server.url):
        with anyio.fail_after(8):
            while sockets() < before + 3:  # the shared one, the reading one, the listening one
                await anyio.sleep(0.01)
        assert await anyio.to_thread.run_sync(in_child, look) == "(0, 1)"


async def test_a_forked_child_ends_nothing_of_its_parent(real_server):
    """Its subscription, its blocked read, its connections and its worker stay, however the child ends."""

    def leave_by_an_error() -> None:
        raise SystemExit(3)

    async with at_work(real_server.url) as (broker, worker), anyio.create_task_group() as group:
        handle = await broker.enqueue(child.options(delay=3600), 1)
        group.start_soon(handle.result)
        with anyio.fail_after(10):
            while not real_server.command("PUBSUB", "NUMSUB", handle.result_key)[1]:
                await anyio.sleep(0.01)
        clients = real_server.command("CLIENT", "LIST").count(b"name=streamq")
        assert in_child(leave_by_an_error).startswith("SystemExit")
        assert in_child(worker.stop).startswith("WrongLoopError")
        await anyio.sleep(0.2)
        assert real_server.command("CLIENT", "LIST").count(b"name=streamq") == clients
        assert real_server.command("PUBSUB", "NUMSUB", handle.result_key)[1] == 1
        assert worker.state == "running"
        group.cancel_scope.cancel()


async def test_a_process_of_multiprocessing_ends_without_a_word_to_the_server(real_server):
    """Started with `fork` in a handler's thread, as libraries do."""
    context = multiprocessing.get_context("fork")

    @task
    def parent() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            process = context.Process(target=time.sleep, args=(0.05,))
            process.start()
        process.join(10)
        runs.append(process.exitcode)

    async with at_work(real_server.url, parent) as (broker, _):
        await broker.enqueue(parent)
        with anyio.fail_after(10):
            while not runs:
                await anyio.sleep(0.01)
    assert runs[0] == 0


async def test_an_embedded_server_stays_its_parents():
    """A child that leaves its copy of the block does not stop the server."""
    async with RedisBroker("embedded://") as broker:
        await broker.client.ping()
        server = broker._resources._open[1]
        assert in_child(server.stop) == "None"
        assert await broker.client.ping()
        said = await anyio.to_thread.run_sync(in_child, lambda: asyncio.run(broker.enqueue(child, 1)))
        assert said.startswith("WrongLoopError")
