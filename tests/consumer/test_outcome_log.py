"""What the log says of a run that raised is in words: the attempt, the delay, why it waits."""

from __future__ import annotations

import logging

import pytest

from streamq import RedisBroker, Reject, RetryLater, task
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, MiddlewareChain, RateLimitMiddleware
from streamq.tasks.retry_policy import Backoff
from tests.at_work import burst

pytestmark = pytest.mark.anyio


@pytest.fixture
def lines(caplog):
    """The lines about tasks, with their levels, without task ids."""
    caplog.set_level(logging.DEBUG, "streamq")

    def found(name: str) -> list[tuple[str, str]]:
        said = [(record.levelname, record.message) for record in caplog.records]
        return [(level, line) for level, line in said if line.startswith(f"task {name} ")]

    return found


async def test_a_retry_names_its_attempt_and_its_delay(server, lines):
    """A run that failed, and the last one."""

    @task(name="send", retries=1, backoff=Backoff(base=0.05, jitter=False))
    async def send():
        raise ValueError("no")

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(send)
        await burst(broker, send)
    assert lines("send")[:2] == [
        ("INFO", f"task send {handle.task_id}: attempt 1 failed: ValueError('no'); the next one is in 0.05 s"),
        ("INFO", f"task send {handle.task_id}: attempt 2 failed: ValueError('no'); there is no other"),
    ]


async def test_a_request_of_the_handler_is_said(server, lines):
    """`RetryLater` with its reason; `Reject` has no other attempt."""
    seen = []

    @task(name="poll")
    async def poll():
        seen.append(1)
        raise RetryLater("not yet there", after=0.05) if len(seen) == 1 else Reject("no such thing")

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(poll)
        await burst(broker, poll)
    first, second, *_ = lines("poll")
    assert first == ("INFO", f"task poll {handle.task_id} is postponed, and runs again in 0.05 s: not yet there")
    assert second[1].endswith("attempt 1 failed: Reject('no such thing'); there is no other")


@pytest.mark.parametrize(
    "limit",
    [
        lambda: RateLimitMiddleware(20, burst=1),
        lambda: CircuitBreaker(1, 0.1, release_rate=1000),
        lambda: ConcurrencyLimit(1, name="one"),
    ],
    ids=["rate", "circuit", "concurrency"],
)
async def test_what_a_limit_holds_back_is_for_the_debugger(server, lines, limit):
    """Thousands may wait, again and again: no line above debug is about one of them."""
    seen = []

    @task(name="call", retries=0)
    async def call():
        seen.append(1)
        if len(seen) == 1:
            raise ConnectionError("down")

    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([call.call() for _ in range(5)])
        await burst(broker, call, middleware=MiddlewareChain(limit()), concurrency=2)
    waited = [level for level, line in lines("call") if "is postponed, and runs again in" in line]
    assert set(waited) <= {"DEBUG"}
    assert [line for level, line in lines("call") if level == "INFO" and "down" not in line] == []
