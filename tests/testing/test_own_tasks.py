"""A manager in a task of its own is left where it was entered, whoever leaves it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from streamq import RedisBroker
from streamq.testing import own_task


@asynccontextmanager
async def noting(tasks, *, enter=None, leave=None):
    tasks.append(anyio.get_current_task().id)
    if enter is not None:
        raise enter
    yield "value"
    tasks.append(anyio.get_current_task().id)
    if leave is not None:
        raise leave


async def enter_and_leave_apart(manager):
    """As pytest-asyncio does; under trio in one task, as pytest-trio does. Return what was entered."""
    stack = AsyncExitStack()
    values = []

    async def enter():
        values.append(await stack.enter_async_context(manager))

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
    await stack.aclose()
    return values[0]


@pytest.fixture
def apart(anyio_backend_name):
    if anyio_backend_name == "trio":
        pytest.skip("a fixture of pytest-trio is one task")


async def test_one_task_enters_and_leaves():
    tasks = []
    async with own_task(noting(tasks)) as value:
        assert value == "value"
    assert tasks[0] == tasks[1]


async def test_another_task_leaves(apart):
    tasks = []
    assert await enter_and_leave_apart(own_task(noting(tasks))) == "value"
    assert tasks[0] == tasks[1] != anyio.get_current_task().id


async def test_a_broker(apart):
    """Without this it says what to do (tests/promises/test_leaving.py)."""
    broker = await enter_and_leave_apart(own_task(RedisBroker("memory://")))
    assert "closed" in repr(broker)


async def test_errors_come_out():
    for where in ("enter", "leave"):
        with pytest.raises(KeyError, match=where):
            async with own_task(noting([], **{where: KeyError(where)})):
                pass
