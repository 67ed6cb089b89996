"""What a schedule may be: a definition that is accepted can be read again by every worker."""

from __future__ import annotations

import pytest

from streamq import RedisBroker, task
from streamq.errors import EncodingError

pytestmark = pytest.mark.paired("memory")


@pytest.fixture
async def broker(server):
    async with RedisBroker(server.url) as opened:
        yield opened


@task
async def beat() -> None: ...


async def test_an_expiry_at_its_bound_can_be_read_again(broker):
    """The highest value of `expires` was stored, and no worker could read it: the schedule never ticked."""
    await broker.schedule("s", "* * * * *", beat.options(expires=1e10).call())
    (schedule,) = await broker.schedules()
    assert (schedule.task, schedule.expression) == ("beat", "* * * * *")


@pytest.mark.parametrize("depth", [253, 300])
async def test_headers_that_cannot_be_stored_are_refused_as_those_of_an_enqueue(broker, depth):
    """The error is ours, names the task, and nothing is stored."""
    headers: dict = {}
    for _ in range(depth):
        headers = {"a": headers}
    with pytest.raises(EncodingError, match=r"'beat'.*headers"):
        await broker.schedule("s", "* * * * *", beat.options(headers=headers).call())
    assert await broker.schedules() == []
