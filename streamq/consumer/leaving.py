"""Leaving: the last commands of a worker to the server, all within one time, and within less once it is to stop now.

Each of them waits for replies, and a server that has stopped answers none. Without one time for all, their limits would
add up. What is not done in that time, the end of the leases does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel

from streamq.consumer.cancellation import by_a_stranger
from streamq.consumer.consumer import Consumer
from streamq.consumer.containment import CancelledByOthersError
from streamq.consumer.left_behind import abandoned_generators_kept
from streamq.consumer.on_exhausted import OnExhausted
from streamq.consumer.runner_pool import Runners

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
        await self._in_time(partial(_until_settled, consumer))
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


async def _until_settled(consumer: Consumer) -> None:
    await consumer.wait_until_settled()
    consumer.settler.counting.held = True  # or the next round trip may begin before its loop is cancelled


@asynccontextmanager
async def running(runners: Runners, concurrency: int) -> AsyncIterator[None]:
    """Start a pool of runners; cancel those that still run at the end, and wait until the last one has ended.

    Raises CancelledByOthersError if somebody else has cancelled them.
    """
    ended = False
    with abandoned_generators_kept():
        async with anyio.create_task_group() as group:
            runners.start(group, concurrency)
            try:
                yield
            except anyio.get_cancelled_exc_class() as error:
                if not by_a_stranger(error):
                    runners.end()
                raise
            ended = True
            runners.end()
            group.cancel_scope.cancel()
    if not ended:
        raise CancelledByOthersError("the task group of the runners")


@asynccontextmanager
async def cancellation_stops(stop: Callable[[], object]) -> AsyncIterator[None]:
    """Have a cancellation from outside call `stop` while a block runs, and be raised when the block has ended.

    The loops that renew leases and release deliveries go on, then, until the last run has ended. A cancellation that
    nobody may have asked for is raised at once: it may be a crash.
    """
    async with anyio.create_task_group() as group:
        with anyio.CancelScope(shield=True) as scope:
            group.start_soon(_watch_cancellation, scope, stop)
            yield
        group.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint_if_cancelled()


async def _watch_cancellation(scope: anyio.CancelScope, stop: Callable[[], object]) -> None:
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class() as error:
        if by_a_stranger(error):
            scope.shield = False
        else:
            stop()
        raise
