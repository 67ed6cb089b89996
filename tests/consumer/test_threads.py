"""Handlers in threads are told to stop, whatever ended their run, and do not pile up."""

from __future__ import annotations

import logging
import os
import threading
import time

import anyio
import anyio.to_thread
import pytest

from streamq import (
    RedisBroker,
    Worker,
    cancel_requested,
    current_cancellation,
    task,
)
from streamq.consumer.threads import Threads
from streamq.errors import RetryLater, TaskFailedError
from tests import deferred
from tests.at_work import burst, dead, entries, pending, until, working

PATIENT = 30  # seconds: nothing here lasts so long unless it is broken


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


class Inside:
    """A handler in a thread that waits to be told to stop, and what it saw of it."""

    def __init__(self, **options):
        self.began = threading.Event()
        self.told = threading.Event()

        @task(name="inside", **options)
        def inside() -> str:
            assert not cancel_requested()
            self.began.set()
            if current_cancellation().wait(PATIENT):
                assert cancel_requested()
                assert repr(current_cancellation()) == "<Cancellation requested>"
                self.told.set()
            return "ignored"

        self.task = inside


async def test_a_thread_is_told_that_its_sender_cancelled_it(server, broker):
    """Who waits is told at once; what the thread returns is ignored."""
    handler = Inside(result_ttl=60)
    handle = await broker.enqueue(handler.task)
    async with working(broker, handler.task):
        await until(handler.began.is_set)
        assert await handle.cancel()
        with pytest.raises(TaskFailedError) as caught:
            await handle.result(timeout=10)
        assert caught.value.reason == "cancelled"
        await until(handler.told.is_set)
    assert not dead(server)
    assert server.command("XLEN", "queue:standard") == 0


async def test_a_thread_is_told_that_its_time_is_over(server, broker):
    """The timeout of the task; the run is a failure as any other."""
    handler = Inside(timeout=0.2, retries=0)
    await broker.enqueue(handler.task)
    async with working(broker, handler.task):
        await until(handler.told.is_set)
        await until(lambda: dead(server))
    assert dead(server)[0]["error_type"] == "streamq.errors.TaskTimeoutError"


async def test_a_thread_is_told_that_its_lease_was_lost(server, broker):
    """Somebody else has the delivery now, and is not disturbed."""
    handler = Inside()
    handle = await broker.enqueue(handler.task)
    async with working(broker, handler.task, visibility_timeout=0.6) as worker:
        await until(handler.began.is_set)
        server.command("XCLAIM", "queue:standard", "workers", "thief", 0, handle.entry_id)
        server.command("ZADD", "queue:standard:alive:workers", 9_999_999_999_999, "thief")
        await until(handler.told.is_set)
        await until(lambda: worker.health.superseded == 1)
        assert pending(server) == 1
        server.command("XACK", "queue:standard", "workers", handle.entry_id)


async def test_a_thread_is_told_that_the_grace_period_is_over(server, broker):
    """The delivery was handed back by then: another worker may have it."""
    handler = Inside()
    await broker.enqueue(handler.task)
    worker = Worker(broker, [handler.task], grace_period=0.1)
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        await until(handler.began.is_set)
        worker.stop()
    await until(handler.told.is_set)
    assert pending(server) == 1
    assert len(entries(server, "queue:standard")) == 1


async def test_a_run_that_ended_is_asked_to_stop_too(server, broker):
    """A thread that the handler started gets the request to stop when the run ends; async handlers have none."""
    told = []

    @task
    def starts_another() -> None:
        told.append(current_cancellation())
        assert not told[0].is_set()

    @task
    async def asynchronous() -> None:
        told.append(cancel_requested())
        with pytest.raises(LookupError, match="async handler is cancelled"):
            current_cancellation()

    await broker.enqueue(starts_another)
    await burst(broker, starts_another, asynchronous)
    await broker.enqueue(asynchronous)
    await burst(broker, starts_another, asynchronous)
    assert told[0].is_set()
    assert told[1:] == [False]
    assert not dead(server)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["memory"], indirect=True)
