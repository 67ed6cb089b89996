"""The loop by hand: `consume`, `ack` and `nack`."""

from __future__ import annotations

from contextlib import aclosing

import anyio
import anyio.lowlevel
import pytest

from streamq import RedisBroker, task
from streamq.errors import ConfigurationError, NotHeldError, TaskFailedError
from tests.at_work import assert_nothing_left, dead, pending, until

pytestmark = pytest.mark.paired("memory")


@task(validate=False)
async def send(to: str, n: int = 1) -> None: ...


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


async def test_the_loop_by_hand(server, broker):
    """SPEC 2: run it, then acknowledge it; what is acknowledged is gone when `ack` returns."""
    await broker.enqueue_many([send.call("a", n=n) for n in range(5)])
    got = []
    async with aclosing(broker.consume()) as messages:
        async for message in messages:
            assert message.task == "send"
            got.append((message.args, message.kwargs))
            before = server.command("XLEN", "queue:standard")
            await broker.ack(message.task_id)
            assert server.command("XLEN", "queue:standard") == before - 1
            if len(got) == 5:
                break
    assert got == [(["a"], {"n": n}) for n in range(5)]
    await until(lambda: pending(server) == 0)


async def test_a_message_that_comes_later_is_waited_for(server, broker):
    """Without polling: the loop blocks."""
    async with anyio.create_task_group() as group, aclosing(broker.consume()) as messages:

        async def send_soon():
            await until(lambda: server.command("EXISTS", "queue:standard"))
            await broker.enqueue(send, "late")

        group.start_soon(send_soon)
        message = await anext(messages)
        assert message.args == ["late"]
        await broker.ack(message.task_id)


async def test_one_at_a_time_so_that_others_get_their_share(server, broker):
    """A loop by hand holds what it is working on and nothing else."""
    await broker.enqueue_many([send.call(str(n)) for n in range(10)])
    async with aclosing(broker.consume(name="one")) as one, aclosing(broker.consume(name="two")) as two:
        first, second = await anext(one), await anext(two)
        assert first.task_id != second.task_id
        assert pending(server) <= 4
        await broker.ack(first.task_id)
        await broker.ack(second.task_id)


async def test_tiers_are_taken_by_weight(server, broker):
    """P7 holds for a loop by hand as well."""
    for priority in (100, 10, 1):
        await broker.enqueue_many([send.options(priority=priority).call("x")] * 40)
    tiers = []
    async with aclosing(broker.consume()) as messages:
        async for message in messages:
            tiers.append(message.tier_name)
            await broker.ack(message.task_id)
            if len(tiers) == 50:
                break
    counts = [tiers.count(name) for name in ("critical", "standard", "bulk")]
    assert all(abs(count - share) <= 2 for count, share in zip(counts, (30, 15, 5), strict=True)), counts


async def test_leaving_the_loop_hands_back_what_is_not_acknowledged(server):
    """At once, to anybody; no lease has to end, and the consumer is gone."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(send, "x")
        async with aclosing(broker.consume(name="me")) as messages:
            async for _ in messages:
                break
    async with RedisBroker(server.url) as broker, aclosing(broker.consume(name="you")) as messages:
        with anyio.fail_after(5):
            message = await anext(messages)
        assert message.redelivered
        assert message.crashed_workers == ()
        await broker.ack(message.task_id)
    assert pending(server) == 0
    assert {flat[1] for flat in server.command("XINFO", "CONSUMERS", "queue:standard", "workers")} <= {b"released"}


async def test_a_broker_that_ends_hands_back_too(server):
    """Even if nobody closed the iterator."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(send, "x")
        messages = broker.consume()
        await anext(messages)
    await messages.aclose()
    assert [row[1] for row in server.command("XPENDING", "queue:standard", "workers", "-", "+", 9)] == [b"released"]


async def test_who_waits_for_a_task_that_is_buried_is_told(server, broker):
    handle = await broker.enqueue(send.options(result_ttl=60), "a")
    async with aclosing(broker.consume()) as messages:
        await broker.nack((await anext(messages)).task_id, error=ValueError("useless"))
        with pytest.raises(TaskFailedError, match="useless"):
            await handle.result(1)


async def test_nack_gives_back_or_buries(server, broker):
    """Without an error anybody may have it at once; with one it is a dead letter."""
    await broker.enqueue(send, "x")
    async with aclosing(broker.consume()) as messages:
        message = await anext(messages)
        await broker.nack(message.task_id)
        with anyio.fail_after(5):
            again = await anext(messages)
        assert again.task_id == message.task_id
        await broker.nack(again.task_id, error=ValueError("useless"))
    (letter,) = dead(server)
    assert (letter["reason"], letter["error_type"], letter["error"]) == ("rejected", "ValueError", "useless")
    await until(lambda: pending(server) == 0)


async def test_what_is_not_held_cannot_be_settled(server, broker):
    """Never consumed, or acknowledged already."""
    with pytest.raises(NotHeldError, match="nothing"):
        await broker.ack("nothing")
    await broker.enqueue(send, "x")
    async with aclosing(broker.consume()) as messages:
        message = await anext(messages)
        await broker.ack(message.task_id)
        for door in (broker.ack, broker.nack):
            with pytest.raises(NotHeldError):
                await door(message.task_id)


