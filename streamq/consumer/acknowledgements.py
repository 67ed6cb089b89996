"""Acknowledgements of one consumer that wait for the next round trip.

They are batched. One script acknowledges the entries of all tiers that keep no result. A second script acknowledges the
entries of one tier that keep their results. An acknowledgement with side effects has a command of its own. It is safe
to send an acknowledgement twice, so one that was lost is sent again with the next round trip. One that the server
refused goes to `on_refused`: it is tried apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamq.client import Command
from streamq.clock import Clock, ServerClock
from streamq.consumer.counting import Counting
from streamq.consumer.round_trip import RoundTrip
from streamq.errors import BrokerError
from streamq.queue.server_errors import UNPACKABLE, concerns_server
from streamq.queue.settle_commands import MOST_ACKS, MOST_RESULTS, SettleCommands
from streamq.wire.delivery import Delivery

LINGER = 0.002  # seconds that an acknowledgement may wait for others

_AckWithResult = tuple[Delivery, bytes, float, bytes]  # and the result: its key, its TTL in s, its JSON
_AckWithSideEffects = tuple[Delivery, Command, float | None]  # and how long (s) its result is kept
_Entries = tuple[int, list[Delivery]]  # of one tier


class OnRefused(Protocol):
    """Called when the server refused a command that acknowledges deliveries of a tier."""

    def __call__(self, tier: int, acks: AcksOfTier, error: BrokerError, command: Command, /) -> None:
        """`acks` are those of the command, or a part of them."""
        ...


class OnAcknowledged(Protocol):
    """Called when the server has acknowledged deliveries of a tier."""

    def __call__(self, tier: int, deliveries: list[Delivery], already_settled: Collection[bytes], /) -> None:
        """`already_settled` are the entries among them that had been settled before."""
        ...


@dataclass(slots=True)
class AcksOfTier:
    """Acknowledgements of one tier."""

    without_result: list[Delivery] = field(default_factory=list)
    with_result: list[_AckWithResult] = field(default_factory=list)
    with_side_effects: list[_AckWithSideEffects] = field(default_factory=list)  # one command each

    def __bool__(self) -> bool:
        return bool(self.without_result or self.with_result or self.with_side_effects)

    def add(self, others: AcksOfTier) -> None:
        """Add acknowledgements that have to be sent again."""
        self.without_result += others.without_result
        self.with_result += others.with_result
        self.with_side_effects += others.with_side_effects

    def deliveries(self) -> list[Delivery]:
        """Return the deliveries of all of them."""
        return [
            *self.without_result,
            *[one[0] for one in self.with_result],
            *[one[0] for one in self.with_side_effects],
        ]


class Acknowledgements:
    """The acknowledgements of all tiers. `on_first` is called when the first one starts to wait.

    With `per_entry` the server names the entries that had been settled before; without it only their number is known.
    """

    def __init__(
        self, commands: SettleCommands, counting: Counting, tiers: int, clock: Clock | ServerClock, *,
        per_entry: bool, on_first: Callable[[], None], on_acknowledged: OnAcknowledged, on_refused: OnRefused,
    ) -> None:  # fmt: skip
        self.of_tier = [AcksOfTier() for _ in range(tiers)]
        self.waiting_since: float | None = None  # since when (monotonic) the oldest one waits
        self._commands = commands
        self._counting = counting
        self._clock = clock
        self._per_entry = per_entry
        self._on_first = on_first
        self._on_acknowledged = on_acknowledged
        self._on_refused = on_refused

    def __repr__(self) -> str:
        return f"<Acknowledgements {len(self)}>"

    def __len__(self) -> int:
        return sum(len(acks.deliveries()) for acks in self.of_tier)

    def __bool__(self) -> bool:
        return any(self.of_tier)

    def linger(self) -> None:
        """Note that an acknowledgement waits for others, at most LINGER seconds from now."""
        if self.waiting_since is None:
            self.waiting_since = self._clock.elapsed()
            self._on_first()

    def load(self, trip: RoundTrip, *, resending: bool) -> None:
        """Put all acknowledgements on a round trip.

        `resending`: after a failure, which may be the fault of one tier, so each has a command of its own. Some may
        have been carried out before, so none counts as superseded.
        """
        without_result: list[_Entries] = []
        for tier, acks in enumerate(self.of_tier):
            if acks:
                self.of_tier[tier] = AcksOfTier()
                without_result += (
                    (tier, acks.without_result[at : at + MOST_ACKS])
                    for at in range(0, len(acks.without_result), MOST_ACKS)
                )
                self._load_others(trip, tier, acks, superseded=not resending)
        for some in _grouped(without_result, per_tier=resending):
            ids = [(tier, [delivery.entry_id for delivery in deliveries]) for tier, deliveries in some]
            command = self._commands.ack(ids, per_entry=self._per_entry)
            each = [delivery for _, deliveries in some for delivery in deliveries]
            command = self._counting.acknowledging(command, each, superseded=not resending)
            trip.add(command, self._without_result_replied, (some, command))
        self.waiting_since = None

    def _load_others(self, trip: RoundTrip, tier: int, acks: AcksOfTier, *, superseded: bool) -> None:
        """Put the acknowledgements that keep a result or have side effects on a round trip."""
        for at in range(0, len(acks.with_result), MOST_RESULTS):
            kept = acks.with_result[at : at + MOST_RESULTS]
            deliveries, keys, ttls, results = zip(*kept, strict=True)
            ids = [delivery.entry_id for delivery in deliveries]
            acks_of_one = AcksOfTier(with_result=kept)
            try:
                command = self._commands.ack_results(tier, ids, keys, ttls, results)
            except Exception as error:  # noqa: BLE001 - a TTL that is no number of milliseconds, say
                self._on_refused(tier, acks_of_one, BrokerError(str(error), code=UNPACKABLE), ())
            else:
                command = self._counting.acknowledging(command, deliveries, superseded=superseded)
                trip.add(command, self._replied, (tier, acks_of_one, command))
        for one in acks.with_side_effects:
            command = self._counting.acknowledging(one[1], [one[0]], superseded=superseded)
            trip.add(command, self._replied, (tier, AcksOfTier(with_side_effects=[one]), command))

    def _without_result_replied(self, subject: tuple[list[_Entries], Command], reply: Any) -> bool:
        some, command = subject
        if isinstance(reply, BrokerError):
            for tier, deliveries in some:
                self._failed(tier, AcksOfTier(without_result=deliveries), reply, command)
            return concerns_server(reply)
        for (tier, deliveries), already_settled in zip(some, self._counting.heard(reply), strict=True):
            self._on_acknowledged(tier, deliveries, already_settled)
        return False

    def _replied(self, subject: tuple[int, AcksOfTier, Command], reply: Any) -> bool:
        tier, acks, command = subject
        if isinstance(reply, BrokerError):
            return self._failed(tier, acks, reply, command)
        self._on_acknowledged(tier, acks.deliveries(), self._counting.heard(reply))
        return False

    def _failed(self, tier: int, acks: AcksOfTier, error: BrokerError, command: Command) -> bool:
        """Keep acknowledgements that were lost, and return True; set aside those that were refused."""
        if not self._counting.to_blame(error, command) and not concerns_server(error):
            self._on_refused(tier, acks, error, command)
            return False
        self.of_tier[tier].add(acks)
        self.linger()
        return concerns_server(error)


def _grouped(entries: Iterable[_Entries], *, per_tier: bool) -> Iterator[list[_Entries]]:
    """Group entries: one command acknowledges each group.

    Those of all tiers, but each tier `per_tier` after a failure: it may be the fault of one tier.
    """
    some: list[_Entries] = []
    size = 0
    for one in entries:
        if some and (per_tier or size + len(one[1]) > MOST_ACKS):
            yield some
            some, size = [], 0
        some.append(one)
        size += len(one[1])
    if some:
        yield some
