"""P8, P3, P5: one run that does not end keeps nobody else's task, and is named. The others run elsewhere at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

import streamq.consumer.left_behind
from streamq import RedisBroker, Worker, batch_task, task
from streamq.consumer import overdue
from tests.at_work import burst, dead, pending, until, working

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired]

began: list[str] = []
ended: list[str] = []
let_go = [False]


@pytest.fixture(autouse=True)
def fresh():
    began.clear()
    ended.clear()
    let_go[0] = False
    timer = threading.Timer(20, let_go.__setitem__, (0, True))  # a test that fails must end
    timer.start()
    yield
    timer.cancel()
    gc.collect()  # what a test has left behind is reported there


@pytest.fixture
async def broker(real_server) -> AsyncIterator[RedisBroker]:
    async with RedisBroker(real_server.url) as opened:
        yield opened


@task(retries=0)
async def innocent(name: str) -> None:
    began.append(name)
    try:
        if began.count(name) == 1:
            await anyio.sleep(60)
    finally:
        ended.append(name)


@task(retries=0)
async def shields() -> None:
    began.append("offender")
    with anyio.CancelScope(shield=True):
        while not let_go[0]:
            await anyio.sleep(0.02)


@task(retries=0)
async def swallows() -> None:
    began.append("offender")
    while not let_go[0]:
        try:
            await anyio.sleep(0.02)
        except BaseException:  # noqa: BLE001
            continue


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stop", "stop twice", "a cancelled scope", "a cancelled task"])
@pytest.mark.parametrize("offender", [shields, swallows], ids=["shields", "swallows"])
async def test_the_others_are_released_at_once(anyio_backend_name, real_server, broker, way, offender):
    """They were held, and their leases renewed, until the last run had ended. Then each was a suspect of a crash."""
    if way == "a cancelled task" and anyio_backend_name == "trio":
        pytest.skip("trio has no tasks that can be cancelled")
    first = Worker(broker, [innocent, shields, swallows], name="first", grace_period=0.2, visibility_timeout=1.5)
    over = anyio.Event()

    async def run() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            try:
                await first.run()
            finally:
                over.set()

    scopes: list[anyio.CancelScope] = []
    async with anyio.create_task_group() as group:
        if way == "a cancelled task":
            running = asyncio.ensure_future(first.run())
            running.add_done_callback(lambda _: over.set())
        else:
            group.start_soon(run)
        names = [f"{n}" for n in range(4)]
        await broker.enqueue_many([offender.call(), *[innocent.call(name) for name in names]])
        await until(lambda: len(began) == 5)
        if way.startswith("stop"):
            first.stop()
            if way == "stop twice":
                first.stop()
        elif way == "a cancelled scope":
            scopes[0].cancel()
        else:
            running.cancel()
        await until(lambda: sorted(ended) == names)
        async with working(broker, innocent, name="second", visibility_timeout=1.5):
            await until(lambda: sorted(ended) == sorted(names * 2), 5)  # while the offender goes on
            await anyio.sleep(2.2)  # more than a lease: that of the offender is renewed
            assert not over.is_set()
            assert began.count("offender") == 1
        let_go[0] = True
        with anyio.fail_after(10):
            await over.wait()
    assert pending(real_server) == (0 if way != "a cancelled task" else pending(real_server))


@batch_task(size=2, wait=0.02, retries=0)
async def rows(names: list[str]) -> None:
    began.extend(names)
    try:
        if began.count(names[0]) == 1:
            await anyio.sleep(60)
    finally:
        with anyio.CancelScope(shield=True):
            while not let_go[0]:
                await anyio.sleep(0.02)
        ended.extend(names)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [1, 2])
async def test_a_batch_that_cleans_up_is_run_by_nobody_else(anyio_backend, broker, stops):
    """Its messages were taken over while its handler cleaned up: the worker renewed no lease any more."""
    first = Worker(broker, [rows], name="first", grace_period=0.2, visibility_timeout=1.0)
    async with anyio.create_task_group() as group:
        await group.start(first.run)
        await broker.enqueue_many([rows.call(name) for name in ("a", "b")])
        await until(lambda: began == ["a", "b"])
        for _ in range(stops):
            first.stop()
        async with working(broker, rows, name="second", visibility_timeout=1.0):
            await anyio.sleep(3.5)  # three leases
            assert began == ["a", "b"]
            let_go[0] = True
            await until(lambda: sorted(began) == ["a", "a", "b", "b"])
            assert ended[:2] == ["a", "b"]


async def test_a_message_of_a_batch_that_timed_out_alone_waits_for_its_handler(anyio_backend, broker):
    """The last one to leave a batch ends its handler, and its slot is free when that has ended."""
    async with working(broker, rows) as worker:
        handle = await broker.enqueue(rows, "a")
        await until(lambda: began == ["a"])
        await broker.cancel(handle.task_id)
        await anyio.sleep(0.5)
        assert worker.health.running == 1
        let_go[0] = True
        await until(lambda: worker.health.running == 0)


async def test_a_run_that_goes_on_is_named(anyio_backend, broker, monkeypatch, caplog):
    """After its timeout, and as the worker ends, with the place where it is."""
    monkeypatch.setattr(overdue, "LOG_AFTER", 0.5)
    monkeypatch.setattr(overdue, "_LOOK_EVERY", 0.1)
    async with anyio.create_task_group() as group:
        worker = Worker(broker, [shields, swallows], grace_period=0.1)
        await group.start(worker.run)
        late, other = await broker.enqueue(swallows.options(timeout=0.1)), await broker.enqueue(shields)
        with anyio.fail_after(8):
            while f"task swallows {late.task_id} was cancelled" not in caplog.text:
                await anyio.sleep(0.02)
        assert "(its timeout has passed) and goes on" in caplog.text
        assert "in swallows" in caplog.text
        assert f"task shields {other.task_id} was cancelled" not in caplog.text
        worker.stop()
        with anyio.fail_after(8):
            while f"task shields {other.task_id} was cancelled" not in caplog.text:
                await anyio.sleep(0.02)
        assert "(the worker ends) and goes on" in caplog.text
        await anyio.sleep(0.5)
        assert caplog.text.count("and goes on") == 2
        let_go[0] = True


# --- what is left open, and does not end ------------------------------------------------------


async def stubborn() -> None:
    with anyio.CancelScope(shield=True):
        while not let_go[0]:
            await anyio.sleep(0.02)


@task(retries=1, backoff=0, timeout=30)
async def leaves_a_group_open() -> None:
    group = anyio.create_task_group()
    await group.__aenter__()
    group.start_soon(stubborn)
    await anyio.sleep(0.02)


async def slow_to_close() -> AsyncIterator[int]:
    with anyio.CancelScope():
        try:
            yield 1
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)


@task(retries=1, backoff=0)
async def abandons_a_slow_generator() -> None:
    async for _ in slow_to_close():
        break


@pytest.mark.slow
@pytest.mark.parametrize("which", ["group", "generator"])
async def test_what_does_not_end_in_time_leaves_its_run_failed(anyio_backend, real_server, broker, monkeypatch, which):
    """It was neither retried nor dead: its own scope had ended, which was taken for the end of the worker."""
    monkeypatch.setattr(streamq.consumer.left_behind, "CLOSE_WITHIN", 0.3)
    tasks = {"group": leaves_a_group_open, "generator": abandons_a_slow_generator}
    named = tasks[which]
    await broker.enqueue(named)
    await burst(broker, named)
    (letter,) = dead(real_server)
    assert letter["error_type"] == "streamq.errors.LeftOpenError"
    assert letter["attempts"] == "2"
    assert pending(real_server) == 0
    let_go[0] = True
    await anyio.sleep(0.1)
