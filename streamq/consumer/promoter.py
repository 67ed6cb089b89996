"""The scheduler: moves delayed messages to their streams when they are due.

It sleeps until the next is due. What changes that from outside, a message due earlier, comes
over a pub/sub channel, so nothing is polled; a look every `TICK` seconds covers what nobody said, as
of a message that was written by hand, and leaps of the server's clock. A look asks for the first of each
tier and the time, and no more. Every worker has one and any may act: the step is atomic.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import redis.exceptions

from streamq.consumer.consumer import Consumer
from streamq.errors import BrokerError
from streamq.queue.delayed import next_due, promote
from streamq.queue.server_errors import translated

TICK = 10.0
_DEAF = 5.0  # seconds: the same, while the channel cannot be heard
_BATCH = 100  # messages of each tier that one step moves
_MARGIN = 0.0005  # seconds: the server counts in whole milliseconds


class Scheduler:
    """The loop that promotes, and the one that listens."""

    def __init__(
        self, consumer: Consumer, *, on_released: Callable[[], None], on_cancel: Callable[[bytes], None],
        on_schedules: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._consumer = consumer
        self._store = consumer.store
        self._on_released = on_released
        self._on_cancel = on_cancel
        self._on_schedules = on_schedules
        self._wake = anyio.Event()
        self._deaf = True
        self.next_due: float | None = None  # seconds, as of the last look

    def __repr__(self) -> str:
        return f"<Scheduler of {self._consumer.name} next due in {self.next_due}>"

    async def promote_forever(self) -> None:
        """Promote what is due, when it is due, until cancelled."""
        expected = True  # that something is due: it was known, or somebody said so
        while True:
            self._wake = anyio.Event()
            moved, more = 0, False
            try:
                if expected:
                    moved, self.next_due, more = await promote(self._store, _BATCH)
                else:
                    self.next_due = await next_due(self._store)
            except BrokerError as error:
                await self._consumer.recover("promote", error)
                continue
            self._consumer.outage.over("promote")
            if moved:
                self._consumer.promoted()
            if more:
                continue
            tick = _DEAF if self._deaf else TICK
            pause = tick if self.next_due is None else min(tick, self.next_due + _MARGIN)
            with anyio.move_on_after(pause) as timer:
                await self._wake.wait()
            expected = pause < tick or not timer.cancelled_caught

    async def listen_forever(self) -> None:
        """Hear what other processes tell sleeping workers, until cancelled."""
        while True:
            try:
                async with self._store.client.subscriber() as subscriber:
                    await subscriber.subscribe(self._store.keys.wake)
                    self._deaf = False
                    self._consumer.outage.over("listen")
                    self._hear(b"")  # before now nobody listened
                    while True:
                        _, payload = await subscriber.receive()
                        self._hear(payload)
            except redis.exceptions.RedisError as error:
                self._deaf = True
                await self._consumer.recover("listen", translated(error))

    def _hear(self, payload: bytes) -> None:
        word, _, rest = payload.partition(b" ")
        if word == b"cancel":
            self._on_cancel(rest)
        if word in (b"due", b""):  # nothing: the connection was lost, and anything may have been said
            self._wake.set()
        if word in (b"released", b""):
            self._on_released()
        if word in (b"schedules", b""):
            self._on_schedules()
