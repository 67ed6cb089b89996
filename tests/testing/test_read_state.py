"""The final state: all keys and entries in Redis."""

from __future__ import annotations

import anyio
import pytest

from streamq import RedisBroker, Reject, Worker, task
from streamq.testing import FinalState, final_state
from tests.servers import InProcess


@task(retries=2)
async def run(how: str = "well") -> None:
    match how:
        case "reject":
            raise Reject("no")
        case "fail":
            raise ValueError("no")


async def work_off(broker):
    """Start a worker, wait until the queue is empty, and stop it."""
    with anyio.fail_after(20):
        await Worker(broker, tasks=[run], burst=True, name="w1").run()


async def test_a_server_without_a_queue_is_empty(server):
    """The state is empty, and no key is created."""
    async with RedisBroker(server.url) as broker:
        assert await final_state(broker) == FinalState()
    assert server.keys() == []


async def test_waiting_tasks_by_tier_and_id(server):
    """Entries with a task id, and entries written by hand."""
    async with RedisBroker(server.url) as broker:
        sent = {(await broker.enqueue(run, priority=number)).task_id for number in (1, 1, 50)}
        entry = server.command("XADD", "queue:standard", "*", "task", "run").decode()
        state = await final_state(broker)
    assert {len(ids) for ids in state.waiting.values()} == {2, 1}
    assert frozenset().union(*state.waiting.values()) == sent | {entry}
    assert state.waiting["standard"] == {entry}
    assert state.stray == ()


@pytest.mark.slow
async def test_more_than_a_page(server):
    """Pages are joined."""
    async with RedisBroker(server.url) as broker:
        handles = await broker.enqueue_many([run.call() for _ in range(2500)])
        delayed = await broker.enqueue_many([run.options(delay=60).call() for _ in range(1200)])
        state = await final_state(broker)
    assert state.waiting["standard"] == {handle.task_id for handle in handles}
    assert state.delayed == {handle.task_id for handle in delayed}


async def test_pending_entries_by_consumer(server):
    """Pending entries are in `waiting` as well."""
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(run)
        await broker.store.ensure_groups()
        for consumer in ("w1", "w2"):
            await broker.client.command("XREADGROUP", "GROUP", "workers", consumer, "STREAMS", "queue:standard", ">")
        state = await final_state(broker)
    assert state.pending["standard"] == {"w1": 1}
    assert ("standard", "w1", 1) in state.consumers
    assert state.waiting["standard"] == {handle.task_id}


async def test_a_retry_that_waits_is_named_by_its_task(server):
    """A member of the delayed set is group:id. The state contains the task id."""
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(run.options(retries=100), "fail")
        worker = Worker(broker, tasks=[run], name="w1")
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            with anyio.fail_after(10):
                while not server.command("ZCARD", "queue:standard:delayed"):
                    await anyio.sleep(0.005)
            worker.stop()
        state = await final_state(broker)
    assert handle.task_id in state.delayed | state.waiting["standard"]


async def test_a_normal_end_leaves_only_dead_letters(server):
    """After a normal end there are dead letters, and no consumers and no stray keys."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([run.call() for _ in range(5)])
        dead = await broker.enqueue(run, "reject")
        await work_off(broker)
        state = await final_state(broker)
    assert state.dead == ((dead.task_id, "rejected"),)
    assert (state.consumers, state.stray, state.delayed) == ((), (), frozenset())
    assert not any(state.waiting.values())
    assert not any(state.pending.values())
    assert "queue:dead" in state.keys


@pytest.mark.parametrize(
    ("command", "stray"),
    [
        (("SET", "queue:result:x", "1"), "queue:result:x (no TTL)"),
        (("SET", "queue:id:x", "1"), "queue:id:x (no TTL)"),
        (("HSET", "queue:stats:workers:7", "a", "1"), "queue:stats:workers:7 (no TTL)"),
        (("HSET", "queue:bulk:crashes:workers", "1-0", "w1"), "queue:bulk:crashes:workers (no TTL)"),
        (("SET", "queue:nonsense", "1", "EX", "60"), "queue:nonsense"),
        (("SET", "else:where", "1"), "else:where"),
        (("ZADD", "queue:bulk:delayed", "1", "x"), "queue:bulk:delayed x"),
        (("HSET", "queue:bulk:messages", "x", "[]"), "queue:bulk:messages x"),
    ],
)
async def test_keys_that_should_not_be_there(server, command, stray):
    """Unknown keys, keys without their TTL, and ids without their message."""
    async with RedisBroker(server.url) as broker:
        server.command("XADD", "queue:bulk", "*", "task", "run")
        server.command(*command)
        assert stray in (await final_state(broker)).stray


async def test_evidence_that_outlived_its_task(server):
    """Crash evidence of an entry must be removed with the entry."""
    async with RedisBroker(server.url) as broker:
        entry = server.command("XADD", "queue:bulk", "*", "task", "run").decode()
        for left in (entry, f"{entry}:alone", "1-0", "2-0:alone"):
            server.command("HSET", "queue:bulk:crashes:workers", left, "w1")
        server.command("EXPIRE", "queue:bulk:crashes:workers", 60)
        state = await final_state(broker)
    assert state.stray == ("queue:bulk:crashes:workers 1-0", "queue:bulk:crashes:workers 2-0")


async def test_keys_with_the_ttl_they_should_have_are_no_strays(server):
    """Results, ids, deduplication, counters."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(run, task_id="x", dedup_key="k")
        for key in ("queue:result:x", "queue:seen:x"):
            server.command("SET", key, "1", "EX", 60)
        state = await final_state(broker)
    assert state.stray == ()
    assert {"queue:id:x", "queue:dedup:k"} <= set(state.keys)


async def test_on_a_shared_server_only_the_namespace_is_read(server):
    """Keys of other programs are ignored."""
    async with RedisBroker(server.url, namespace="{mine}") as broker:
        server.command("SET", "else:where", "1")
        server.command("SET", "{mine}:nonsense", "1")
        assert (await final_state(broker, shared=True)).stray == ("{mine}:nonsense",)
        assert (await final_state(broker)).stray == ("else:where", "{mine}:nonsense")


async def test_undecodable_entries_are_reported():
    """Bytes that are not text, a message that is not JSON."""
    server = InProcess()
    try:
        server.command("XADD", "queue:bulk", "5-0", b"\xff", b"\xfe")
        server.command("ZADD", "queue:bulk:delayed", "1", "workers|x")
        server.command("HSET", "queue:bulk:messages", "workers|x", "{")
        async with RedisBroker(server.url) as broker:
            state = await final_state(broker)
        assert state.waiting["bulk"] == {"5-0"}
        assert state.delayed == {"x"}
    finally:
        server.close()
