"""P4: a task that `cancel()` has found running does not run again, and is no dead letter, whatever its run raises."""

from __future__ import annotations

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, batch_task, current_delivery, task
from streamq.errors import BrokerError, TaskFailedError
from streamq.wire.acl import acl_rules
from tests.at_work import until, working

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired, pytest.mark.slow]

ERRORS = {
    "an error": lambda: ValueError("while it cleans up"),
    "a group": lambda: ExceptionGroup("several", [ValueError("1"), OSError("2")]),
    "a rejection": lambda: Reject("no"),
    "a postponement": lambda: RetryLater(after=30),
    "an exit": lambda: SystemExit(3),
}
raised: list[str] = []  # the error of the runs to come, and a mark for each run


async def sleep_and_raise() -> None:
    try:
        await anyio.sleep(30)
    finally:
        raised.append("run")
        failure = ERRORS[raised[0]]()
        raise failure


@task(result_ttl=60, retries=3)
async def cleans_up_badly() -> None:
    await sleep_and_raise()


@task(result_ttl=60, retries=0)
async def last_attempt() -> None:
    await sleep_and_raise()


@batch_task(result_ttl=60, retries=3, size=2, wait=0.01)
async def in_batches(items: list[int]) -> None:
    await sleep_and_raise()


@task(result_ttl=60, retries=3)
async def is_cancelled_and_fails() -> None:
    """Fails at once after it was cancelled: the word has not come yet."""
    raised.append("run")
    async with RedisBroker(raised[1]) as other:
        assert await other.cancel(current_delivery().task_id)
    failure = ERRORS[raised[0]]()
    raise failure


@pytest.fixture(params=ERRORS)
def error(request):
    raised[:] = [request.param]
    yield request.param
    raised.clear()


async def is_cancelled(server, handle):
    """The waiter is told, and nothing of the task is left to run."""
    with anyio.fail_after(10), pytest.raises(TaskFailedError) as caught:
        await handle.result()
    assert caught.value.reason == "cancelled"
    await until(lambda: server.command("XLEN", "queue:standard") == 0)
    assert server.command("EXISTS", "queue:dead", "queue:standard:delayed", "queue:standard:crashes:workers") == 0
    assert raised.count("run") == 1


@pytest.mark.parametrize(("which", "args"), [(cleans_up_badly, ()), (last_attempt, ()), (in_batches, (1,))])
async def test_what_a_run_raises_while_it_is_cancelled_changes_nothing(real_server, error, which, args):
    async with RedisBroker(real_server.url) as broker, working(broker, which):
        which = which.options(dedup_key="one")
        handle = await broker.enqueue(which, *args)
        await until(lambda: real_server.command("XPENDING", "queue:standard", "workers")[0])
        await anyio.sleep(0.1)
        assert await handle.cancel()
        await is_cancelled(real_server, handle)
        again = await broker.enqueue(which, *args)
        assert again.fresh
        assert await again.cancel()


async def test_a_failure_that_was_decided_before_the_word_comes_is_not_retried(real_server, error):
    """The worker may not subscribe: only the mark on the server tells it."""
    rules = acl_rules(RedisBroker(real_server.url).keys, ["worker"]).words()
    words = [word.replace("PASSWORD", "pw") for word in rules if word != "+subscribe"]
    assert real_server.command("ACL", "SETUSER", "deaf", *words) == b"OK"
    raised.append(real_server.url)
    try:
        deaf = RedisBroker(real_server.url.replace("unix://", "unix://deaf:pw@"))
        async with RedisBroker(real_server.url) as producer, deaf, working(deaf, is_cancelled_and_fails):
            await is_cancelled(real_server, await producer.enqueue(is_cancelled_and_fails))
    finally:
        real_server.command("ACL", "DELUSER", "deaf")


@task(result_ttl=60, retries=3)
async def waits() -> None:
    raised.append("run")
    await anyio.sleep(1.5)


async def test_a_task_of_another_tier_with_the_same_entry_id_runs_on(real_server):
    """The word named the id alone, and ids of entries that are sent in one millisecond are equal in all streams."""
    raised.clear()
    for stream in ("queue:critical", "queue:standard", "queue:bulk"):
        real_server.command("XADD", stream, "9999999999999-1", "task", waits.name, "id", stream.replace(":", "-"))
    async with RedisBroker(real_server.url) as broker, working(broker, waits):
        await until(lambda: raised.count("run") == 3)
        assert await broker.cancel("queue-bulk")
        with anyio.fail_after(10), pytest.raises(TaskFailedError, match="cancelled"):
            await broker.handle("queue-bulk").result()
        for other in ("queue-critical", "queue-standard"):
            with anyio.fail_after(10):
                assert await broker.handle(other).result() is None


@pytest.mark.parametrize("how", ["its worker is dead", "it was released"])
async def test_a_cancelled_task_of_a_worker_that_is_gone_is_not_run(real_server, how):
    """No worker was there to hear it."""
    raised.clear()
    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(waits)
        real_server.command("XGROUP", "CREATE", "queue:standard", "workers", "0", "MKSTREAM")
        name = "released" if how == "it was released" else "dead"
        real_server.command("XREADGROUP", "GROUP", "workers", name, "STREAMS", "queue:standard", ">")
        if name == "dead":
            real_server.command("ZADD", "queue:standard:alive:workers", 1, "dead")
        await anyio.sleep(0.5)
        assert await handle.cancel()
        async with working(broker, waits, visibility_timeout=0.4):
            with anyio.fail_after(10), pytest.raises(TaskFailedError, match="cancelled"):
                await handle.result()
    assert raised == []
    assert real_server.command("EXISTS", "queue:dead", "queue:standard:crashes:workers") == 0


@pytest.mark.parametrize("missing", [["+hset", "+publish"], ["+hset", "the channels"]])
async def test_a_cancellation_that_nobody_can_hear_of_is_an_error(real_server, missing):
    """It said True, and the task ran on."""
    raised.clear()
    rules = acl_rules(RedisBroker(real_server.url).keys, ["producer"]).words()
    words = [word.replace("PASSWORD", "pw") for word in rules if word not in missing]
    if "the channels" in missing:
        words = [word for word in words if not word.startswith("&")]
    assert real_server.command("ACL", "SETUSER", "dumb", *words) == b"OK"
    try:
        async with RedisBroker(real_server.url) as broker, working(broker, waits):
            handle = await broker.enqueue(waits)
            await until(lambda: raised)
            async with RedisBroker(real_server.url.replace("unix://", "unix://dumb:pw@")) as other:
                with pytest.raises(BrokerError, match=r"(?i)hset"):
                    await other.cancel(handle.task_id)
            with anyio.fail_after(10):
                await handle.result()
    finally:
        real_server.command("ACL", "DELUSER", "dumb")
