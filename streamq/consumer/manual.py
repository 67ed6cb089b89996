"""The loop by hand: the consumer behind `RedisBroker.consume`.

It reads one delivery when one is asked for, holds what it gave out until that is settled, and
does in the background what a worker does: renew, sweep, promote.
"""

from __future__ import annotations

import anyio
import anyio.abc

from streamq.consumer.consumer import Consumer
from streamq.consumer.leases import Leases
from streamq.consumer.prefetch_buffer import Intake
from streamq.consumer.promoter import Scheduler
from streamq.errors import UndecodableError
from streamq.queue.lease_commands import alone
from streamq.queue.store import Store
from streamq.tasks.outcome import EXPIRED, Ack, DeadLetter, Reason, Release, Skip, failure_of
from streamq.wire.delivery import Delivery


class Hands:
    """The consumer behind `RedisBroker.consume`: one delivery at a time, on demand."""

    def __init__(self, store: Store, *, name: str, visibility_timeout: float) -> None:
        self._store = store
        self._group = store.keys.group.encode()
        self.taken: dict[str, Delivery] = {}  # by task id: what was given out and is not settled
        self._arrived = anyio.Event()
        self._stopped = anyio.Event()
        intake = Intake(
            [tier.weight for tier in store.tiers], slots=0, max_prefetch=0, suspect_after=2,
            patience=visibility_timeout, clock=store.clock.elapsed,
        )  # fmt: skip
        self.consumer = Consumer(
            store, intake, name=name, visibility_timeout=visibility_timeout,
            on_ready=self._on_ready, on_lost=self._on_lost,
        )  # fmt: skip
        self.intake = intake

    def _on_ready(self) -> None:
        self._arrived.set()

    def _on_lost(self, delivery: Delivery) -> None:
        self.taken.pop(delivery.task_id, None)

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Read, renew and sweep until stopped; then hand back what is not acknowledged."""
        consumer = self.consumer
        leases = Leases(consumer)
        scheduler = Scheduler(consumer, on_released=leases.sweep_soon, on_cancel=lambda _: None)
        await self._store.ensure_groups()
        await leases.renew()
        try:
            async with anyio.create_task_group() as group:
                for loop in (
                    consumer.turns, consumer.blocking_reads, leases.renew_forever, leases.sweep_forever,
                    scheduler.promote_forever, scheduler.listen_forever,
                ):  # fmt: skip
                    group.start_soon(loop)
                task_status.started()
                await self._stopped.wait()
                await consumer.stop_reading()
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5.0):
                await consumer.leave()
            self.taken.clear()

    def stop(self) -> None:
        """Read no more and hand back, in the background."""
        self._stopped.set()

    async def next(self) -> Delivery:
        """Wait for the next delivery that is a message."""
        while True:
            self._arrived = anyio.Event()
            self.intake.slots = self.intake.running + 1
            self.consumer.kick()
            delivery = self.intake.take()
            if delivery is None:
                await self._arrived.wait()
                continue
            if delivery.group not in (None, self._group):
                self.intake.done(delivery)
                self.consumer.settle(delivery, Skip())
                continue
            if delivery.alone:
                await self.consumer.flushed()  # see Runners
                if not await alone(self._store, self.consumer.name, delivery):
                    self.intake.done(delivery)
                    self.intake.forget(delivery.tier, delivery.entry_id)
                    continue
            try:
                delivery.check()
            except UndecodableError as error:
                await self.settle(delivery, DeadLetter(Reason.UNDECODABLE, failure_of(error)))
                continue
            if delivery.expires is not None and delivery.expires < self.consumer.now():
                await self.settle(delivery, DeadLetter(Reason.EXPIRED, EXPIRED))
                continue
            self.intake.slots = self.intake.running
            self.taken[delivery.task_id] = delivery
            await self._store.started(delivery)
            return delivery

    async def settle(self, delivery: Delivery, outcome: Ack | Release | DeadLetter) -> None:
        """Settle now, and wait until the server has it."""
        if not delivery.alone:
            self.intake.done(delivery)
        self.consumer.settle(delivery, outcome)
        try:
            await self.consumer.flushed()
        finally:
            if delivery.alone:  # only now may anything else be given out: see Runners
                self.intake.done(delivery)