async def test_threads_that_do_not_stop_do_not_pile_up(server, broker):
    """A worker of two slots has two threads, however many runs were given up; async tasks go on beside them."""
    release = threading.Event()
    most, now, lock = [0], [0], threading.Lock()

    @task(timeout=0.05, retries=0)
    def deaf() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        release.wait(PATIENT)
        with lock:
            now[0] -= 1

    @task(result_ttl=60)
    async def light() -> str:
        return "ok"

    @task(result_ttl=60, timeout=0.5)
    def quick() -> str:
        return "ok"

    await broker.enqueue_many([deaf.call() for _ in range(2)])
    async with working(broker, deaf, light, quick, concurrency=2):
        await until(lambda: len(dead(server)) == 2)  # both were given up, both threads go on
        assert now[0] == 2
        assert await (await broker.enqueue(light)).result(timeout=10) == "ok"
        await broker.enqueue_many([deaf.call() for _ in range(5)])
        waiting = await broker.enqueue(quick)
        await anyio.sleep(0.6)  # longer than any of their timeouts: waiting for a thread is not timed
        assert len(dead(server)) == 2
        assert most[0] == 2
        release.set()
        assert await waiting.result(timeout=20) == "ok"
    assert most[0] == 2
    assert len(dead(server)) == 2


async def test_a_run_that_finds_no_thread_is_put_off(anyio_backend, monkeypatch):
    """Another worker may have one; no attempt is spent."""
    monkeypatch.setattr("streamq.consumer.threads.WAIT_FOR_THREAD", 0.05)
    threads, release, began = Threads(1), threading.Event(), threading.Event()

    def deaf():
        began.set()
        release.wait(PATIENT)

    async with anyio.create_task_group() as group:
        group.start_soon(threads.watch_forever)
        async with anyio.create_task_group() as inner:
            inner.start_soon(threads.run, deaf)
            await until(began.is_set)
            inner.cancel_scope.cancel()
        assert repr(threads) == "<Threads 1 of 1 busy, 1 told to stop>"
        with pytest.raises(RetryLater, match="1 were told to stop"):
            await threads.wait_for_thread()
        release.set()
        await until(lambda: repr(threads) == "<Threads 0 of 1 busy, 0 told to stop>")
        with anyio.fail_after(5):
            await threads.wait_for_thread()
        group.cancel_scope.cancel()


async def test_a_run_that_ended_before_its_thread_began_never_begins(anyio_backend):
    """The handler does not start after its delivery was settled."""
    threads, ran = Threads(5), []
    for _ in range(50):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await threads.run(lambda: ran.append(1))
    assert repr(threads) == "<Threads 0 of 5 busy, 0 told to stop>"
    assert not ran


@pytest.mark.slow
@pytest.mark.parametrize("server", ["memory"], indirect=True)
async def test_a_thread_that_goes_on_is_named_with_its_stack(server, broker, caplog, monkeypatch):
    """Once, some seconds after it was told."""
    monkeypatch.setattr("streamq.consumer.threads.LOG_AFTER", 0.2)
    release = threading.Event()

    @task(timeout=0.05, retries=0)
    def deaf() -> None:
        release.wait(PATIENT)

    handle = await broker.enqueue(deaf)
    with caplog.at_level(logging.WARNING):
        async with working(broker, deaf, concurrency=3):
            await until(lambda: "its thread goes on" in caplog.text)
            await anyio.sleep(0.3)
            release.set()
    (text,) = [record.getMessage() for record in caplog.records if "its thread goes on" in record.getMessage()]
    assert handle.task_id in text
    assert "1 of 3 threads" in text
    assert "release.wait(PATIENT)" in text


async def test_a_handler_that_returns_although_it_was_cancelled_has_succeeded(server, broker):
    """The work is done: cancelling asks, and a handler may decline. Its value is what waiters get."""
    began = anyio.Event()

    @task(result_ttl=60)
    async def stubborn() -> str:
        began.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "done all the same"

    @task(result_ttl=60)
    async def next_one() -> str:
        await anyio.sleep(0.01)
        return "next"

    handle = await broker.enqueue(stubborn)
    async with working(broker, stubborn, next_one, concurrency=1):
        await began.wait()
        assert await handle.cancel()
        assert await handle.result(timeout=10) == "done all the same"
        # The runner is as good as new.
        assert await (await broker.enqueue(next_one)).result(timeout=10) == "next"
    assert not dead(server)


async def test_a_handler_that_returns_although_its_time_is_over_has_succeeded(server, broker):
    """Likewise with its timeout."""

    @task(result_ttl=60, timeout=0.05)
    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "done all the same"

    handle = await broker.enqueue(stubborn)
    await burst(broker, stubborn)
    assert await handle.result(timeout=10) == "done all the same"


