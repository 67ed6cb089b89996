"""What has not run is not acknowledged: coroutines that nobody awaited, generators that nobody asked."""

from __future__ import annotations

import functools

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, batch_task, task
from streamq.errors import TaskFailedError
from tests.at_work import burst, dead, pending, until, working

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired]


@pytest.fixture
async def broker(real_server):
    async with RedisBroker(real_server.url) as opened:
        yield opened


def sync(function):
    """Wrap a function as decorators do that know nothing of async."""

    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def forgetful(function):
    """Wrap a function as an async decorator does that forgets to await."""

    @functools.wraps(function)
    async def wrapper(*args):
        return function(*args)

    return wrapper


async def body(number):
    raise AssertionError(number)


def rows(number):
    yield number


async def async_rows(number):
    yield number


class Later:
    """Neither a coroutine nor a generator, but awaitable."""

    def __init__(self, number):
        self.number = number

    def __await__(self):
        yield


UNRUN = {
    "a coroutine in the loop": (forgetful(body), "coroutine"),
    "a generator": (sync(rows), "generator"),
    "a generator in the loop": (forgetful(rows), "generator"),
    "an async generator": (sync(async_rows), "async_generator"),
    "an awaitable in the loop": (forgetful(Later), "Later"),
    "a coroutine of a coroutine": (sync(forgetful(body)), "coroutine"),
}


@pytest.mark.parametrize("kept", [None, 60])
@pytest.mark.parametrize("what", UNRUN)
async def test_what_has_not_run_has_failed(real_server, broker, what, kept):
    function, returned = UNRUN[what]
    wrong = task(name="wrong", retries=0, result_ttl=kept)(function)
    await broker.enqueue(wrong, 7)
    await burst(broker, wrong)
    (letter,) = dead(real_server)
    assert (letter["reason"], letter["error_type"]) == ("retries_exhausted", "TypeError")
    assert f"task 'wrong' returned a {returned}, which is not run" in letter["error"]
    assert pending(real_server) == 0


async def test_of_a_batch_the_one_has_failed(real_server, broker):
    """Its neighbours have not."""

    @batch_task(size=3, retries=0)
    async def each(numbers: list[int]) -> list[object]:
        return [body(number) if number == 1 else number for number in numbers]

    await broker.enqueue_many([each.call(number) for number in range(3)])
    await burst(broker, each)
    (letter,) = dead(real_server)
    assert (letter["error_type"], letter["args"]) == ("TypeError", "[1]")


@pytest.mark.parametrize("raised", [ConnectionError, SystemExit, RetryLater, Reject])
async def test_an_error_at_the_end_of_the_grace_period_spends_no_attempt(real_server, broker, raised):
    """Clients of databases raise one if they cannot clean up. What asks for something counts."""
    began = []

    @task(retries=0)
    async def transfer() -> None:
        began.append(1)
        try:
            await anyio.sleep(30)
        except BaseException as error:
            raise (raised("later", after=60) if raised is RetryLater else raised("no rollback")) from error

    await broker.enqueue(transfer)
    async with working(broker, transfer, grace_period=0.05):
        await until(lambda: began)
    assert [letter["reason"] for letter in dead(real_server)] == (["rejected"] if raised is Reject else [])
    asked = raised in (RetryLater, Reject)
    assert pending(real_server) == (0 if asked else 1)
    assert real_server.command("ZCARD", "queue:standard:delayed") == (raised is RetryLater)


class Outside:
    """A lazy proxy outside of its context, as those of web frameworks: whoever looks at it gets an error."""

    @property
    def __class__(self):
        raise RuntimeError("working outside of application context")


@task(retries=1, backoff=0.01, result_ttl=60)
async def lazy_in_loop():
    return Outside()


@task(retries=1, backoff=0.01)
def lazy_in_thread():
    return Outside()


@batch_task(size=2, wait=0.2, retries=0, result_ttl=60)
async def lazy_batch(items: list[int]) -> list[int]:
    return [Outside() if item else 5 for item in items]  # type: ignore[misc]


async def test_work_is_done_though_its_result_cannot_be_looked_at(real_server, broker):
    """One run, acknowledged; who waits for the result is told why there is none. Others of its batch have theirs."""
    alone = await broker.enqueue(lazy_in_loop)
    await broker.enqueue(lazy_in_thread)
    handles = [await broker.enqueue(lazy_batch, item) for item in (0, 1)]
    await burst(broker, lazy_in_loop, lazy_in_thread, lazy_batch)
    assert await handles[0].result(timeout=5) == 5
    for handle in (alone, handles[1]):
        with pytest.raises(TaskFailedError, match="the task succeeded, its result"):
            await handle.result(timeout=5)
    assert dead(real_server) == []
