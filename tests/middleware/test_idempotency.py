"""`Idempotency`: a task that succeeded is not run again, and later runs get its result."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from streamq import Backoff, RedisBroker, current_delivery, task
from streamq.errors import ConfigurationError, TaskFailedError
from streamq.middleware import Idempotency, MiddlewareChain
from tests.at_work import assert_nothing_left, burst, dead, working
from tests.crew import Crew, say

pytestmark = pytest.mark.paired("memory")

SOON = Backoff(base=0.01, jitter=False)


@pytest.fixture(name="broker")  # a worker of this module would take it for its own
async def opened(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def forget(server):
    """Delete the records of effects; return their keys. Each has a TTL."""
    found = [name for name in server.keys() if ":once:" in name]  # noqa: SIM118
    for name in found:
        assert server.command("PTTL", name) > 0, name
        server.command("DEL", name)
    return found


@pytest.mark.slow
async def test_runs_of_one_key_share_one_result(broker, server):
    """A key of the arguments: one run for each payment, however often it is sent and in any order."""
    ran = []

    @task(result_ttl=60, middleware=[Idempotency("payment:{payment_id}")])
    async def pay(payment_id: int, amount: int = 1) -> dict[str, int]:
        ran.append((payment_id, amount))
        return {"paid": amount}

    calls = [pay.call(1, 5), pay.call(2), pay.call(payment_id=1, amount=7), pay.call(1)]
    handles = await broker.enqueue_many(calls)
    await burst(broker, pay, concurrency=1)
    assert ran == [(1, 5), (2, 1)]
    assert [(await handle.result(10))["paid"] for handle in handles] == [5, 1, 5, 5]
    assert forget(server) == ["queue:once:payment:1", "queue:once:payment:2"]
    assert_nothing_left(server)


@pytest.mark.slow
async def test_a_task_that_is_delivered_twice_runs_once(broker, server):
    """The default key is the group and the task's id."""
    ran = []

    @task
    async def send(to: str) -> None:
        ran.append((current_delivery().task_id, to))

    for _ in range(2):
        server.command("XADD", "queue:standard", "*", "id", "mail-1", "task", "send", "args", '["a"]')
    await broker.enqueue(send, "b")
    await burst(broker, send, concurrency=1, middleware=MiddlewareChain(Idempotency()))
    assert [to for _, to in ran] == ["a", "b"]
    assert "queue:once:workers|mail-1" in forget(server)
    assert_nothing_left(server)


@pytest.mark.slow
async def test_each_group_has_its_run(server, anyio_backend):
    """A run of one group does not count for another."""
    ran = []

    @task
    async def send(to: str) -> None:
        ran.append(to)

    async with RedisBroker(server.url) as first, RedisBroker(server.url, group="audit") as second:
        await first.store.ensure_groups()
        await second.store.ensure_groups()
        await first.enqueue(send, "a")
        for broker in (first, second):
            await burst(broker, send, middleware=MiddlewareChain(Idempotency()))
    assert ran == ["a", "a"]
    assert len(forget(server)) == 2


async def test_a_failed_run_is_not_recorded(broker, server):
    """It is retried at its time, and its success is recorded."""
    ran = []

    @task(retries=2, backoff=SOON, result_ttl=60, middleware=[Idempotency("k", lease=30)])
    async def flaky() -> int:
        ran.append(current_delivery().attempt)
        if len(ran) < 3:
            raise ValueError("not yet")
        return len(ran)

    handle = await broker.enqueue(flaky)
    async with working(broker, flaky):
        assert await handle.result(10) == 3
    assert ran == [1, 2, 3]
    assert forget(server) == ["queue:once:k"]
    assert_nothing_left(server)


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 10.0], ids=["delayed", "waiting"])
async def test_runs_at_the_same_time_get_the_result_and_spend_no_attempt(broker, server, wait):
    """Ten tasks of one key at once: one run. The same for sync handlers."""
    ran = []

    @task(retries=0, result_ttl=60, middleware=[Idempotency("k", lease=3.0, wait=wait)])
    def work(number: int) -> int:
        ran.append(number)
        return number

    handles = await broker.enqueue_many([work.call(number) for number in range(10)])
    async with working(broker, work, concurrency=10):
        results = [await handle.result(20) for handle in handles]
    assert len(ran) == 1
    assert set(results) == set(ran)
    assert dead(server) == []
    forget(server)
    assert_nothing_left(server)


