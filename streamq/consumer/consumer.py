"""The consumer: reads deliveries, and carries out what was settled, in as few round trips as can be.

One loop, `turns`, carries out in one pipelined round trip what was settled since the last and
reads what there is room for. When nothing waits anywhere a second loop blocks on a connection
of its own. Policy is elsewhere: `Intake` says what to read and start, `outcome` what becomes of
a run, `Settler` how it is said. Knows no task and no handler.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel

from streamq.consumer.events import Event, Listener, Reclaimed
from streamq.consumer.outage import LONGEST_PAUSE, Outage
from streamq.consumer.prefetch_buffer import Intake
from streamq.consumer.settling import Settler, Turn
from streamq.errors import BrokerError
from streamq.queue.lease_commands import depart
from streamq.queue.store import Store
from streamq.tasks.outcome import DeadLetter, Outcome, Reason
from streamq.wire.delivery import Delivery, Failure

log = logging.getLogger("streamq")

BLOCK = 5.0  # seconds of one blocking read, at most
_UNBLOCK_AGAIN = 0.05  # seconds after which a blocked read that goes on is ended again


class Consumer:
    """One member of the consumer group.

    `visibility_timeout` (s) is how long its deliveries are left alone when it is not heard of.
    `on_ready` is called when deliveries can be started, `on_lost` when one in its hands is not
    its own any more; `keep` says for how long (s) a delivery's result is wanted.
    """

    def __init__(
        self, store: Store, intake: Intake, *, name: str, visibility_timeout: float,
        on_ready: Callable[[], None], on_lost: Callable[[Delivery], None] = lambda _: None,
        max_crashes: int = 3, keep: Callable[[Delivery], float | None] = lambda _: None,
        listeners: tuple[Listener, ...] = (), uniform: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.intake = intake
        self._clock = store.clock
        self.name = name
        self.visibility_timeout = visibility_timeout
        self.max_crashes = max_crashes
        self._listening = bool(listeners)
        self.fatal: set[bytes] = set()  # entries that took this worker down: not handed back, but left as evidence
        self.settler = Settler(
            store, intake, name=name, visibility_timeout=visibility_timeout, listeners=listeners, on_first=self.kick
        )
        self.outage = Outage(name, self.settler.emit, uniform or random.Random(), store.clock)
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._keep = keep
        self._kick = anyio.Event()
        self._turned = anyio.Event()
        self._carrying = False
        self._block = anyio.Event()
        self._blocked = False
        self._unblocked = anyio.Event()
        self._reading = True
        self._ended = False
        self._blocking = store.client.blocking()

    def __repr__(self) -> str:
        state = "in trouble" if self.outage else "reading" if self._reading else "draining"
        return f"<Consumer {self.name} {state} {self.intake!r}>"

    # --- what others say -----------------------------------------------------------------------

    def settle(self, delivery: Delivery, outcome: Outcome, *, duration: float = 0.0, keep: float | None = None) -> None:
        """Note what became of a delivery (see `Settler.settle`)."""
        self.settler.settle(delivery, outcome, duration=duration, keep=keep)

    def release(self, deliveries: list[Delivery]) -> None:
        """Hand deliveries back, to be taken by anyone at once."""
        self.settler.release(deliveries)

    def kick(self) -> None:
        """Something changed that the loop of turns should look at."""
        self._kick.set()

    def reclaimed(self, deliveries: list[Delivery]) -> None:
        """Take in what a sweep found; what took its workers down, alone, is dead."""
        for delivery in deliveries:
            if self._listening:
                self.emit(Reclaimed(delivery, delivery.orphaned))
            if delivery.convicted and len(delivery.crashes) >= self.max_crashes:
                workers = ", ".join(delivery.crashes)
                failure = Failure("CrashLoop", f"it took down {len(delivery.crashes)} workers: {workers}")
                self.settle(delivery, DeadLetter(Reason.CRASH_LOOP, failure), keep=self._keep(delivery))
                continue
            self.intake.accept(delivery.tier, [delivery])
        if deliveries:
            self._on_ready()

    def lost(self, tier: int, entry_id: bytes) -> None:
        """A delivery in our hands is not ours any more: it must not start, and its run ends."""
        delivery = self.intake.held[tier].get(entry_id)
        if delivery is None:
            return
        self.intake.forget(tier, entry_id)
        if not self.intake.drop(delivery):
            self._on_lost(delivery)

    def promoted(self) -> None:
        """Delayed messages moved to the streams: there may be something to read."""
        if not self._blocked:
            self.intake.backlog = [True] * len(self.intake.backlog)
            self.kick()

    @property
    def unsettled(self) -> bool:
        """Does anything wait for its round trip?"""
        return self.settler.pending

    def now(self) -> float:
        """Return the server's Unix time, as last compared."""
        return self.settler.now()

    def emit(self, event: Event) -> None:
        """Tell the listeners."""
        self.settler.emit(event)

    # --- the turns -----------------------------------------------------------------------------

    async def turns(self) -> None:
        """Settle and read until `finish` was called and everything is settled."""
        while not (self._ended and not self.unsettled):
            await self._worth_a_turn()
            self.release(self.intake.stuck())
            if self.intake.startable:
                self._on_ready()
            turn = self._next_turn()
            if turn.commands:
                await self._carry_out(turn)
            elif self._wants_to_block():
                self._blocked = True
                self._unblocked = anyio.Event()
                self._block.set()
            else:
                await anyio.lowlevel.checkpoint()

    async def _worth_a_turn(self) -> None:
        """Wait until there is something to carry out, or to read."""
        while not self._may_read() or not (self.intake.plan() or self._wants_to_block()):
            times = [self.settler.due_at(quiet=self.intake.quiet), self.intake.overdue()]
            due = min((at for at in times if at is not None), default=None)
            if self._ended or (due is not None and due <= self._clock.elapsed()):
                return
            self._kick = anyio.Event()
            with anyio.move_on_after(None if due is None else due - self._clock.elapsed()) as timer:
                await self._kick.wait()
            if timer.cancelled_caught:  # a gate that is open by now is not `overdue` any more
                return

    def _may_read(self) -> bool:
        return self._reading and not self._blocked

    def _wants_to_block(self) -> bool:
        return self._may_read() and not any(self.intake.backlog) and self.intake.room() > 0

    def _next_turn(self) -> Turn:
        turn = Turn()
        self.settler.load(turn, all_counters=self._ended)
        if self._may_read():
            for count, tiers in self.intake.plan().items():
                self.intake.read_on()
                turn.add(self.store.read(self.name, tiers, count), self._read, (tiers, count))
        return turn

    async def _carry_out(self, turn: Turn) -> None:
        self._carrying = True
        try:
            replies = await self.store.attempt(turn.commands)
        except BrokerError as error:
            replies = [error] * len(turn.commands)
        except BaseException:  # cancelled: nothing is known of any of them, so all are said again
            for handler in turn.handlers:
                handler(BrokerError("cancelled"))
            self.settler.repeating(again=True)
            raise
        finally:
            self._carrying = False
            self._turned.set()
            self._turned = anyio.Event()
        worst: BrokerError | None = None
        for reply, handler in zip(replies, turn.handlers, strict=True):
            if handler(reply):
                worst = reply
        self.settler.repeating(again=worst is not None)
        if worst is None:
            self.outage.over("turns")
        else:
            await self.recover("turns", worst)

    def _read(self, what: tuple[list[int], int], reply: Any) -> bool:
        tiers, count = what
        if isinstance(reply, BrokerError):
            for tier in tiers:
                self.intake.seen(tier, more=True)
            return True
        self._take_in(tiers, count, reply)
        return False

    def _take_in(self, tiers: list[int], count: int, reply: Any) -> None:
        found = self.store.deliveries(reply)
        for tier in tiers:
            deliveries = found.get(tier, [])
            self.intake.accept(tier, deliveries)
            self.intake.seen(tier, more=len(deliveries) >= count)
        if found:
            self._on_ready()

    # --- blocking reads -------------------------------------------------------------------------

    async def blocking_reads(self) -> None:
        """Block on every stream while nothing waits, until reading ends."""
        block = min(BLOCK, max(0.1, self.visibility_timeout / 3))
        async with self._blocking:
            while self._reading:
                await self._block.wait()
                self._block = anyio.Event()
                trouble: BrokerError | None = None
                try:
                    if self._reading:
                        await self._block_once(block)
                except BrokerError as error:
                    self.intake.backlog = [True] * len(self.intake.backlog)
                    trouble = error
                if trouble is not None:
                    await self.recover("blocking read", trouble)
                self._blocked = False  # only now: nobody waits for a loop that waits for the server
                self._unblocked.set()
                self.kick()

    async def _block_once(self, block: float) -> None:
        tiers = list(range(len(self.store.tiers)))
        count = max(1, self.intake.room() // len(tiers))
        command = self.store.read(self.name, tiers, count, block)

        def take_in(reply: Any) -> None:
            self._take_in(tiers, count, reply)

        take_in(await self.store.blocked(self._blocking, command, block=block, on_stranded=take_in))
        self.outage.over("blocking read")

    # --- the end ----------------------------------------------------------------------------------

    async def stop_reading(self) -> None:
        """Read no more. What a blocked read gets in this instant is taken in."""
        self._reading = False
        self.intake.closed = True
        self._block.set()
        while self._blocked:
            # Again and again: the read may be about to begin, or to dial.
            await self._blocking.unblock()
            with anyio.move_on_after(_UNBLOCK_AGAIN):
                await self._unblocked.wait()
        self.kick()

    def finish(self) -> None:
        """End the loop of turns once everything is settled."""
        self._ended = True
        self.kick()

    async def flushed(self) -> None:
        """Wait until nothing waits for its round trip."""
        while self.unsettled or self._carrying:
            await self._turned.wait()

    async def leave(self) -> None:
        """Settle what is settled, hand everything else back, and leave the group.

        For the end, when the loops are over. What fails here is taken over by others when the
        lease ends.
        """
        self._ended = True
        try:
            try:
                await self._say_goodbye()
            except BrokerError as error:  # a cut connection, a server that is no primary any more
                log.info("%s: %s; saying it once more", self.name, error)
                await self._say_goodbye()
        except BrokerError as error:
            log.warning("%s: left without a word (%s); its leases end by themselves", self.name, error)

    async def _say_goodbye(self) -> None:
        while self.unsettled or self.settler.tallies:
            turn = self._next_turn()
            replies: list[Any]
            try:
                replies = await self.store.attempt(turn.commands)
            except BrokerError as error:
                replies = [error] * len(turn.commands)
            failed = [reply for reply, handler in zip(replies, turn.handlers, strict=True) if handler(reply)]
            if failed:
                raise failed[0]
            if not self.unsettled:
                break
        await self.store.release_all(self.name, self.visibility_timeout, but=self.fatal)
        await depart(self.store, self.name)

    # --- trouble ----------------------------------------------------------------------------------

    async def recover(self, loop: str, error: BrokerError, *, longest: float = LONGEST_PAUSE) -> None:
        """Do what cures an error, if anything does, and wait with backoff before the next try.

        At most `longest` seconds.
        """
        if error.code == "NOGROUP":
            try:
                await self.store.ensure_groups()
            except BrokerError as inner:
                error = inner
        await self.outage.wait(loop, error, longest)
