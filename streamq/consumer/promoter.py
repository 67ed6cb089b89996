"""The promoter: moves delayed messages to their streams when they are due, and listens to the wake channel.

It sleeps until the next message is due. A message that is due earlier is announced on the wake channel (pub/sub), so
nothing is polled. A look every `LOOK_EVERY` seconds covers what is not announced: a message that was written by hand,
a leap of the server's clock. A look reads the first message of each tier and the time, no more. Every worker has a
promoter and any of them may promote: the step is atomic (promote.lua).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import redis.exceptions

from streamq.consumer.consumer import Consumer
from streamq.errors import BrokerError
from streamq.queue.delayed import next_due, promote
from streamq.queue.server_errors import translated

LOOK_EVERY = 10.0  # seconds between two looks
_LOOK_EVERY_UNSUBSCRIBED = 5.0  # the same, while the wake channel is not subscribed
_LOOK_EVERY_UNANNOUNCED = 1.0  # and without a right to the channel: a waiter for a limit has its permit for 2 s
_HELLO = "hello"  # a word that no worker acts on
_LOOKS = 6  # looks until a refused subscription is tried again
_CHECK_EVERY = 60.0  # seconds between two checks whether this user may publish
_MAY_PUBLISH = "return redis.acl_check_cmd and redis.acl_check_cmd('PUBLISH', ARGV[1], 'x') and 1 or 0"
_BATCH = 100  # messages of each tier that one step moves
_MARGIN = 0.0005  # seconds: the server counts in whole milliseconds


class Promoter:
    """The loop that promotes, and the loop that listens to the wake channel."""

    def __init__(
        self, consumer: Consumer, *, on_released: Callable[[], None], on_cancel: Callable[[int, bytes], None],
        on_schedules: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._consumer = consumer
        self._store = consumer.store
        self._on_released = on_released
        self._on_cancel = on_cancel
        self._tiers = {keys.stream.encode(): tier for tier, keys in enumerate(self._store.keys.tiers)}
        self._on_schedules = on_schedules
        self._wake = anyio.Event()
        self._unsubscribed = True
        self._checked_at = self._store.clock.elapsed()
        self._refusals = consumer.tier_refusals("promoting to")
        self._more = False  # are more messages due than the last step moved?
        self.next_due: float | None = None  # seconds, as of the last look

    def __repr__(self) -> str:
        return f"<Promoter of {self._consumer.name} next due in {self.next_due}>"

    async def promote_forever(self) -> None:
        """Promote messages when they are due, until cancelled."""
        expected = True  # is something due: by the last look, or announced?
        while True:
            self._wake = anyio.Event()
            self.next_due, self._more = None, False
            try:
                await self._refusals.carry_out(self._promote if expected else self._look)
            except BrokerError as error:
                await self._consumer.recover("promote", error)
                continue
            self._consumer.outage.over("promote")
            if self._store.clock.elapsed() >= self._checked_at + _CHECK_EVERY:
                await self._check_publishing(again=True)
            if self._more:
                continue
            look_every = _LOOK_EVERY_UNSUBSCRIBED if self._unsubscribed else LOOK_EVERY
            look_every = _LOOK_EVERY_UNANNOUNCED if self._consumer.outage.unannounced else look_every
            pause = look_every if self.next_due is None else min(look_every, self.next_due + _MARGIN)
            if self._refusals.refused:
                pause = min(pause, self._refusals.next_try())
            with anyio.move_on_after(pause) as timer:
                await self._wake.wait()
            expected = pause < look_every or not timer.cancelled_caught

    async def _promote(self, tiers: list[int]) -> None:
        moved, due, more = await promote(self._store, _BATCH, tiers)
        self._note_due(due)
        self._more |= more
        if moved:
            self._consumer.note_promoted()

    async def _look(self, tiers: list[int]) -> None:
        self._note_due(await next_due(self._store, tiers))

    def _note_due(self, due: float | None) -> None:
        if due is not None:
            self.next_due = due if self.next_due is None else min(due, self.next_due)

    async def listen_forever(self) -> None:
        """Receive the messages of the wake channel, until cancelled."""
        while True:
            try:
                async with self._store.client.subscriber() as subscriber:
                    await subscriber.subscribe(self._store.keys.wake)
                    self._unsubscribed = False
                    self._consumer.outage.over("listen")
                    self._consumer.outage.has("listen")
                    await self._check_publishing()
                    self._on_message(b"")  # messages before now were missed
                    while True:
                        _, payload = await subscriber.receive()
                        self._on_message(payload)
            except redis.exceptions.RedisError as error:
                self._unsubscribed = True
                problem = self._store.explained(translated(error), ("SUBSCRIBE", self._store.keys.wake))
                if problem.code == "NOPERM":
                    await self._look_instead(problem)
                else:
                    await self._consumer.recover("listen", problem)

    async def _check_publishing(self, *, again: bool = False) -> None:
        """Say whether this user may not publish: inside the scripts nobody would see that.

        A word tells. `again`: the server is asked, and a word is sent only if it says no, or cannot say (Redis < 7).
        """
        self._checked_at, wake = self._store.clock.elapsed(), self._store.keys.wake
        with suppress(BrokerError):
            reply: Any = None
            if again:
                (reply,) = await self._store.attempt([("EVAL", _MAY_PUBLISH, 0, wake)])
            if reply != 1:
                (reply,) = await self._store.attempt([("PUBLISH", wake, _HELLO)])
            if isinstance(reply, BrokerError) and reply.code == "NOPERM":
                what = "what this worker announces is noticed late, and waiters for its results ask now and then"
                self._consumer.outage.lacks("publish", self._store.explained(reply, ("PUBLISH", wake)), what)
            else:
                self._consumer.outage.has("publish")

    async def _look_instead(self, error: BrokerError) -> None:
        """Look for what the wake channel would tell, for a minute: this user may not subscribe to it."""
        self._consumer.outage.over("listen")
        self._consumer.outage.lacks("listen", error, f"what others announce is noticed up to {LOOK_EVERY:g} s late")
        await self._check_publishing()
        for _ in range(_LOOKS):
            await anyio.sleep(LOOK_EVERY)
            self._on_message(b"")

    def _on_message(self, payload: bytes) -> None:
        kind, _, rest = payload.partition(b" ")
        if kind == b"cancel":
            entry_id, _, stream = rest.partition(b" ")
            if (tier := self._tiers.get(stream)) is not None:
                self._on_cancel(tier, entry_id)
        if kind in (b"due", b""):  # empty: the connection was lost, and any message may have been missed
            self._wake.set()
        if kind in (b"released", b""):
            self._on_released()
        if kind in (b"schedules", b""):
            self._on_schedules()