@pytest.mark.slow
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_a_process_is_killed_with_its_run(server, broker, tmp_path):
    """Its sender cancelled it; the worker goes on with the next."""
    note = tmp_path / "pid"
    handle = await broker.enqueue(deferred.notes_and_hangs, str(note))
    async with working(broker, deferred.notes_and_hangs, deferred.power):
        pid = await until(lambda: note.exists() and int(note.read_text() or 0), PATIENT)
        assert await handle.cancel()
        with pytest.raises(TaskFailedError, match="cancelled"):
            await handle.result(timeout=10)
        await until(lambda: not _runs(pid))
        again = await broker.enqueue(deferred.power.options(result_ttl=30), 3)
        assert await again.result(timeout=PATIENT) == 9


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("server", ["memory"], indirect=True)
async def test_threads_leave_room_as_soon_as_they_end(server, broker):
    """Many short ones in few slots: nothing waits for the next look at those that were told to stop."""

    @task
    def short() -> None: ...

    await broker.enqueue_many([short.call() for _ in range(200)])
    started = time.monotonic()
    await burst(broker, short, concurrency=2)
    assert time.monotonic() - started < 5


# --- a system without threads ---------------------------------------------------------------------------------


@pytest.fixture
def no_threads(monkeypatch):
    """How many threads the system refuses from now on."""
    refusals = [0]
    real = anyio.to_thread.run_sync

    async def run_sync(*arguments: object, **options: object) -> object:
        if refusals[0]:
            refusals[0] -= 1
            raise RuntimeError("can't start new thread")
        return await real(*arguments, **options)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_sync)
    return refusals


async def test_a_thread_that_the_system_does_not_have_is_waited_for(no_threads, caplog):
    """The task has not failed: it spends no attempt, and its timeout does not run. Health and log say why."""
    done = []

    @task(retries=0, timeout=0.2)
    def work(number: int) -> None:
        done.append(number)

    async with RedisBroker("memory://") as broker, anyio.create_task_group() as group:
        worker = Worker(broker, [work], concurrency=1)
        await group.start(worker.run)
        no_threads[0] = 4
        await broker.enqueue(work, 1)
        with anyio.fail_after(5):
            while worker.health.trouble is None:
                await anyio.sleep(0.001)
        assert "no more threads (can't start new thread)" in worker.health.trouble
        with anyio.fail_after(10):
            while not done:
                await anyio.sleep(0.01)
            while worker.health.trouble is not None:
                await anyio.sleep(0.01)
        worker.stop()
    assert done == [1]
    assert len([record for record in caplog.records if "no more threads" in record.message]) == 1


async def test_a_runtime_error_of_the_handler_itself_is_its_own(no_threads):
    """A handler that cannot start its own thread fails as it would."""

    @task(retries=0)
    def work() -> None:
        raise RuntimeError("can't start new thread")

    async with RedisBroker("memory://") as broker:
        await broker.enqueue(work)
        with anyio.fail_after(10):
            await Worker(broker, [work], burst=True).run()
        assert await broker.client.xlen("queue:dead") == 1


class _HostileError(Exception):
    """An exception whose attributes raise: event loops look at them."""

    def __init__(self, attribute: str, raised: BaseException) -> None:
        super().__init__("hostile")
        self._hostile = (attribute, raised)

    def __getattribute__(self, name: str) -> object:
        attribute, raised = super().__getattribute__("__dict__").get("_hostile", ("", None))
        if name == attribute:
            raise raised
        return super().__getattribute__(name)


@pytest.mark.parametrize("raised", [SystemExit(3), ValueError("no")], ids=["exit", "error"])
@pytest.mark.parametrize("attribute", ["__class__", "__traceback__"])
async def test_an_exception_whose_attributes_raise_ends_its_own_run_alone(server, attribute, raised):
    """P13: the run ends, and the worker goes on."""
    done = []

    @task(retries=0)
    def hostile() -> None:
        raise _HostileError(attribute, raised)

    @task(retries=0)
    def good(number: int) -> None:
        done.append(number)

    async with RedisBroker(server.url) as broker:
        await broker.enqueue(hostile)
        await broker.enqueue_many([good.call(number) for number in range(3)])
        with anyio.fail_after(10):
            await burst(broker, hostile, good, concurrency=2)
    assert sorted(done) == [0, 1, 2]
    assert len(dead(server)) == 1
