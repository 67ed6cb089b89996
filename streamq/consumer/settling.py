"""Settling: the outcome of each delivery waits here for the next round trip.

`settle` is synchronous and does not fail when the server is away: a settlement that was refused or lost is sent again
with the next round trip. Acknowledgements are batched (see `acknowledgements`). Every other outcome is one script,
which acts only if this consumer still holds the delivery. What becomes of a run is decided in `tasks.outcome`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, assert_never

from streamq.client import Command
from streamq.consumer.acknowledgements import LINGER, Acknowledgements
from streamq.consumer.counting import Counting
from streamq.consumer.events import Listeners, Settled, Superseded
from streamq.consumer.prefetch_buffer import PrefetchBuffer
from streamq.consumer.round_trip import RoundTrip
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, SignatureError, StreamqError
from streamq.queue.store import Store
from streamq.tasks.outcome import Ack, DeadLetter, Outcome, Postpone, Reason, Release, Retry, Skip, failure_of
from streamq.wire.bounds import ATTEMPT
from streamq.wire.dead_letter_fields import dead_letter_fields
from streamq.wire.delivery import Delivery
from streamq.wire.message import Field, as_text, dumps, milliseconds, pack_flat
from streamq.wire.side_effects import SideEffect, effects_of_end, has_side_effects

log = SafeLog("streamq")

_TRACEBACK_FOR_WAITERS = 4000  # characters

_AFTER_A_RUN = frozenset((Reason.RETRIES_EXHAUSTED, Reason.REJECTED))


class DeadLetterEffects(Protocol):
    """The side effects that a worker adds to a dead letter, beside those of the message (see `on_exhausted`)."""

    def side_effects(self, delivery: Delivery, outcome: DeadLetter) -> list[SideEffect]:
        """Return side effects for the atomic step that writes the dead letter."""
        ...

    def confirmed(self, delivery: Delivery, outcome: DeadLetter) -> None:
        """The server has confirmed the dead letter. Must not wait."""
        ...


@dataclass(slots=True)
class _Settlement:
    """An outcome that waits for its round trip. `command` is called when it is sent: a delay has run since."""

    command: Callable[[], Command]
    delivery: Delivery
    outcome: Outcome
    duration: float


class Settler:
    """Settles the deliveries of one consumer.

    `on_first` is called when something starts to wait.
    """

    def __init__(
        self, store: Store, buffer: PrefetchBuffer, *, name: str, visibility_timeout: float,
        listeners: Listeners, on_first: Callable[[], None],
    ) -> None:  # fmt: skip
        self.clock_offset = 0.0  # the server's clock minus this machine's, in seconds
        self.superseded = 0
        self.dead_letter_effects: DeadLetterEffects | None = None  # set by a worker whose tasks have any
        self.counting = Counting(store.settle_commands, store.clock)
        self._store = store
        self._commands = store.settle_commands
        self._clock = store.clock
        self._buffer = buffer
        self._name = name
        self._visibility_timeout = visibility_timeout
        self._listeners = listeners
        self._listening = bool(listeners)  # asked for every task
        self._on_first = on_first
        self._acks = Acknowledgements(
            self._commands, len(store.tiers), store.clock,
            per_entry=self._listening, on_first=on_first, on_acknowledged=self._acknowledged,
        )  # fmt: skip
        self._settlements: list[_Settlement] = []
        self._events: dict[Delivery, Settled] = {}  # emitted once the server has confirmed the acknowledgement
        self._resending = False

    def __repr__(self) -> str:
        return f"<Settler {len(self._acks)} acknowledgements, {len(self._settlements)} others>"

    # --- in ----------------------------------------------------------------------------------

    def settle(self, delivery: Delivery, outcome: Outcome, *, duration: float = 0.0, keep: float | None = None) -> None:
        """Note the outcome of a delivery; a round trip carries it out within milliseconds.

        `duration` (s) is that of the run. `keep` (s) is how long the result is kept, None for not at all.
        """
        match outcome:
            case Ack():
                self._ack(delivery, outcome, duration, keep)
            case Skip():
                self._acks.of_tier[delivery.tier].without_result.append(delivery)
                self._acks.linger()
            case Retry() | Postpone():
                self._add(delivery, outcome, duration, self._postponement(delivery, outcome))
            case DeadLetter():
                self._settle_dead(delivery, outcome, duration, keep)
            case Release():
                self.release([delivery])
            case _:
                assert_never(outcome)

    def release(self, deliveries: list[Delivery]) -> None:
        """Release deliveries: any consumer may take them at once."""
        by_tier: dict[int, list[Delivery]] = {}
        for delivery in deliveries:
            by_tier.setdefault(delivery.tier, []).append(delivery)
        for tier, some in by_tier.items():
            ids = [delivery.entry_id for delivery in some]
            for entry_id in ids:
                self._buffer.forget(tier, entry_id)
            for command in self._commands.release(self._name, tier, ids, self._visibility_timeout):
                self._add(some[0], Release(), 0.0, partial(_prebuilt, command))

    def _ack(self, delivery: Delivery, outcome: Ack, duration: float, keep: float | None) -> None:
        acks, result, now = self._acks.of_tier[delivery.tier], outcome.result, self.now()
        if not delivery.only_basic_fields and has_side_effects(delivery, done=not outcome.cancelled):
            also = effects_of_end(
                delivery, payload=result, keep=keep, done=not outcome.cancelled, now=now, group=self._store.keys.group
            )
            acks.with_side_effects.append(
                (delivery, self._commands.ack_side_effects(delivery.tier, delivery.entry_id, also))
            )
        elif keep:
            acks.with_result.append((delivery, self._commands.result_key(delivery), keep, result))
        else:
            acks.without_result.append(delivery)
        if self._acks.waiting_since is None:
            self._acks.linger()
        sent, _, _ = delivery.entry_id.partition(b"-")
        self.counting.of(delivery).succeeded(now - int(sent) / 1000, duration)
        if self._listening:
            self._events[delivery] = Settled(delivery, Ack(result), duration)

    def _add(self, delivery: Delivery, outcome: Outcome, duration: float, command: Callable[[], Command]) -> None:
        self._settlements.append(_Settlement(command, delivery, outcome, duration))
        self._on_first()

    def _postponement(self, delivery: Delivery, outcome: Retry | Postpone) -> Callable[[], Command]:
        changes: dict[str, str | None] = {}
        attempt, starts = delivery.attempt, delivery.starts
        if isinstance(outcome, Retry):
            changes["attempt"] = str(min(attempt + 1, int(ATTEMPT.highest)))
            changes["starts"] = str(starts) if starts != attempt else None
            changes["unknown_since"] = None
        elif outcome.unknown:
            changes["unknown_since"] = str(milliseconds(delivery.unknown_since or self.now()))
            changes["starts"] = str(starts - 1) if starts != attempt else None
        else:
            changes["starts"] = str(starts)
            if outcome.headers:
                changes["headers"] = dumps({**delivery.headers, **outcome.headers}).decode()
        fields = delivery.resend_fields(self._store.keys.group, **changes)
        if (signer := self._store.signer) is not None:
            fields = as_text(signer.sign(self._store.keys.tiers[delivery.tier].stream, fields))
        packed = pack_flat(fields)
        elapsed = self._clock.elapsed
        due = elapsed() + outcome.delay

        def command() -> Command:
            return self._commands.postpone(self._name, delivery, max(0.0, due - elapsed()), packed)

        return command

    def _settle_dead(self, delivery: Delivery, outcome: DeadLetter, duration: float, keep: float | None) -> None:
        try:
            self._store.check_signature(delivery)
            command = self._dead_letter(delivery, outcome, keep)
        except SignatureError as error:  # nothing in it is believed: no side effects, no replay
            outcome = DeadLetter(Reason.UNDECODABLE, failure_of(error))
            fields = self._dead_letter_fields(delivery, outcome, refused=True)
            command = self._commands.dead_letter(self._name, delivery, fields)
        self._add(delivery, outcome, duration, partial(_prebuilt, command))
        failure = outcome.failure
        log.warning(
            "task %s is dead (%s): %s: %s", _name_of(delivery), outcome.reason, failure.error_type, failure.error
        )

    def _dead_letter_fields(self, delivery: Delivery, outcome: DeadLetter, *, refused: bool = False) -> list[Field]:
        fields = dead_letter_fields(
            delivery, reason=outcome.reason, failure=outcome.failure, worker=self._name,
            stream=self._store.keys.tiers[delivery.tier].stream, died_at=self.now(), group=self._store.keys.group,
        )  # fmt: skip
        return fields if refused or (signer := self._store.signer) is None else signer.sign_dead_letter(fields)

    def _dead_letter(self, delivery: Delivery, outcome: DeadLetter, keep: float | None) -> Command:
        failure, fields = outcome.failure, self._dead_letter_fields(delivery, outcome)
        for_waiters = {
            "error_type": failure.error_type, "error": failure.error,
            "traceback": failure.traceback[-_TRACEBACK_FOR_WAITERS:], "reason": outcome.reason,
        }  # fmt: skip
        also: list[SideEffect] = []
        if keep or has_side_effects(delivery, done=False):
            also = effects_of_end(delivery, payload=dumps(for_waiters), keep=keep)
        if self.dead_letter_effects is not None:
            also = [*also, *self.dead_letter_effects.side_effects(delivery, outcome)]
        return self._commands.dead_letter(self._name, delivery, fields, also)

    # --- out ---------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Does anything wait for the next round trip?"""
        return bool(self._settlements or self._acks)

    def due_at(self, *, idle: bool) -> float | None:
        """Return when (monotonic) the next round trip should go, None if nothing waits.

        At once (0.0) for everything but acknowledgements and counters. These wait for others, unless the consumer is
        `idle`, so that no others are expected.
        """
        waiting_since = self._acks.waiting_since
        if self._settlements or (idle and waiting_since is not None):
            return 0.0
        times = [] if waiting_since is None else [waiting_since + LINGER]
        if idle and (due_at := self.counting.due_at) is not None:
            times.append(due_at)
        return min(times, default=None)

    def load(self, trip: RoundTrip, *, all_counters: bool = False) -> None:
        """Put everything that waits on a round trip."""
        self._acks.load(trip, per_tier=self._resending)
        settlements, self._settlements = self._settlements, []
        for settlement in settlements:
            trip.add(settlement.command(), self._replied, settlement)
        self.counting.load(trip, self.now(), at_once=all_counters)

    def note_resending(self, *, resending: bool) -> None:
        """Note whether the next commands may have been carried out before. If so, none of them counts as superseded."""
        self._resending = resending

    # --- replies -------------------------------------------------------------------------------

    def _acknowledged(self, tier: int, deliveries: list[Delivery], already_settled: Collection[bytes]) -> None:
        """Forget deliveries that the server has acknowledged. `already_settled` are entries settled before."""
        self._buffer.settled(tier, deliveries)
        late = () if self._resending else already_settled
        if self._listening:
            self._announce(deliveries, already_settled, late)
        elif late:
            self.count_superseded(deliveries[0], len(late))

    def _announce(
        self, deliveries: Sequence[Delivery], already_settled: Collection[bytes], late: Collection[bytes]
    ) -> None:
        """Emit events: which acknowledgements counted, and which came late.

        An entry that is in `already_settled` but not in `late` was acknowledged twice. Its first acknowledgement
        settled it, or another consumer did: nobody knows, so no event is emitted.
        """
        for delivery in deliveries:
            event = self._events.pop(delivery, None)
            if delivery.entry_id in late:
                self.count_superseded(delivery)
            elif event is not None and delivery.entry_id not in already_settled:
                self._listeners.emit(event)

    def _replied(self, settlement: _Settlement, reply: Any) -> bool:
        delivery, outcome = settlement.delivery, settlement.outcome
        if isinstance(reply, BrokerError):
            self._settlements.append(settlement)
            return True
        if isinstance(outcome, Release):
            return False
        self._buffer.forget(delivery.tier, delivery.entry_id)
        if not reply:
            if not self._resending:
                self.count_superseded(delivery)
            return False
        counters = self.counting.of(delivery)
        match outcome:
            case Retry():
                counters.failed += 1
                counters.retried += 1
            case Postpone():
                counters.postponed += 1
            case DeadLetter():
                counters.failed += outcome.reason in _AFTER_A_RUN
                counters.dead += 1
                if self.dead_letter_effects is not None:
                    self.dead_letter_effects.confirmed(delivery, outcome)
            case _:
                pass
        self._listeners.emit(Settled(delivery, outcome, settlement.duration))
        return False

    # --- counting ------------------------------------------------------------------------------

    def count_superseded(self, delivery: Delivery, count: int = 1) -> None:
        """Count deliveries that another consumer settled first, or reclaimed."""
        self.superseded += count
        self.counting.of(delivery).superseded += count
        log.info("%d deliveries of tier %s were settled by another consumer first", count, delivery.tier_name)
        self._listeners.emit(Superseded(delivery))

    def now(self) -> float:
        """Return the server's Unix time, as of the last comparison of clocks."""
        return self._clock.now() + self.clock_offset


def _prebuilt(command: Command) -> Command:
    return command


def _name_of(delivery: Delivery) -> str:
    try:
        return f"{delivery.task} {delivery.task_id}"
    except StreamqError:
        return repr(delivery)
