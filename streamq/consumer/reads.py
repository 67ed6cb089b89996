"""Reads of one consumer: takes in their replies, and keeps a tier that is refused from stopping the others.

One command reads several streams, and one stream of another type refuses it for all of them, without a word which. So
the tiers of a refused read are read one by one. The tier to blame is not read until its pause is over (see
`tier_refusals`). Nor is a tier that has too many refused settlements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from streamq.client import BlockingConnection
from streamq.consumer.prefetch_buffer import PrefetchBuffer
from streamq.consumer.round_trip import RoundTrip
from streamq.consumer.set_aside import SetAside
from streamq.consumer.tier_refusals import TierRefusals
from streamq.errors import BrokerError
from streamq.queue.server_errors import concerns_server
from streamq.queue.store import Store

_WHILE_BARRED = 0.2  # seconds of a blocking read, at most, while process tasks keep a tier from being read


class Reads:
    """The reads of one consumer. `on_ready` is called when deliveries were read."""

    def __init__(
        self, store: Store, buffer: PrefetchBuffer, name: str, *,
        refusals: TierRefusals, set_aside: SetAside, on_ready: Callable[[], None],
    ) -> None:  # fmt: skip
        self.alone: set[int] = set()  # tiers that are read in commands of their own: a read of them was refused
        self.group_missing = False
        self._store = store
        self._buffer = buffer
        self._name = name
        self._refusals = refusals
        self._set_aside = set_aside
        self._on_ready = on_ready
        self._blocks_refused = 0  # in a row

    def __repr__(self) -> str:
        return f"<Reads of {self._name} without {sorted(self._buffer.barred)}>"

    # --- which tiers ---------------------------------------------------------------------------

    @property
    def resume_at(self) -> Iterable[float]:
        """When (monotonic) each refused tier is read again."""
        return self._refusals.refused.values()

    def bar(self) -> None:
        """Bar the tiers that are not to be read now; read those again whose pause is over."""
        buffer, now = self._buffer, self._store.clock.elapsed()
        barred = self._set_aside.full | {tier for tier, at in self._refusals.refused.items() if at > now}
        if buffer.capacity is not None:
            barred |= buffer.capacity.barred
        for tier in buffer.barred - barred:
            buffer.backlog[tier] = True
        buffer.barred = barred

    async def block(self, connection: BlockingConnection, block: float | None) -> BrokerError | None:
        """Block on all tiers that may be read, until one of them has entries, at most `block` seconds.

        Do not block if `block` is None. Returns the error of the server or of the connection, if there is one.
        """
        capacity = self._buffer.capacity
        if block is not None and capacity is not None and capacity.barred:  # these may be read again at any moment
            block = min(block, _WHILE_BARRED)
        tiers = [tier for tier in range(len(self._store.tiers)) if tier not in self._buffer.barred]
        if not tiers:
            return None
        count = max(1, self._buffer.room() // len(tiers))
        command = self._store.read_commands.new_entries(self._name, tiers, count, block)

        def take_in(reply: Any) -> None:
            self.accept(tiers, count, reply)

        try:
            take_in(await self._store.blocked(connection, command, block=block or 0.0, on_late_reply=take_in))
        except BrokerError as error:
            return error
        return None

    def load_apart(self, trip: RoundTrip, tiers: list[int], count: int) -> None:
        """Put reads of tiers on a round trip: those that were refused together in commands of their own."""
        together = [tier for tier in tiers if tier not in self.alone]
        for some in (together, *([tier] for tier in tiers if tier in self.alone)):
            if some:
                trip.add(self._store.read_commands.new_entries(self._name, some, count), self.replied, (some, count))

    # --- replies -------------------------------------------------------------------------------

    def replied(self, subject: tuple[list[int], int], reply: Any) -> bool:
        """Take in the reply to a read; True if the server cannot be used."""
        tiers, count = subject
        if isinstance(reply, BrokerError):
            for tier in tiers:
                self._buffer.note_read(tier, more=True)
            if concerns_server(reply):
                return True
            command = self._store.read_commands.new_entries(self._name, tiers, count)
            self._refused(tiers, self._store.explained(reply, command))
            return False
        self.accept(tiers, count, reply)
        return False

    def accept(self, tiers: list[int], count: int, reply: Any) -> None:
        """Take in the entries that were read."""
        found = self._store.read_commands.deliveries(reply)
        for tier in tiers:
            deliveries = found.get(tier, [])
            self._buffer.accept(tier, deliveries)
            self._buffer.note_read(tier, more=len(deliveries) >= count)
        if self.alone:
            self.alone.difference_update(tiers)
            self._refusals.note_accepted(tiers)
        if found:
            self._on_ready()

    def _refused(self, tiers: list[int], error: BrokerError) -> None:
        self.group_missing |= error.code == "NOGROUP"
        self.alone.update(tiers)
        if len(tiers) == 1:
            self._refusals.note_refused(tiers[0], error)
            self.bar()

    def note_block(self, error: BrokerError | None) -> bool:
        """Note whether a blocking read was refused; True if that must be waited out.

        If only one of its tiers was refused, reads of each tier show which. If they do not, it would be refused again
        at once.
        """
        if error is None:
            self._blocks_refused = 0
            return False
        self._buffer.backlog = [True] * len(self._buffer.backlog)
        if concerns_server(error):
            return True
        self._blocks_refused += 1
        self.group_missing |= error.code == "NOGROUP"
        self.alone.update(range(len(self._store.tiers)))
        return self._blocks_refused > 2
