"""An async context manager in a task of its own, so that it may be entered in one task and left in another.

For fixtures of pytest-asyncio, which sets a fixture up in one task and tears it down in another. Task groups and cancel
scopes, which a broker is made of, belong to one task. Under trio nothing of this is needed, and nothing is done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import current_token

T = TypeVar("T")


@asynccontextmanager
async def own_task(manager: AbstractAsyncContextManager[T]) -> AsyncGenerator[T, None]:
    """Enter `manager` in a task of its own, which leaves it at the end of this block, whichever task ends the block.

        @pytest_asyncio.fixture
        async def broker():
            async with own_task(RedisBroker("memory://")) as broker:
                yield broker

    Raises what the manager raises as it is entered and left.
    """
    loop: Any = current_token().native_token
    if not hasattr(loop, "create_task"):  # not asyncio's: a fixture of pytest-trio is one task
        async with manager as value:
            yield value
        return
    holder = _Holder(manager)
    task = loop.create_task(holder.hold())
    await holder.entered.wait()
    if not holder.values:
        await task  # raises
    try:
        yield holder.values[0]
    finally:
        holder.leave.set()
        await task


class _Holder(Generic[T]):
    """Enters and leaves a manager in one task."""

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self.entered = anyio.Event()
        self.leave = anyio.Event()
        self.values: list[T] = []  # what the manager has returned, once it is entered
        self._manager = manager

    async def hold(self) -> None:
        """Enter the manager, wait, leave it."""
        try:
            async with self._manager as value:
                self.values.append(value)
                self.entered.set()
                await self.leave.wait()
        finally:
            self.entered.set()
