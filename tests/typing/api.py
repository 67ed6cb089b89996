"""Right and wrong uses of the public API. Checked by mypy and pyright, never run.

Every wrong line carries an ignore for both; an ignore that is not needed is an error, so a
wrong line that a checker lets pass fails the test as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from streamq import Call, Delivery, Handle, Priority, RedisBroker, RetryLater, Status, TaskRef, Tier, Worker, task
from streamq.middleware import Context, MiddlewareChain
from streamq.middleware.chain import CallNext
from streamq.tasks import AsyncTask, SyncTask


@task
async def send(to: str, n: int = 1) -> dict[str, int]:
    return {to: n}


@task(retries=3, timeout=60, result_ttl=10)
def resize(path: str, *, width: int) -> bytes:
    return path.encode() * width


kind_of_send: AsyncTask[..., dict[str, int]] = send
kind_of_resize: SyncTask[..., bytes] = resize


async def calling() -> None:
    assert_type(await send("a", n=2), dict[str, int])
    assert_type(resize("a", width=2), bytes)
    await send(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    resize("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def sending(broker: RedisBroker) -> None:
    handle = await broker.enqueue(send, "a@b.c", n=2)
    assert_type(handle, Handle[dict[str, int]])
    assert_type(await handle.result(timeout=10), dict[str, int])
    assert_type(await handle.status(), Status)
    assert_type(await handle.cancel(), bool)
    assert_type(await (await broker.enqueue(resize, "x", width=1)).result(), bytes)
    await broker.enqueue(send)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await broker.enqueue(send, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await broker.enqueue(send, "a", m=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await broker.enqueue(send, "a", n="2")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await broker.enqueue(resize, "a", 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await broker.enqueue(print, "a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def sending_by_name(broker: RedisBroker) -> None:
    assert_type(await broker.enqueue("send", "a@b.c", priority=Priority.HIGH), Handle[Any])
    assert_type(await broker.enqueue(TaskRef("send").options(delay=5), 1, x=2), Handle[Any])


async def with_options(broker: RedisBroker) -> None:
    low = send.options(priority=Priority.LOW, delay=30, retries=5)
    assert_type(await broker.enqueue(low, "a@b.c"), Handle[dict[str, int]])
    send.options(at=datetime.now(UTC), expires=timedelta(hours=1), headers={"a": 1}, task_id="x", tier="bulk")
    send.options(dedup_key="k", dedup_ttl=5, timeout=1.5, result_ttl=10)
    send.options(dealy=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    send.options(retries="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await broker.enqueue(low, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def sending_many(broker: RedisBroker) -> None:
    assert_type(send.call("a"), Call[dict[str, int]])
    handles = await broker.enqueue_many([send.call("a"), resize.call("b", width=3), TaskRef("x").call(1)])
    assert_type(handles, list[Handle[Any]])
    send.call(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await broker.enqueue_many([send])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def taking(broker: RedisBroker) -> None:
    async for message in broker.consume(visibility_timeout=30):
        assert_type(message, Delivery)
        assert_type(message.task_id, str)
        assert_type(message.args, list[Any])
        await broker.ack(message.task_id)
        await broker.nack(message.task_id, error=ValueError())


async def log(context: Context, call_next: CallNext) -> Any:
    if context.delivery.attempt > 5:
        raise RetryLater("busy", after=3.0)
    return await call_next(context)


async def wrong_middleware(context: str) -> None: ...


@asynccontextmanager
async def lifespan(worker: Worker) -> AsyncIterator[dict[str, int]]:
    yield {worker.name: 1}


async def working() -> None:
    chain = MiddlewareChain(log).add(log)
    chain.add(wrong_middleware)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with RedisBroker("memory://", tiers=[Tier("a", 3, threshold=5), Tier("b")]) as broker:
        assert_type(broker, RedisBroker)
        worker = Worker(broker, tasks=[send, resize], middleware=chain, concurrency=100, lifespan=lifespan)
        await worker.run()
        worker.stop()
        Worker(broker, tasks=["send"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    RetryLater("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def declaring() -> None:
    task(retries="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(run_in="fork")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
