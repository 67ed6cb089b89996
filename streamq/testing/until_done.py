"""The worker of `run_tasks`: it ends as soon as nothing is due, and lives on while the clock of the server jumps.

Theory. A clock that jumps looks like a pause in which a worker lost its leases, and its loops wait in real time. So it
jumps only while this worker holds nothing, and tells it by the words that workers tell each other, `due` and
`schedules` (docs/wire-format.md). A jump then costs what its work costs, and not the start of a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import anyio

from streamq.broker import RedisBroker
from streamq.consumer.consumer import Consumer
from streamq.queue.schedules import Schedule
from streamq.queue.store import Store
from streamq.testing.suite_clock import SuiteClock
from streamq.worker import Worker

_LOOK_EVERY = 0.02  # seconds between two looks whether all is done, while tasks run and none ends
_SHORTEST = 0.002  # and while none runs
_HORIZON = 60.0  # seconds: where the clock cannot be moved, a task that is delayed by less is waited for
PRECISION = 0.001  # seconds: due times are whole milliseconds
_LOOKS = 10  # looks of an idle worker until its loops are told once more
_IDLE = 120.0  # virtual seconds: for longer than this an idle worker costs more than the start of another


class UntilDone(Worker):
    """A worker that ends as soon as nothing is due, and nothing comes due.

    `clock` is that of the server, None: it cannot be moved, and what comes due is not waited for. Else the worker moves
    on to each due time up to `until` (Unix s), while `may_go_on()`. With `until` schedules tick; else none is declared.
    """

    def __init__(
        self, *args: Any, clock: SuiteClock | None, until: float | None, may_go_on: Callable[[], bool], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock
        self._until = until
        self._may_go_on = may_go_on
        if until is None:
            self._declared = []
        self._settled = anyio.Event()  # set by the next end of a run

    def note_settled(self) -> None:
        """Note that a run has ended: all may be done."""
        self._settled.set()

    async def _until_drained(self, store: Store, consumer: Consumer) -> None:
        while True:
            listed = await self._until_done(store, consumer)
            if self._clock is None or not self._may_go_on():
                return
            delayed, tick = await next_due(self.broker, self._until, listed)
            soonest = min(delayed, tick)
            if soonest == inf or (self._clock.is_virtual and soonest - self._clock.now() > _IDLE):
                return
            self._settled = anyio.Event()
            await self._clock.move_to(soonest + PRECISION)
            await self._tell(store, *(["due"] if delayed <= tick else []), *(["schedules"] if tick <= delayed else []))
            with anyio.move_on_after(self._longest):  # most jumps have a task run, and a look costs as much as that
                await self._settled.wait()

    @property
    def _longest(self) -> float:
        """Seconds until the next look while tasks run. Virtual time is time that nobody waits for."""
        return _LOOK_EVERY if self._clock is None or not self._clock.is_virtual else _HORIZON

    async def _tell(self, store: Store, *words: str) -> None:
        """Have the loops look what has come due: they wait in real time. In virtual time they wake up by themselves."""
        if self._clock is not None and not self._clock.is_virtual:
            await store.call([("PUBLISH", store.keys.wake, word) for word in words])

    async def _until_done(self, store: Store, consumer: Consumer) -> list[Schedule]:
        """Return the schedules as they are when nothing is due any more."""
        horizon, looks = _HORIZON if self._clock is None else 0.0, 0
        while True:
            listed = await self._schedules_if_done(store, consumer, horizon)
            if listed is not None:
                return listed
            self._settled = anyio.Event()
            looks = looks + 1 if consumer.buffer.idle else 0
            if looks % _LOOKS == _LOOKS - 1:  # something came due after the last word
                await self._tell(store, "due", "schedules")
            with anyio.move_on_after(_SHORTEST if consumer.buffer.idle else self._longest):
                await self._settled.wait()

    async def _schedules_if_done(self, store: Store, consumer: Consumer, horizon: float) -> list[Schedule] | None:
        aside = consumer.settler.set_aside
        if not consumer.buffer.idle or consumer.unsettled or aside.trying:
            return None
        listed = [] if self._until is None else await self.broker.schedules()  # before the other: a tick sends a task
        if self._until is not None and not self._has_ticked(listed):
            return None
        return listed if await store.drained(horizon, left=aside.left_by_tier()) else None

    def _has_ticked(self, listed: list[Schedule]) -> bool:
        now = self.broker.server_clock.now()
        return {one.name for one in self._declared} <= {one.name for one in listed} and all(
            one.problem or one.next is None or one.next.timestamp() > now for one in listed
        )


async def next_due(broker: RedisBroker, until: float | None, listed: Iterable[Schedule]) -> tuple[float, float]:
    """Return when (Unix s) the next delayed task and the next tick of a schedule are due, inf if not before `until`."""
    delayed = [one.due.timestamp() async for one in broker.scheduled(limit=1)]
    ticks = [one.next.timestamp() for one in listed if one.next is not None and not one.problem]
    last = inf if until is None else until
    found = [min((at for at in due if at <= last), default=inf) for due in (delayed, ticks)]
    return found[0], found[1]