async def test_a_thread_that_timed_out_keeps_its_lease(broker, server):
    """A thread cannot be ended and may still run; an async handler is ended, and its effect is released."""
    go = anyio.Event()

    @task(retries=0, timeout=0.05, middleware=[Idempotency("thread")])
    def in_thread() -> None:
        anyio.from_thread.run(go.wait)

    @task(retries=0, timeout=0.05, middleware=[Idempotency("loop")])
    async def in_loop() -> None:
        await go.wait()

    await broker.enqueue(in_thread)
    await broker.enqueue(in_loop)
    await burst(broker, in_thread, in_loop)
    go.set()
    assert server.command("HEXISTS", "queue:once:thread", "until") == 1
    assert server.command("HEXISTS", "queue:once:loop", "until") == 0
    assert [letter["error_type"] for letter in dead(server)] == ["streamq.errors.TaskTimeoutError"] * 2
    assert len(forget(server)) == 2


async def test_a_result_that_is_not_json_fails_later_runs_alone(broker, server, caplog):
    """The run succeeded and its effect is not repeated; the error of a later run says why there is no result."""
    ran = []

    @task(validate=False, retries=3, middleware=[Idempotency("k")])
    async def make() -> object:
        ran.append(1)
        return object()

    await broker.enqueue(make)
    await burst(broker, make)
    assert dead(server) == []
    later = await broker.enqueue(make.options(result_ttl=60))
    await burst(broker, make)
    assert len(ran) == 1
    assert [letter["reason"] for letter in dead(server)] == ["rejected"]
    with pytest.raises(TaskFailedError, match="not JSON"):
        await later.result(5)
    assert "not JSON" in caplog.text
    assert forget(server) == ["queue:once:k"]


@pytest.mark.parametrize("options", [{"key": ""}, {"key": 5}, {"key": "{"}, {"ttl": 0}, {"lease": 0}, {"wait": -1}])
def test_wrong_options_are_refused(options):
    """The error names the option."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Idempotency(**options)


def test_repr():
    """It shows its options."""
    assert repr(Idempotency("p:{p}", ttl=60)) == "<Idempotency key=p:{p} ttl=60 lease=30>"
    assert repr(Idempotency()) == "<Idempotency key=task_id ttl=86400 lease=30>"


# --- under faults ------------------------------------------------------------------------------------


@task(name="crew_charge", retries=0, result_ttl=60, middleware=[Idempotency("charge:{number}", lease=1.0)])
async def crew_charge(number: int) -> str:
    me = current_delivery()
    first = not Path(os.environ["CREW_LOG"]).read_text()  # noqa: ASYNC240 - a few bytes
    say(f"run {me.task_id}")
    if first:
        await anyio.sleep_forever()
    return me.task_id


TASKS = [crew_charge]


@pytest.mark.slow
async def test_a_worker_killed_in_a_run(anyio_backend, shared_server, tmp_path):
    """SIGKILL: the record of a run in progress ends with its lease, and one of the tasks runs again."""
    server = shared_server("valkey" if anyio_backend == "asyncio" else "redis")
    async with RedisBroker(server.url) as broker:
        first = await broker.enqueue(crew_charge, 7)
        with Crew("tests.middleware.test_idempotency", server, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim")
            await anyio.to_thread.run_sync(crew.until, f"run {first.task_id}")
            rival = await broker.enqueue(crew_charge, 7)
            victim.kill()
            victim.wait()
            crew.start("heir")
            results = {await handle.result(30) for handle in (first, rival)}
            runs = crew.lines("run")
        assert len(results) == 1
        assert len(runs) == 2
