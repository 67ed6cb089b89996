"""P1: an error of streamq's own that a handler raises, or lets through, is a failure of its run, not of its message."""

from __future__ import annotations

import anyio
import pytest

from streamq import RedisBroker, batch_task, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import ArgumentsError, SignatureError, UndecodableError
from streamq.middleware import MiddlewareChain
from tests.at_work import burst, entries

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired, pytest.mark.slow]

ERRORS = {error.__name__: error for error in (UndecodableError, SignatureError, ArgumentsError)}
FAST = {"retries": 1, "backoff": 0.01}


@task(**FAST)
async def raises(kind: str) -> None:
    raise ERRORS[kind]("of the handler")


@task(**FAST)
async def raises_in_a_group(kind: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(raises.function, kind)


@task(**FAST)
def raises_in_a_thread(kind: str) -> None:
    raise ERRORS[kind]("of the handler")


@task(run_in="process", **FAST)
def raises_in_a_process(kind: str) -> None:
    raise ERRORS[kind]("of the handler")


@batch_task(size=1, **FAST)
async def raises_in_a_batch(kinds: list[str]) -> None:
    raise ERRORS[kinds[0]]("of the handler")


@task(**FAST)
async def takes_a_number(number: int) -> None: ...


@task(**FAST)
async def enqueues_nonsense(broker_url: str) -> None:
    async with RedisBroker(broker_url) as broker:
        await broker.enqueue(takes_a_number, "one", "two")


@task(**FAST)
async def enqueues_nonsense_in_a_group(broker_url: str) -> None:
    async with RedisBroker(broker_url) as broker, anyio.create_task_group() as group:
        group.start_soon(broker.enqueue, takes_a_number, "one", "two")


TASKS = [raises, raises_in_a_group, raises_in_a_thread, raises_in_a_process, raises_in_a_batch, takes_a_number]
TASKS += [enqueues_nonsense, enqueues_nonsense_in_a_group]


async def around(context, call_next):
    """Middleware of the user, which is around every run."""
    return await call_next(context)


@pytest.fixture(params=[None, MiddlewareChain(around)], ids=["plain", "middleware"])
async def broker(request, real_server):
    async with RedisBroker(real_server.url, middleware=request.param) as broker:
        yield broker


def ended(server):
    return [(fields["reason"], fields.get("attempts")) for fields in entries(server, "queue:dead")]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("which", TASKS[:5], ids=lambda one: one.function.__name__)
async def test_it_is_retried_and_can_be_replayed(real_server, broker, which, kind):
    handle = await broker.enqueue(which, kind)
    await burst(broker, *TASKS)
    assert ended(real_server) == [("retries_exhausted", "2")]
    assert await DeadLetterQueue(broker=broker).replay(task_id=handle.task_id)


@pytest.mark.parametrize("which", TASKS[6:], ids=lambda one: one.function.__name__)
async def test_arguments_of_another_task_are_not_those_of_the_message(real_server, broker, which):
    await broker.enqueue(which, real_server.url)
    await burst(broker, *TASKS)
    assert ended(real_server) == [("retries_exhausted", "2")]


async def test_what_is_wrong_with_the_message_is_its_own(real_server, broker):
    await broker.enqueue(takes_a_number.name, "one", "two")
    await broker.client.xadd("queue:standard", {"task": takes_a_number.name, "args": "[["})
    await burst(broker, *TASKS)
    assert sorted(reason for reason, _ in ended(real_server)) == ["rejected", "undecodable"]
