"""Leaving: the last commands of a worker to the server, all within one time, and within less once it is to stop now.

Each of them waits for replies, and a server that has stopped answers none. Without one time for all, their limits would
add up. What is not done in that time, the end of the leases does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from streamq.consumer.consumer import Consumer
from streamq.consumer.on_exhausted import OnExhausted

LEAVE_WITHIN = 5.0  # seconds for all commands
_RESERVED = 1.0  # seconds of these for the last step, which releases what is held
_CALLS_WITHIN = 5.0  # seconds for calls of `on_exhausted` that still wait: they are code of the user
_AT_ONCE = 0.5  # seconds that a step may take after the second request to stop


class Leaving:
    """The time that one worker has to leave; `stop_now` is set by the second request to stop."""

    def __init__(self, stop_now: anyio.Event) -> None:
        self._stop_now = stop_now
        self._left = LEAVE_WITHIN

    def __repr__(self) -> str:
        return f"<Leaving: {self._left:.1f} s left>"

    async def stop_reading(self, consumer: Consumer) -> None:
        """Stop reading."""
        await self._in_time(consumer.stop_reading)

    async def finish(self, consumer: Consumer, on_exhausted: OnExhausted) -> None:
        """Wait for what runs have left to be settled. A round trip that is cut off would count its counters twice."""
        await self._in_time(consumer.wait_until_settled)
        if on_exhausted:
            await self._do(on_exhausted.finish, _CALLS_WITHIN, at_once=_AT_ONCE)
            await self._in_time(consumer.wait_until_settled)

    async def leave(self, consumer: Consumer, *, crashed: bool) -> None:
        """Leave the group, whatever is cancelled."""
        with anyio.CancelScope(shield=True):
            await self._do(partial(consumer.leave, crashed=crashed), max(self._left, _RESERVED), at_once=_RESERVED)

    async def _in_time(self, step: Callable[[], Awaitable[None]]) -> None:
        began = anyio.current_time()
        await self._do(step, max(0.0, self._left - _RESERVED), at_once=_AT_ONCE)
        self._left -= anyio.current_time() - began

    async def _do(self, step: Callable[[], Awaitable[None]], within: float, *, at_once: float) -> None:
        with anyio.move_on_after(within) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._hurry, scope, at_once)
                await step()
                group.cancel_scope.cancel()

    async def _hurry(self, scope: anyio.CancelScope, at_once: float) -> None:
        await self._stop_now.wait()
        scope.deadline = min(scope.deadline, anyio.current_time() + at_once)
