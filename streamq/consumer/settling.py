"""Settling: the outcome of each delivery waits here for the next round trip.

`settle` is synchronous and raises nothing: a settlement that was lost is sent again with the next round trip, one that
the server refused is tried apart (see `set_aside`), and a delivery that cannot be settled as decided is dead-lettered.
Acknowledgements are batched (see `acknowledgements`). Every other outcome is one script, which acts only if this
consumer still holds the delivery. What becomes of a run is decided in `tasks.outcome`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from streamq.client import Command
from streamq.consumer.acknowledgements import LINGER, Acknowledgements, AcksOfTier
from streamq.consumer.counting import Counting
from streamq.consumer.dead_lettering import DeadLetters, LesserLetter
from streamq.consumer.events import Listeners, Settled, Superseded
from streamq.consumer.outcome_log import log_dead, name_of, without_error
from streamq.consumer.postponing import postponement
from streamq.consumer.prefetch_buffer import PrefetchBuffer
from streamq.consumer.refused_settlement import ACK, RefusedSettlement, Way, what_of
from streamq.consumer.round_trip import RoundTrip
from streamq.consumer.set_aside import SetAside, not_built
from streamq.consumer.shortage import is_shortage
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, SignatureError
from streamq.queue.server_errors import concerns_server
from streamq.queue.settle_commands import NOBODY, TO_BE_CANCELLED
from streamq.queue.store import Store
from streamq.tasks.outcome import Ack, DeadLetter, Outcome, Postpone, Reason, Release, Retry, Skip, failure_of, then_of
from streamq.wire.delivery import Delivery
from streamq.wire.side_effects import FreeKey, effects_of_end, has_side_effects

log = SafeLog("streamq")

_KEY = "the release of the deduplication key"
_AS_IT_IS = frozenset((Reason.UNDECODABLE, Reason.INTERNAL_ERROR))  # dead letters even if they are to be cancelled


@dataclass(slots=True)
class _Settlement:
    """An outcome that waits for its round trip. `command` is called when it is sent: a delay has run since."""

    command: Callable[[], Command]
    delivery: Delivery
    outcome: Outcome
    duration: float
    keep: float | None = None
    sent: Command = ()


class Settler:
    """Settles the deliveries of one consumer.

    `on_first` is called when something starts to wait.
    """

    def __init__(
        self, store: Store, buffer: PrefetchBuffer, *, name: str, visibility_timeout: float,
        listeners: Listeners, on_first: Callable[[], None], uniform: random.Random,
    ) -> None:  # fmt: skip
        self.now = store.clock.now
        self.superseded = 0
        self.dead_letters = DeadLetters(store, name, self.now)
        self.counting = Counting(store)
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
            self._commands, self.counting, len(store.tiers), store.clock,
            per_entry=self._listening, on_first=on_first, on_acknowledged=self._acknowledged,
            on_refused=self._acks_refused,
        )  # fmt: skip
        self.set_aside = SetAside(
            self._commands, self.counting, len(store.tiers), store.clock, acknowledged=self._acknowledged,
            per_entry=self._listening, let_go=self._let_go, uniform=uniform,
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
        try:
            match outcome:
                case Ack():
                    self._ack(delivery, outcome, duration, keep)
                case Skip():
                    self._add(delivery, outcome, duration, keep, partial(self._commands.skip, self._name, delivery))
                case Retry() | Postpone():
                    self._add(
                        delivery, outcome, duration, keep, postponement(self._store, self._name, delivery, outcome)
                    )
                case DeadLetter():
                    self._dead_letter(delivery, outcome, duration, keep)
                case Release():
                    self.release([delivery])
                case _:
                    assert_never(outcome)
        except Exception as error:  # a delivery that cannot be settled as decided must not end the worker
            log.exception("%r could not be settled as %s", delivery, type(outcome).__name__, event="internal_error",
                          of=delivery)  # fmt: skip
            self._convict(delivery, error, duration, keep)

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
                self._add(some[0], Release(), 0.0, None, partial(_prebuilt, command))

    def _ack(self, delivery: Delivery, outcome: Ack, duration: float, keep: float | None) -> None:
        acks, result, now = self._acks.of_tier[delivery.tier], outcome.result, self.now()
        if not delivery.only_basic_fields and has_side_effects(delivery, done=not outcome.cancelled):
            also = effects_of_end(
                delivery, payload=result, keep=keep, done=not outcome.cancelled, now=now, group=self._store.keys.group
            )
            command = self._commands.ack_side_effects(delivery.tier, delivery.entry_id, also)
            acks.with_side_effects.append((delivery, command, keep))
        elif keep:
            acks.with_result.append((delivery, self._commands.result_key(delivery), keep, result))
        else:
            acks.without_result.append(delivery)
        if self._acks.waiting_since is None:
            self._acks.linger()
        delivery.end = (now, duration, outcome.cancelled)
        if self._listening:
            self._events[delivery] = Settled(delivery, outcome, duration)

    def _add(
        self, delivery: Delivery, outcome: Outcome, duration: float, keep: float | None, command: Callable[[], Command]
    ) -> None:
        self._settlements.append(_Settlement(command, delivery, outcome, duration, keep))
        self._on_first()

    def _dead_letter(self, delivery: Delivery, outcome: DeadLetter, duration: float, keep: float | None) -> None:
        try:
            self._store.check_signature(delivery)
        except SignatureError as error:  # nothing in it is believed: no side effects, no replay
            outcome, keep = DeadLetter(Reason.UNDECODABLE, failure_of(error)), None
        command = self.dead_letters.in_full(delivery, outcome, keep, cancellable=outcome.reason not in _AS_IT_IS)
        self._add(delivery, outcome, duration, keep, partial(_prebuilt, command))

    def _convict(self, delivery: Delivery, error: Exception, duration: float, keep: float | None) -> None:
        """Dead-letter a delivery that cannot be settled as was decided, with the side effects that can be had."""
        outcome = DeadLetter(Reason.INTERNAL_ERROR, failure_of(error))
        command = partial(self.dead_letters.in_full, delivery, outcome, keep)
        self._events.pop(delivery, None)
        why, name = outcome.failure.error, name_of(delivery)
        log.warning("task %s is to be a dead letter (%s): %s", name, outcome.reason, why, event="refused", of=delivery)
        one = RefusedSettlement(
            delivery, what_of(outcome), [self._way(_Settlement(command, delivery, outcome, duration))]
        )
        self.set_aside.add_untried([self._with_lesser(one, outcome, duration, keep)])

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
        self._acks.load(trip, resending=self._resending)
        settlements, self._settlements = self._settlements, []
        for settlement in settlements:
            try:
                command = settlement.sent = self._command_of(settlement)
            except Exception as error:  # a delay that is no number of milliseconds, say
                if is_shortage(error):
                    self._set_aside(settlement, not_built(error))
                    continue
                one = settlement.delivery
                log.exception("%r could not be settled as decided", one, event="internal_error", of=one)
                self._convict(settlement.delivery, error, settlement.duration, settlement.keep)
            else:
                trip.add(command, self._replied, settlement)
                trip.add_then(then_of(settlement.outcome), settlement.delivery)
        self.counting.load(trip, at_once=all_counters)

    def _command_of(self, settlement: _Settlement) -> Command:
        """Return the command of a settlement, with what it counts."""
        superseded = not (self._resending or self.set_aside.resending)
        return self.counting.settling(
            settlement.command(), settlement.delivery, settlement.outcome, superseded=superseded
        )

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
            self._note_superseded(deliveries[0], len(late))

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
                self._note_superseded(delivery)
            elif event is not None and delivery.entry_id not in already_settled:
                self._listeners.emit(event)

    def _replied(self, settlement: _Settlement, reply: Any) -> bool:
        delivery, outcome = settlement.delivery, settlement.outcome
        if isinstance(reply, BrokerError):
            if self.counting.to_blame(reply, settlement.sent) or concerns_server(reply):
                self._settlements.append(settlement)
                return concerns_server(reply)
            self._set_aside(settlement, reply)
            return False
        reply = self.counting.heard(reply)
        if isinstance(outcome, Release) or (reply and self._has_other_outcome(settlement, reply)):
            return False
        self._buffer.forget(delivery.tier, delivery.entry_id)
        if not reply:  # another consumer was first
            if not self._resending:
                self._note_superseded(delivery)
            return False
        if isinstance(outcome, DeadLetter):
            log_dead(delivery, outcome)
            if self.dead_letters.effects is not None:
                self.dead_letters.effects.confirmed(delivery, outcome)
        self._listeners.emit(Settled(delivery, outcome, settlement.duration))
        return False

    def _has_other_outcome(self, settlement: _Settlement, reply: int) -> bool:
        """Settle a delivery as the server's answer demands, if that is another outcome than was decided."""
        delivery, skipped = settlement.delivery, isinstance(settlement.outcome, Skip)
        if reply == (NOBODY if skipped else TO_BE_CANCELLED):  # it is still held
            letters = self.dead_letters
            other = letters.of_unknown_group(delivery) if skipped else letters.of_cancelled(delivery)
            self.settle(delivery, other, duration=settlement.duration, keep=settlement.keep)
            return True
        if skipped:
            self._buffer.forget(delivery.tier, delivery.entry_id)
        return skipped

    # --- refusals ------------------------------------------------------------------------------

    def _set_aside(self, settlement: _Settlement, error: BrokerError) -> None:
        delivery, outcome = settlement.delivery, without_error(settlement.outcome)
        settlement.outcome = outcome
        one = RefusedSettlement(delivery, what_of(outcome), [self._way(settlement)])
        if isinstance(outcome, Release):
            one.held = False
        elif not isinstance(outcome, Skip):
            self._with_lesser(one, outcome, settlement.duration, settlement.keep)
        self.set_aside.add(one, error, settlement.sent)

    def _acks_refused(self, tier: int, acks: AcksOfTier, error: BrokerError, command: Command) -> None:
        """Set aside acknowledgements. Of several in one command, one may be to blame for all."""
        some = [RefusedSettlement(one, ACK, [], plain=True) for one in acks.without_result]
        for delivery, key, keep, result in acks.with_result:
            build: Callable[[], Command] = partial(
                self._commands.ack_results, tier, [delivery.entry_id], [key], [keep], [result]
            )
            some.append(self._refused_ack(delivery, keep, build))
        for delivery, with_effects, how_long in acks.with_side_effects:
            some.append(self._refused_ack(delivery, how_long, partial(_prebuilt, with_effects)))
        if len(some) > 1:
            self.set_aside.add_untried(some)
        elif some:
            self.set_aside.add(some[0], error, command)

    def _refused_ack(self, delivery: Delivery, keep: float | None, build: Callable[[], Command]) -> RefusedSettlement:
        def command() -> Command:
            return self.counting.acknowledging(build(), [delivery], superseded=not self.set_aside.resending)

        def done(reply: Any) -> None:
            self._acknowledged(delivery.tier, [delivery], self.counting.heard(reply))

        way = Way(command, done)
        return self._with_lesser(RefusedSettlement(delivery, ACK, [way]), Ack(), 0.0, keep)

    def _with_lesser(self, one: RefusedSettlement, outcome: Outcome, *others: Any) -> RefusedSettlement:
        """Give a refused settlement the dead letters that may stand in for it, and return it."""
        one.becomes = outcome.reason if isinstance(outcome, DeadLetter) else Reason.REFUSED
        one.lesser = partial(self._lesser_ways, one.delivery, outcome, *others)
        return one

    def _lesser_ways(
        self, delivery: Delivery, outcome: Outcome, duration: float, keep: float | None, why: str
    ) -> list[Way]:
        """Return the dead letters that stand in for a settlement that is refused: each without more consequences."""
        event = self._events.get(delivery)  # kept: if all are refused, the acknowledgement itself is tried again
        letter = outcome if isinstance(outcome, DeadLetter) else self.dead_letters.refused(delivery, outcome, why)
        lesser = self.dead_letters.lesser(delivery, letter, keep, why, as_decided=letter is not outcome)
        duration = event.duration if event else duration
        return [self._way(_Settlement(one.command, delivery, letter, duration), one) for one in lesser]

    def _way(self, settlement: _Settlement, lesser: LesserLetter | None = None) -> Way:
        command = partial(self._command_of, settlement)

        def done(reply: Any) -> None:
            reply = self.counting.heard(reply)
            self._events.pop(settlement.delivery, None)
            self._replied(settlement, reply)
            if reply and lesser and (keys := [one for one in lesser.left_out if isinstance(one, FreeKey)]):
                self._free_later(settlement.delivery, keys)

        if lesser:
            return Way(command, done, lesser.helps, lesser.carries)
        return Way(command, done, then=then_of(settlement.outcome))

    def _let_go(self, delivery: Delivery) -> None:
        self._buffer.forget(delivery.tier, delivery.entry_id)
        self._events.pop(delivery, None)

    def _free_later(self, delivery: Delivery, keys: Sequence[FreeKey]) -> None:
        """Go on trying to free the deduplication keys of a task that is dead: other tasks wait for them."""
        way = Way(partial(self._commands.task_started, keys), done=lambda _reply: None)
        self.set_aside.add_untried([RefusedSettlement(delivery, _KEY, [way], held=False, lasting=True)])

    # --- superseded ----------------------------------------------------------------------------

    def count_superseded(self, delivery: Delivery) -> None:
        """Count a delivery that another consumer reclaimed while it ran: nothing here settles it."""
        self.counting.superseded(delivery)
        self._note_superseded(delivery)

    def _note_superseded(self, delivery: Delivery, count: int = 1) -> None:
        """Say that another consumer settled deliveries first, or reclaimed one."""
        self.superseded += count
        shown = "1 delivery was" if count == 1 else f"{count} deliveries were"
        text = "%s settled by another consumer first, or gone from the stream, in tier %s"
        log.info(text, shown, delivery.tier_name, event="superseded")
        self._listeners.emit(Superseded(delivery))


def _prebuilt(command: Command) -> Command:
    return command