async def test_what_is_no_id_and_no_error_is_refused_and_the_delivery_stays_held(server, broker):
    """The delivery in the place of its id was said to be settled already; a text was a dead letter of an odd class."""
    await broker.enqueue(send, "x")
    async with aclosing(broker.consume()) as deliveries:
        delivery = await anext(deliveries)
        for wrong in (delivery, 5, None, b"x", [], {}):
            wanted = rf"task_id is of type {type(wrong).__name__}: give .* delivery\.task_id"
            with pytest.raises(ConfigurationError, match=wanted):
                await broker.ack(wrong)
            with pytest.raises(ConfigurationError, match=wanted):
                await broker.nack(wrong)
        for wrong in ("text", 5, ValueError):
            with pytest.raises(ConfigurationError, match=r"error is of type \w+: give an exception, as in error="):
                await broker.nack(delivery.task_id, error=wrong)
        await broker.ack(delivery.task_id)
    assert server.command("XLEN", "queue:dead") == 0
    for wrong in (5, None, b"x", []):
        with pytest.raises(ConfigurationError, match=r"name is of type .*: give the name of a schedule"):
            await broker.unschedule(wrong)
        with pytest.raises(ConfigurationError, match=r"is of type .*: give"):
            broker.declared(wrong or [None])


async def test_what_is_no_message_goes_to_the_dead_letters(server, broker):
    """And the loop goes on with the next."""
    server.command("XADD", "queue:standard", "*", "no", "task")
    server.command("XADD", "queue:standard", "*", "task", "t", "args", "{")
    server.command("XADD", "queue:standard", "*", "task", "t", "extra", b"\xff")
    await broker.enqueue(send, "good")
    async with aclosing(broker.consume()) as messages:
        message = await anext(messages)
        assert message.args == ["good"]
        await broker.ack(message.task_id)
    assert [letter["reason"] for letter in dead(server)] == ["undecodable"] * 3


@pytest.mark.slow
async def test_a_message_that_is_held_for_long_stays_ours(real_server):
    """P3: its lease is renewed in the background, past the visibility timeout."""
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(send, "x")
        async with aclosing(broker.consume(name="me", visibility_timeout=0.4)) as messages:
            message = await anext(messages)
            async with aclosing(broker.consume(name="thief", visibility_timeout=0.4)) as others:
                with anyio.move_on_after(0.9) as scope:
                    await anext(others)
                assert scope.cancelled_caught
            (row,) = real_server.command("XPENDING", "queue:standard", "workers", "-", "+", 9)
            assert row[1].startswith(b"me-")
            await broker.ack(message.task_id)
    assert real_server.command("XLEN", "queue:standard") == 0


async def test_delayed_tasks_are_promoted_by_a_loop_by_hand_too(server, broker):
    """A program without a worker need not have one for that."""
    await broker.enqueue(send.options(delay=0.1), "later")
    async with aclosing(broker.consume()) as messages:
        with anyio.fail_after(5):
            message = await anext(messages)
        assert message.args == ["later"]
        await broker.ack(message.task_id)


async def test_a_retry_of_another_group_is_passed_over(server, broker):
    """SPEC 3: the others do not run it again."""
    server.command("XADD", "queue:standard", "*", "task", "send", "group", "others", "args", '["theirs"]')
    await broker.enqueue(send, "ours")
    async with aclosing(broker.consume()) as messages:
        message = await anext(messages)
        assert message.args == ["ours"]
        await broker.ack(message.task_id)


async def test_a_loop_that_is_cancelled_hands_back(server, broker):
    """Cancellation is an end as any other."""
    await broker.enqueue(send, "x")
    got = []

    async def loop():
        async with aclosing(broker.consume()) as messages:
            async for message in messages:
                got.append(message)  # noqa: PERF401

    async with anyio.create_task_group() as group:
        group.start_soon(loop)
        await until(lambda: got)
        group.cancel_scope.cancel()
    rows = await until(lambda: server.command("XPENDING", "queue:standard", "workers", "-", "+", 9))
    await until(lambda: server.command("XPENDING", "queue:standard", "workers", "-", "+", 9)[0][1] == b"released")
    assert len(rows) == 1


async def test_two_loops_of_one_name_are_the_users_mistake_and_lose_nothing(server, broker):
    """They share a pending list; every message is still acknowledged once."""
    await broker.enqueue_many([send.call(str(n)) for n in range(20)])
    got = []

    async def loop():
        async with aclosing(broker.consume(name="same")) as messages:
            async for message in messages:
                await anyio.lowlevel.checkpoint()
                await broker.ack(message.task_id)
                got.append(message.args[0])

    async with anyio.create_task_group() as group:
        group.start_soon(loop)
        group.start_soon(loop)
        await until(lambda: len(set(got)) == 20)
        group.cancel_scope.cancel()
    assert_nothing_left_but_consumers(server)


def assert_nothing_left_but_consumers(server):
    assert server.command("XLEN", "queue:standard") == 0
    assert pending(server) == 0


async def test_after_the_loop_nothing_is_left(server):
    """No lease, no consumer, no key that is not documented."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(send, "x")
        async with aclosing(broker.consume()) as messages:
            message = await anext(messages)
            await broker.ack(message.task_id)
    assert_nothing_left(server)


async def test_a_visibility_timeout_that_cannot_be_used_is_refused(server, broker):
    """Where it is written."""
    for wrong in (0, -1, float("nan"), "30"):
        with anyio.fail_after(2), pytest.raises(ConfigurationError, match="visibility_timeout"):
            await anext(broker.consume(visibility_timeout=wrong))
