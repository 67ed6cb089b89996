"""The manual consumer: what is behind `RedisBroker.consume`, where the program runs the messages itself.

It reads a delivery when the program asks for one, and holds it until the program settles it. In the background it
renews leases, sweeps and promotes, as a worker does.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import anyio
import anyio.abc

from streamq.consumer.consumer import Consumer
from streamq.consumer.joining import create_groups, register
from streamq.consumer.leases import LeaseKeeper
from streamq.consumer.prefetch_buffer import PrefetchBuffer
from streamq.consumer.promoter import Promoter
from streamq.consumer.run_result import kept_for
from streamq.errors import BrokerError, NotOpenError, UndecodableError
from streamq.queue.lease_commands import mark_isolated
from streamq.queue.store import Store
from streamq.tasks.outcome import EXPIRED, Ack, DeadLetter, Reason, Release, Skip, failure_of
from streamq.wire.delivery import Delivery
from streamq.wire.keys import is_stream_of


class ManualConsumer:
    """The consumer behind `RedisBroker.consume`: one delivery at a time, on demand."""

    def __init__(self, store: Store, *, name: str, visibility_timeout: float) -> None:
        self._store = store
        self._group = store.keys.group.encode()
        self.unsettled: dict[str, Delivery] = {}  # by task id: deliveries that the program has
        self._arrived = anyio.Event()
        self._stopped = anyio.Event()
        self._ended = False
        buffer = PrefetchBuffer(
            [tier.weight for tier in store.tiers], slots=0, max_prefetch=0, suspect_after=2,
            suspect_wait=visibility_timeout, clock=store.clock.elapsed,
            prefetch_bytes=1 << 40,  # the program decides how many it holds
        )  # fmt: skip
        self.consumer = Consumer(
            store, buffer, name=name, visibility_timeout=visibility_timeout,
            on_ready=self._on_ready, on_lost=self._on_lost, keep=_keep,
        )  # fmt: skip
        self.buffer = buffer

    def _on_ready(self) -> None:
        self._arrived.set()

    def _on_lost(self, delivery: Delivery) -> None:
        with suppress(UndecodableError):  # it is being dead-lettered
            self.unsettled.pop(delivery.task_id, None)

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Read, renew and sweep until stopped; then release what is not acknowledged."""
        consumer = self.consumer
        leases = LeaseKeeper(consumer)
        promoter = Promoter(consumer, on_released=leases.sweep_soon, on_cancel=lambda *_: None)
        await create_groups(self._store, lambda _: None)
        await register(leases)
        try:
            async with anyio.create_task_group() as group:
                for loop in (
                    *consumer.loops, leases.renew_forever, leases.sweep_forever,
                    promoter.promote_forever, promoter.listen_forever,
                ):  # fmt: skip
                    group.start_soon(loop)
                task_status.started()
                await self._stopped.wait()
                await consumer.stop_reading()
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5.0):
                await consumer.leave()
            self.unsettled.clear()
            self._ended = True
            self._arrived.set()

    def stop(self) -> None:
        """Stop reading and release the rest, in the background."""
        self._stopped.set()

    async def next(self) -> Delivery:
        """Wait for the next delivery that is a valid message; dead-letter the others.

        Raises NotOpenError if the broker is left meanwhile.
        """
        while True:
            if self._ended:
                raise NotOpenError("the broker of this loop over deliveries")
            self._arrived = anyio.Event()
            self.buffer.slots = self.buffer.running + 1
            self.consumer.wake_up()
            delivery = self.buffer.take()
            if delivery is None:
                await self._arrived.wait()
                continue
            if delivery.group not in (None, self._group):
                self.buffer.run_ended(delivery)
                self.consumer.settle(delivery, Skip(), keep=_keep(delivery))
                continue
            if delivery.isolated:
                await self.consumer.wait_until_settled()  # see Runners
                if not await mark_isolated(self._store, self.consumer.name, delivery):
                    self.buffer.run_ended(delivery)
                    self.buffer.forget(delivery.tier, delivery.entry_id)
                    continue
            try:
                self._store.check_signature(delivery)
                delivery.check(partial(is_stream_of, self._store.keys))
            except UndecodableError as error:
                await self._settle(delivery, DeadLetter(Reason.UNDECODABLE, failure_of(error)))
                continue
            if delivery.expires is not None and delivery.expires < self.consumer.now():
                await self._settle(delivery, DeadLetter(Reason.EXPIRED, EXPIRED))
                continue
            self.buffer.slots = self.buffer.running
            self.unsettled[delivery.task_id] = delivery
            await self._store.started(delivery)
            return delivery

    async def settle(self, delivery: Delivery, outcome: Ack | Release | DeadLetter) -> None:
        """Settle a delivery and wait until the server has confirmed it.

        Raises BrokerError if the server refuses that. It is tried again meanwhile, as a worker does.
        """
        await self._settle(delivery, outcome)
        if (refused := self.consumer.settler.set_aside.find(delivery)) is not None:
            raise BrokerError(f"{refused}; it is tried again in the background", code=refused.code)

    async def _settle(self, delivery: Delivery, outcome: Ack | Release | DeadLetter) -> None:
        if not delivery.isolated:
            self.buffer.run_ended(delivery)
        self.consumer.settle(delivery, outcome, keep=_keep(delivery) if isinstance(outcome, DeadLetter) else None)
        try:
            await self.consumer.wait_until_settled()
        finally:
            if delivery.isolated:  # only now may another delivery be returned: see Runners
                self.buffer.run_ended(delivery)


def _keep(delivery: Delivery) -> float | None:
    """Return how long (s) the waiters of a delivery are told that it failed: as long as its message says."""
    return kept_for(delivery, None)
