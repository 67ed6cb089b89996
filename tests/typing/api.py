"""Right and wrong uses of the public API. Checked by mypy and pyright, never run.

Every wrong line carries an ignore for both; an ignore that is not needed is an error, so a
wrong line that a checker lets pass fails the test as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import anyio.from_thread
from anyio.from_thread import BlockingPortal

from streamq import (
    Call,
    Cron,
    Delays,
    Delivery,
    Exhausted,
    Fixed,
    Handle,
    Linear,
    Priority,
    Progress,
    RedisBroker,
    RetryLater,
    Status,
    StepState,
    SyncBroker,
    SyncHandle,
    SyncWorkflow,
    SyncWorkflowHandle,
    TaskRef,
    Tier,
    Worker,
    Workflow,
    WorkflowHandle,
    WorkflowState,
    WorkflowStatus,
    as_completed,
    batch_task,
    current_batch,
    gather,
    group,
    step,
    task,
)
from streamq.errors import TaskFailedError
from streamq.middleware import Context, MiddlewareChain
from streamq.middleware.chain import CallNext
from streamq.tasks.retry_policy import Uniform
from streamq.tasks.task import AsyncTask, SyncTask
from streamq.wire.workflow import Chain, Group


@task
async def send(to: str, n: int = 1) -> dict[str, int]:
    return {to: n}


@task(retries=3, timeout=60, result_ttl=10)
def resize(path: str, *, width: int) -> bytes:
    return path.encode() * width


@task
async def fetch() -> float:
    return 0.5


kind_of_send: AsyncTask[..., dict[str, int]] = send
kind_of_resize: SyncTask[..., bytes] = resize


Six = tuple[dict[str, int], bytes, float, bytes, float, dict[str, int]]


async def calling() -> None:
    assert_type(await send("a", n=2), dict[str, int])
    assert_type(resize("a", width=2), bytes)
    await send(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    resize("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def sending(broker: RedisBroker) -> None:
    handle = await broker.enqueue(send, "a@b.c", n=2)
    assert_type(handle, Handle[dict[str, int]])
    assert_type(await broker.enqueue(send.call("a", n=2), priority=5, delay=3), Handle[dict[str, int]])
    await broker.enqueue(send.call("a"), n=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert_type(await handle.result(timeout=10), dict[str, int])
    assert_type(await handle.status(), Status)
    assert_type(await handle.cancel(), bool)
    assert_type(await (await broker.enqueue(resize, "x", width=1)).result(), bytes)
    other = await broker.enqueue(resize, "x", width=1)
    third = await broker.enqueue(fetch)
    many: list[Handle[bytes]] = await broker.enqueue_many([resize.call("a", width=3), resize.call("b", width=3)])
    assert_type(await gather(handle, other, timeout=5), tuple[dict[str, int], bytes])
    assert_type(await gather(handle, other, third, other, third, handle), Six)
    assert_type(await gather(*many), tuple[bytes, ...])
    assert_type(await gather(other, other, other, other, other, other, other), tuple[bytes, ...])
    assert_type(await gather(*many, return_exceptions=True), tuple[bytes | TaskFailedError, ...])
    assert_type(await gather(handle, return_exceptions=True), tuple[dict[str, int] | TaskFailedError])
    number, picture = await gather(await broker.enqueue(fetch), await broker.enqueue(resize, "x", width=1), timeout=5)
    assert_type(number, float)
    assert_type(picture, bytes)
    of_flag = await gather(handle, other, return_exceptions=bool(number))
    assert_type(of_flag, tuple[dict[str, int] | TaskFailedError, bytes | TaskFailedError])
    await gather(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async for ended in as_completed(handle, timeout=5):
        assert_type(ended, Handle[dict[str, int]])
    assert_type(await handle.progress(), Progress | None)
    async for progress in handle.watch(timeout=5):
        assert_type(progress.fraction, float | None)
    await broker.enqueue(send)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await broker.enqueue(send, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await broker.enqueue(send, "a", m=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await broker.enqueue(send, "a", n="2")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await broker.enqueue(resize, "a", 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await broker.enqueue(print, "a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def sending_from_threads(broker: RedisBroker, portal: BlockingPortal) -> None:
    """A function without arguments: pyright takes no function with overloads and its arguments apart."""
    assert_type(anyio.from_thread.run(lambda: broker.enqueue(send, "x")), Handle[dict[str, int]])
    assert_type(anyio.from_thread.run(lambda: broker.enqueue(resize, "x", width=1)), Handle[bytes])
    assert_type(portal.call(lambda: broker.enqueue(resize.options(delay=5), "x", width=1)), Handle[bytes])


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
    assert_type(await broker.enqueue_many([resize.call("b", width=3)] * 5), list[Handle[bytes]])
    assert_type(await broker.enqueue_many(send.call(one) for one in "ab"), list[Handle[dict[str, int]]])
    send.call(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await broker.enqueue_many([send])  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


@task
async def report(sent: Mapping[str, int], title: str = "") -> str:
    return title


@task
async def summary(reports: list[str], *, limit: int = 3) -> int:
    return len(reports[:limit])


async def workflows(broker: RedisBroker) -> None:
    assert_type(send.call("a").then(report, title="x"), Chain[str])
    assert_type(send.call("a").then(report).then(resize, width=3), Chain[bytes])
    assert_type(send.call("a").then(report.options(retries=1)), Chain[str])
    assert_type(send.call("a").then(resize.call("x", width=1)), Chain[bytes])
    assert_type(send.call("a").then("report", 1), Chain[Any])
    assert_type(send.call("a").then(TaskRef("report"), 1), Chain[Any])
    assert_type(group(send.call("a").then(report), send.call("b").then(report)), Group[list[str]])
    assert_type(group(send.call("a").then(report)).then(summary, limit=5), Chain[int])
    assert_type(send.call("a").then(group(step(report), step(report, title="x"))), Chain[list[str]])
    assert_type(await broker.start(send.call("a").then(report), workflow_id="x"), Workflow[str])
    assert_type(await (await broker.start(group(send.call("a")))).result(timeout=5), list[dict[str, int]])
    whole: WorkflowHandle = await broker.start(send.call("a"))
    assert_type(broker.workflow("x"), WorkflowHandle)
    assert_type(await whole.status(), WorkflowStatus)
    assert_type((await whole.status()).counts, dict[StepState, int])
    assert_type(await whole.progress(), Progress | None)
    assert_type(await whole.cancel(), bool)
    send.call("a").then(resize, width=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    send.call("a").then(report, titel="x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    send.call("a").then(report, title=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    group(send.call("a")).then(summary)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    step(resize, widht=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await broker.start(send)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


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


# --- retries ----------------------------------------------------------------------------------------


class Fibonacci:
    def delay(self, attempt: int, random: Uniform, /) -> float:
        return random.uniform(0, attempt)


async def tell(exhausted: Exhausted) -> None:
    assert_type(exhausted.delivery, Delivery)
    assert_type(exhausted.failure.error, str)


def retrying() -> None:
    task(backoff=Linear(5))
    task(backoff=5)
    task(backoff=[1, 5, 30.5])
    task(backoff=lambda attempt, error: attempt * 2.5)
    task(backoff=Fibonacci())
    task(backoff={TimeoutError: Fixed(1), ConnectionError: Delays([1, 2]), Exception: 5, OSError: [1, 2]})
    task(retries={TimeoutError: 5, OSError: 2}, max_backoff=3600)
    task(on_exhausted=tell)
    task(on_exhausted=lambda exhausted: print(exhausted.reason))
    task(on_exhausted=send)
    task(backoff="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task(backoff={"TimeoutError": 5})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    task(retries={TimeoutError: "5"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    task(on_exhausted=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    Linear("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- batches ----------------------------------------------------------------------------------------


@batch_task(size=100, wait=0.5, retries=5)
async def insert(rows: list[str]) -> None:
    assert_type(current_batch(), tuple[Delivery, ...])


@batch_task(result_ttl=60)
async def count(rows: list[str]) -> list[int | Exception]:
    return [len(row) if row else ValueError("empty") for row in rows]


@batch_task(result_ttl=60)
def measure(rows: list[str]) -> list[float]:
    return [float(row) for row in rows]


@batch_task()
def drop(rows: list[int]) -> None: ...


@batch_task
async def bare(rows: list[str]) -> list[int | Exception]:
    return [len(row) for row in rows]


@batch_task
def bare_drop(rows: list[int]) -> None: ...


async def batching(broker: RedisBroker) -> None:
    assert_type(await broker.enqueue(insert, "a"), Handle[None])
    assert_type(await (await broker.enqueue(count, "a")).result(), int)
    assert_type(await (await broker.enqueue(measure, "a")).result(), float)
    assert_type(await broker.enqueue(drop, 5), Handle[None])
    assert_type(await broker.enqueue(bare, "a"), Handle[int])
    assert_type(await broker.enqueue(bare_drop, 5), Handle[None])
    assert_type(await broker.enqueue(count.options(delay=5), "a"), Handle[int])
    await broker.enqueue_many([count.call("a"), insert.call("b")])
    await insert(["a", "b"])
    assert_type(measure(["1"]), Sequence[float | Exception] | None)
    Worker(broker, tasks=[insert, count, measure, send])
    await broker.enqueue(insert, ["a"])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await broker.enqueue(insert, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await broker.enqueue(insert)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await broker.enqueue(insert, rows="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await insert("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def wrong_batches() -> None:
    @batch_task()  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def no_list(row: str) -> None: ...

    batch_task(sizes=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    batch_task(cron="0 * * * *")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


@task(cron=["@hourly", Cron("0 3 * * *", tz="Europe/Berlin", missed="skip", args=("x",))])
async def recurs(what: str) -> None:
    """A declared schedule."""


@task(cron=5)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def recurs_wrongly() -> None:
    """A schedule is a cron expression, or a Cron."""


async def schedules(broker: RedisBroker) -> None:
    """What recurs, stored."""
    await broker.schedule("nightly", Cron("@daily"), recurs.call("x"))
    await broker.schedule("by name", "@daily", "recurs")
    await broker.schedule("wrong", "@daily", 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Cron("@daily", missed="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for one in await broker.schedules():
        assert_type(one.next, datetime | None)
    assert_type(await broker.unschedule("nightly"), bool)


def without_an_event_loop(broker: SyncBroker) -> None:
    """The same arguments, and results that are not awaited."""
    assert_type(broker.enqueue(send, "a@b.c"), SyncHandle[dict[str, int]])
    assert_type(broker.enqueue(resize, "a", width=3).result(timeout=5), bytes)
    assert_type(broker.enqueue(send.call("a"), delay=5), SyncHandle[dict[str, int]])
    assert_type(broker.enqueue(send.options(delay=5), "a"), SyncHandle[dict[str, int]])
    assert_type(broker.enqueue("send", 1), SyncHandle[Any])
    assert_type(broker.enqueue_many([send.call("a"), resize.call("b", width=3)]), list[SyncHandle[Any]])
    assert_type(broker.start(send.call("a").then(report)), SyncWorkflow[str])
    assert_type(broker.start(group(send.call("a"))).result(5), list[dict[str, int]])
    assert_type(broker.workflow("x"), SyncWorkflowHandle)
    assert_type(broker.workflow("x").status().state, WorkflowState)
    assert_type(broker.start(send.call("a")).progress(), Progress | None)
    assert_type(broker.handle("x", task=resize), SyncHandle[bytes])
    assert_type(broker.handle("x"), SyncHandle[Any])
    assert_type(broker.handle("x").status(), Status)
    handle = broker.enqueue(resize, "a", width=3)
    other = broker.enqueue(send, "a@b.c")
    many: list[SyncHandle[bytes]] = broker.enqueue_many([resize.call("a", width=3), resize.call("b", width=3)])
    assert_type(broker.gather(handle, other), tuple[bytes, dict[str, int]])
    assert_type(broker.gather(*many, timeout=5), tuple[bytes, ...])
    assert_type(
        broker.gather(handle, other, return_exceptions=True),
        tuple[bytes | TaskFailedError, dict[str, int] | TaskFailedError],
    )
    assert_type(broker.gather(*many, return_exceptions=True), tuple[bytes | TaskFailedError, ...])
    for one in broker.as_completed(handle):
        assert_type(one, SyncHandle[bytes])
    for progress in handle.watch():
        assert_type(progress, Progress)
    assert_type(broker.check(send.call("a")), Call[dict[str, int]])
    assert_type(broker.dead_letter_queue().replay(task_id="x"), str)
    broker.enqueue(send, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    broker.enqueue(send)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    broker.enqueue(resize, "a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    broker.enqueue_many([send])  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    broker.start(send)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    broker.on_django_commit(using="default").enqueue(send, "a@b.c", n=2)
    broker.on_session_commit(None).enqueue(resize, "a", width=3)
    broker.on_session_commit(None).enqueue_many([send.call("a")])
    broker.on_django_commit().enqueue(send, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    broker.on_django_commit().enqueue(resize, "a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
