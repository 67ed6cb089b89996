"""P14: leaving never hangs, never hides an error, and leaves nothing behind, whatever is cancelled meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import AsyncExitStack, aclosing
from typing import Any

import anyio
import anyio.lowlevel
import orjson
import pytest

from streamq import RedisBroker, Reject, Worker, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import BrokerError, ConfigurationError, NotOpenError, ResultTimeoutError, TaskFailedError
from tests.cancelling import ENDS_WITHIN, cancelled_everywhere, nothing_more_open, open_now, stepped
from tests.servers import RealServer, fresh_server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120), pytest.mark.paired]

STREAM = "queue:standard"


class OwnError(Exception):
    """What the body of a block raises."""


def fail() -> None:
    raise OwnError


@task(result_ttl=60, retries=0)
async def answer(number: int) -> int:
    """Return it."""
    runs.append(number)
    await anyio.lowlevel.checkpoint()
    return number


@task
async def rejected() -> None:
    """Become a dead letter."""
    raise Reject("as it is meant")


runs: list[int] = []


@pytest.fixture(autouse=True)
def no_runs() -> None:
    runs.clear()


async def worked_off(url: str) -> None:
    """Run all that waits, with a worker that is not cancelled."""
    async with RedisBroker(url) as broker:
        await Worker(broker, [answer, rejected], burst=True, visibility_timeout=0.6, grace_period=1).run()


def numbers_in(server: Any) -> list[int]:
    """Return the arguments of the entries that wait or are delivered."""
    found = []
    for _, fields in server.command("XRANGE", STREAM, "-", "+"):
        found += orjson.loads(dict(zip(fields[::2], fields[1::2], strict=True)).get(b"args", b"[]"))
    return found


# --- cancelled at every await -----------------------------------------------------------------------


async def test_a_broker_can_be_left_wherever_its_block_is_cancelled(server):
    """Opened, used once, left."""

    async def program():
        async with RedisBroker(server.url) as broker:
            await broker.client.ping()

    async def check():
        assert server.keys() == []

    assert await cancelled_everywhere(program, check) > 1


async def test_the_error_of_a_block_comes_out_wherever_it_is_cancelled_after_it(server):
    """The block raises; its end is cancelled at every await."""
    raised = []

    async def program():
        try:
            async with RedisBroker(server.url) as broker:
                await broker.client.ping()
                raised.append("in the block")
                fail()
        except OwnError:
            raised.append("outside")

    async def check():
        assert raised in ([], ["in the block", "outside"])
        raised.clear()

    assert await cancelled_everywhere(program, check) > 1


async def test_an_enqueue_is_accepted_or_not_wherever_it_is_cancelled(server):
    """One task, and many; what has returned was accepted, and nothing is half there."""
    returned = []

    async def program():
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(answer, 0)
            returned.append(0)
            await broker.enqueue_many([answer.call(1), answer.call(2)])
            returned.extend((1, 2))
            await broker.enqueue(answer.options(task_id="one", delay=3600), 3)

    async def check():
        there = numbers_in(server)
        assert set(returned) <= set(there)
        assert (1 in there) == (2 in there)
        assert server.command("ZCARD", "queue:delayed:standard") == server.command("HLEN", "queue:messages:standard")
        returned.clear()
        server.flush()

    assert await cancelled_everywhere(program, check) > 1


async def test_waiting_for_a_result_can_be_cancelled_anywhere(server):
    """The waiter, its subscription, and the progress that is read with it."""

    async def program():
        async with RedisBroker(server.url) as broker:
            handle = await broker.enqueue(answer, 1)
            with contextlib.suppress(Exception):
                await handle.result(timeout=0.02)
            async for _ in handle.watch(timeout=0.02):
                pass
            await handle.status()

    async def check():
        server.flush()

    assert await cancelled_everywhere(program, check) > 1


async def test_a_loop_over_deliveries_can_be_cancelled_anywhere(server):
    """What it has not acknowledged runs once more; what it has does not."""
    acknowledged = []

    async def program():
        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([answer.call(n) for n in range(3)])
            async with aclosing(broker.consume(visibility_timeout=0.6)) as deliveries:
                async for delivery in deliveries:
                    await broker.ack(delivery.task_id)
                    acknowledged.append(delivery.args[0])
                    if len(acknowledged) == 2:
                        break

    async def check():
        accepted = server.command("XLEN", STREAM)
        await worked_off(server.url)
        assert server.command("XLEN", STREAM) == 0
        assert len(runs) == accepted
        assert not set(runs) & set(acknowledged)
        acknowledged.clear()
        runs.clear()
        server.flush()

    assert await cancelled_everywhere(program, check) > 1


async def test_a_loop_that_is_left_half_way_is_closed_by_the_end_of_the_broker(server):
    """Without `aclosing`: the generator is still open when the block ends, or is cancelled."""

    half_way = []

    async def program():
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(answer, 1)
            half_way.append(broker.consume(visibility_timeout=0.6))
            async for _ in half_way[0]:
                break

    async def check():
        while half_way:
            await half_way.pop().aclose()
        accepted = server.command("XLEN", STREAM)
        await worked_off(server.url)
        assert len(runs) == accepted
        runs.clear()
        server.flush()

    assert await cancelled_everywhere(program, check) > 1


@pytest.mark.slow
async def test_a_worker_can_be_cancelled_anywhere(server):
    """Started, drained by `stop`, ended: what was accepted runs, at the latest under the next worker."""

    async def program():
        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([answer.call(n) for n in range(4)])
            worker = Worker(broker, [answer], visibility_timeout=0.6, grace_period=1)
            async with anyio.create_task_group() as group:
                await group.start(worker.run)
                while len(runs) < 4:
                    await anyio.sleep(0.005)
                worker.stop()

    async def check():
        await worked_off(server.url)
        assert server.command("XLEN", STREAM) == 0
        assert sorted(set(runs)) in ([], [0, 1, 2, 3])
        runs.clear()
        server.flush()

    assert await cancelled_everywhere(program, check) > 1


@pytest.mark.slow
async def test_the_run_of_a_worker_can_be_cancelled_at_its_own_awaits(server):
    """`Worker.run` in the task that is cancelled: at its start, while it runs, in its drain, at its end."""

    async def program():
        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([answer.call(n) for n in range(4)])
            await Worker(broker, [answer], visibility_timeout=0.6, grace_period=1, burst=True).run()

    async def check():
        await worked_off(server.url)
        assert server.command("XLEN", STREAM) == 0
        assert sorted(set(runs)) in ([], [0, 1, 2, 3])
        runs.clear()
        server.flush()

    assert await cancelled_everywhere(program, check) > 1


@pytest.mark.slow
async def test_a_replay_leaves_a_dead_letter_or_a_task_wherever_it_is_cancelled(server):
    """Never both, never neither."""

    async def program():
        async with RedisBroker(server.url) as broker:
            await DeadLetterQueue(broker=broker).replay(task_id="it")

    async def dead() -> None:
        server.flush()
        async with RedisBroker(server.url) as broker:
            await broker.enqueue(rejected.options(task_id="it"))
        await worked_off(server.url)

    async def check():
        assert server.command("XLEN", "queue:dead") + server.command("XLEN", STREAM) == 1
        await dead()

    await dead()
    assert await cancelled_everywhere(program, check) > 1


# --- errors, twice, others, and servers that are gone ----------------------------------------------------------


async def test_the_error_of_a_block_is_not_chained_into_a_cycle(server):
    """A stack of the standard library walks the chain of contexts, and would walk for ever."""

    async def program() -> None:
        with anyio.CancelScope() as scope:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(RedisBroker(server.url))
                scope.cancel()
                raise OwnError

    with pytest.raises(OwnError) as caught:
        await program()
    seen = []
    error: BaseException | None = caught.value
    while error is not None:
        assert error not in seen
        seen.append(error)
        error = error.__context__


async def test_a_group_around_a_block_may_be_cancelled_by_another_task(server):
    """The other task fails; its error comes out of the group, and the block is left."""
    before = open_now()

    async def fail_then(opened: anyio.Event) -> None:
        await opened.wait()
        raise OwnError

    async def program() -> None:
        async with anyio.create_task_group() as group:
            opened = anyio.Event()
            group.start_soon(fail_then, opened)
            async with RedisBroker(server.url) as broker:
                await broker.client.ping()
                opened.set()
                await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await program()
    assert [type(error) for error in caught.value.exceptions] == [OwnError]
    await nothing_more_open(before, 0)


async def test_a_broker_that_is_left_twice_is_left_once(server):
    """And cannot be used afterwards."""
    broker = RedisBroker(server.url)
    await broker.__aenter__()
    await broker.__aexit__(None, None, None)
    await broker.__aexit__(None, None, None)
    with pytest.raises(NotOpenError):
        await broker.enqueue(answer, 1)


async def test_others_that_use_a_broker_while_it_is_left_get_an_error_of_the_broker(server):
    """Enqueues, waits for results and loops over deliveries of other tasks all end."""
    ended = []

    async def enqueue(broker: RedisBroker) -> None:
        with contextlib.suppress(BrokerError, NotOpenError):
            while True:
                await broker.enqueue(answer, 1)
        ended.append("enqueue")

    async def wait(broker: RedisBroker) -> None:
        handle = await broker.enqueue(answer.options(delay=3600), 1)
        with contextlib.suppress(BrokerError, NotOpenError):
            await handle.result(timeout=60)
        ended.append("result")

    async def watch(broker: RedisBroker) -> None:
        handle = await broker.enqueue(answer.options(delay=3600), 1)
        with contextlib.suppress(BrokerError, NotOpenError):
            async for _ in handle.watch():
                pass
        ended.append("progress")

    async def consume(broker: RedisBroker) -> None:
        async with aclosing(broker.consume(name="other")) as deliveries:
            with contextlib.suppress(BrokerError, NotOpenError):
                async for delivery in deliveries:
                    await broker.ack(delivery.task_id)
        ended.append("deliveries")

    uses = (enqueue, wait, watch, consume)
    async with anyio.create_task_group() as group:
        with anyio.fail_after(ENDS_WITHIN):
            async with RedisBroker(server.url) as broker:
                for use in uses:
                    group.start_soon(use, broker)
                await anyio.sleep(0.1)
        with anyio.fail_after(ENDS_WITHIN):
            while len(ended) < len(uses):
                await anyio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["killed", "silent"])
async def test_a_broker_is_left_in_bounded_time_after_the_end_of_its_server(fate):
    """While it has a subscription, a blocked read and commands under way; the error of the block comes out."""
    before = open_now()

    async def program(server: RealServer) -> None:
        async with RedisBroker(server.url, connect_timeout=1, reply_timeout=1) as broker:
            handle = await broker.enqueue(answer.options(delay=3600), 1)
            with contextlib.suppress(ResultTimeoutError):
                await handle.result(timeout=0.05)
            with anyio.move_on_after(0.2):
                await anext(broker.consume())
            if fate == "killed":
                server.kill()
                await anyio.sleep(0.05)
            else:
                os.kill(server.pid, signal.SIGSTOP)
            raise OwnError

    with fresh_server("valkey") as server:
        with anyio.fail_after(ENDS_WITHIN), pytest.raises(OwnError):
            await program(server)
        if fate == "silent":
            os.kill(server.pid, signal.SIGCONT)
    await nothing_more_open(before, 0)


async def test_a_cancellation_of_asyncio_itself_leaves_the_block():
    """`Task.cancel` is no cancellation of anyio; the block ends with it all the same."""
    if anyio.get_current_task().__class__.__name__ != "AsyncIOTaskInfo":
        pytest.skip("asyncio has its own cancellation, trio has none beside scopes")
    import asyncio

    before = open_now()

    async def program() -> None:
        async with RedisBroker("memory://") as broker:
            await broker.client.ping()
            await anyio.sleep_forever()

    for at in range(1, 6):
        started = asyncio.ensure_future(program())
        for _ in range(at):
            await asyncio.sleep(0)
        started.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(started, ENDS_WITHIN)
        await nothing_more_open(before, at)


@pytest.mark.parametrize("own_error", [False, True])
async def test_another_task_cannot_leave_a_broker(server, own_error):
    """Its scopes belong to the task that opened it: under trio that was the end of the event loop."""
    before = open_now()

    async def leave(broker: RedisBroker) -> None:
        if own_error:
            error = OwnError()
            assert await broker.__aexit__(OwnError, error, None) is None
            return
        with pytest.raises(
            ConfigurationError, match=r"opened by another task, and stays open: .*own_task.*docs/testing-"
        ):
            await broker.__aexit__(None, None, None)

    async with RedisBroker(server.url) as broker:
        async with anyio.create_task_group() as group:
            group.start_soon(leave, broker)
        await broker.client.ping()
    await nothing_more_open(before, 0)


async def test_a_handler_cannot_leave_the_broker_of_its_worker(server):
    """Its attempt fails, and the worker goes on."""
    brokers: list[RedisBroker] = []

    @task(retries=0, result_ttl=60)
    async def leaves() -> None:
        await brokers[0].__aexit__(None, None, None)

    async with RedisBroker(server.url) as broker:
        brokers.append(broker)
        left = await broker.enqueue(leaves)
        await broker.enqueue(answer, 1)
        with anyio.fail_after(ENDS_WITHIN):
            await Worker(broker, [answer, leaves], burst=True).run()
        with pytest.raises(TaskFailedError, match="opened by another task"):
            await left.result(1)
    assert runs == [1]


async def test_the_counting_of_awaits_counts():
    """The test above would find nothing if no step was ever reached."""
    calls: list[str] = []

    async def program() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()

    assert await stepped(program(), 2, lambda: calls.append("here")) >= 3
    assert calls == ["here"]
