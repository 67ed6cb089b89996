"""Settling: what became of deliveries waits here until the next round trip carries it out.

`settle` is synchronous and never fails for want of a server: what could not be said is said
again with the next turn. Acknowledgements travel together, those of all tiers in one script; everything else is one
script each, which acts only if this consumer still holds the delivery.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, assert_never

from streamq.client import Command
from streamq.consumer.events import Event, Listener, Settled, Superseded
from streamq.consumer.prefetch_buffer import Intake
from streamq.errors import BrokerError, StreamqError
from streamq.queue.store import MOST_ACKS, MOST_RESULTS, Store
from streamq.tasks.outcome import Ack, DeadLetter, Outcome, Postpone, Reason, Release, Retry, Skip
from streamq.wire.counters import Tally, pack
from streamq.wire.delivery import Delivery, dead_letter
from streamq.wire.message import dumps, milliseconds, pack_flat
from streamq.wire.side_effects import Consequence, follows, of_end

log = logging.getLogger("streamq")

LINGER = 0.002  # seconds that an acknowledgement may wait for company
COUNT_EVERY = 0.1  # seconds between two writes of counters
_TOLD = 4000  # characters of a traceback that a waiter gets

_AFTER_A_RUN = frozenset((Reason.RETRIES_EXHAUSTED, Reason.REJECTED))
_Kept = tuple[Delivery, bytes, float, bytes]  # with its result: the key, the TTL in s, and the JSON
_Entries = tuple[int, list[Delivery]]  # of one tier


class Heirs(Protocol):
    """What follows when a task is dead, beyond what its message asks for."""

    def follow(self, delivery: Delivery, outcome: DeadLetter) -> list[Consequence]:
        """Return what is done in the same step as the dead letter is written."""
        ...

    def buried(self, delivery: Delivery, outcome: DeadLetter) -> None:
        """The server has confirmed the dead letter. Must not wait."""
        ...


class Turn:
    """What one round trip carries: commands, and what is to be done with each reply.

    A handler gets the reply, or the error in its place, and returns whether an error is to be
    waited for.
    """

    __slots__ = ("commands", "handlers")

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.handlers: list[Callable[[Any], bool]] = []

    def add(self, command: Command, handler: Callable[[Any, Any], bool], what: Any) -> None:
        """Add a command; `handler(what, reply)` will hear of its reply."""
        self.commands.append(command)
        self.handlers.append(lambda reply: handler(what, reply))


@dataclass(slots=True)
class _Settlement:
    """One settle that waits for its round trip. `command` is made when it goes: a delay has run since."""

    command: Callable[[], Command]
    delivery: Delivery
    outcome: Outcome
    duration: float


@dataclass(slots=True)
class _Acks:
    """Acknowledgements of one tier that wait for their round trip."""

    plain: list[Delivery] = field(default_factory=list)
    kept: list[_Kept] = field(default_factory=list)
    finished: list[tuple[Delivery, Command]] = field(default_factory=list)  # with consequences: one command each

    def __bool__(self) -> bool:
        return bool(self.plain or self.kept or self.finished)

    def add(self, others: _Acks) -> None:
        """Take in what has to be said again."""
        self.plain += others.plain
        self.kept += others.kept
        self.finished += others.finished

    def deliveries(self) -> list[Delivery]:
        """Return all of them."""
        return [*self.plain, *[one[0] for one in self.kept], *[one[0] for one in self.finished]]


class Settler:
    """The outcomes of one consumer's deliveries, on their way to the server.

    `on_first` is called when something starts to wait.
    """

    def __init__(
        self, store: Store, intake: Intake, *, name: str, visibility_timeout: float,
        listeners: tuple[Listener, ...], on_first: Callable[[], None],
    ) -> None:  # fmt: skip
        self.clock_offset = 0.0  # the server's clock minus ours, in seconds
        self.superseded = 0
        self.tallies: dict[tuple[str, bytes], Tally] = {}
        self.waiting_since: float | None = None  # since when the oldest acknowledgement waits
        self.heirs: Heirs | None = None  # set by a worker whose tasks have any
        self._store = store
        self._clock = store.clock
        self._intake = intake
        self._name = name
        self._visibility_timeout = visibility_timeout
        self._listeners = listeners
        self._on_first = on_first
        self._acks = [_Acks() for _ in store.tiers]
        self._settlements: list[_Settlement] = []
        self._told: dict[Delivery, Settled] = {}  # what listeners will hear once the server has it
        self._repeating = False
        self._counted = 0.0

    def __repr__(self) -> str:
        acks = sum(len(acks.deliveries()) for acks in self._acks)
        return f"<Settler {acks} acknowledgements, {len(self._settlements)} others>"

    # --- in ----------------------------------------------------------------------------------

    def settle(self, delivery: Delivery, outcome: Outcome, *, duration: float = 0.0, keep: float | None = None) -> None:
        """Note what became of a delivery; a round trip carries it out within milliseconds.

        `duration` is the run's, `keep` how long its result is wanted (None: not at all); seconds.
        """
        match outcome:
            case Ack():
                self._ack(delivery, outcome, duration, keep)
            case Skip():
                self._acks[delivery.tier].plain.append(delivery)
                self._linger()
            case Retry() | Postpone():
                self._step(delivery, outcome, duration, self._postponement(delivery, outcome))
            case DeadLetter(reason, failure):
                self._step(delivery, outcome, duration, partial(_same, self._burial(delivery, outcome, keep)))
                log.warning("task %s is dead (%s): %s: %s", _label(delivery), reason, failure.error_type, failure.error)
            case Release():
                self.release([delivery])
            case _:
                assert_never(outcome)

    def release(self, deliveries: list[Delivery]) -> None:
        """Hand deliveries back, to be taken by anyone at once."""
        by_tier: dict[int, list[Delivery]] = {}
        for delivery in deliveries:
            by_tier.setdefault(delivery.tier, []).append(delivery)
        for tier, some in by_tier.items():
            ids = [delivery.entry_id for delivery in some]
            for entry_id in ids:
                self._intake.forget(tier, entry_id)
            for command in self._store.release(self._name, tier, ids, self._visibility_timeout):
                self._step(some[0], Release(), 0.0, partial(_same, command))

    def _ack(self, delivery: Delivery, outcome: Ack, duration: float, keep: float | None) -> None:
        acks, result, now = self._acks[delivery.tier], outcome.result, self.now()
        if not delivery.plain and follows(delivery, done=not outcome.cancelled):
            also = of_end(
                delivery, told=result, keep=keep, done=not outcome.cancelled, now=now, group=self._store.keys.group
            )
            acks.finished.append((delivery, self._store.finish(delivery.tier, delivery.entry_id, also)))
        elif keep:
            acks.kept.append((delivery, self._store.result_key(delivery), keep, result))
        else:
            acks.plain.append(delivery)
        if self.waiting_since is None:
            self._linger()
        sent, _, _ = delivery.entry_id.partition(b"-")
        self.tally(delivery).succeeded(now - int(sent) / 1000, duration)
        if self._listeners:
            self._told[delivery] = Settled(delivery, Ack(result), duration)

    def _linger(self) -> None:
        """An acknowledgement waits for company, but not for long."""
        if self.waiting_since is None:
            self.waiting_since = self._clock.elapsed()
            self._on_first()

    def _step(self, delivery: Delivery, outcome: Outcome, duration: float, command: Callable[[], Command]) -> None:
        self._settlements.append(_Settlement(command, delivery, outcome, duration))
        self._on_first()

    def _postponement(self, delivery: Delivery, outcome: Retry | Postpone) -> Callable[[], Command]:
        changes: dict[str, str | None] = {}
        attempt, starts = delivery.attempt, delivery.starts
        if isinstance(outcome, Retry):
            changes["attempt"] = str(attempt + 1)
            changes["starts"] = str(starts) if starts != attempt else None
            changes["unknown_since"] = None
        elif outcome.unknown:
            changes["unknown_since"] = str(milliseconds(delivery.unknown_since or self.now()))
            changes["starts"] = str(starts - 1) if starts != attempt else None
        else:
            changes["starts"] = str(starts)
            if outcome.headers:
                changes["headers"] = dumps({**delivery.headers, **outcome.headers}).decode()
        packed = pack_flat(delivery.again(self._store.keys.group, **changes))
        elapsed = self._clock.elapsed
        due = elapsed() + outcome.delay

        def command() -> Command:
            return self._store.postpone(self._name, delivery, max(0.0, due - elapsed()), packed)

        return command

    def _burial(self, delivery: Delivery, outcome: DeadLetter, keep: float | None) -> Command:
        failure = outcome.failure
        stream = self._store.keys.tiers[delivery.tier].stream
        fields = dead_letter(
            delivery,
            reason=outcome.reason,
            failure=failure,
            worker=self._name,
            stream=stream,
            died_at=self.now(),
            group=self._store.keys.group,
        )
        told = {
            "error_type": failure.error_type, "error": failure.error,
            "traceback": failure.traceback[-_TOLD:], "reason": outcome.reason,
        }  # fmt: skip
        also = of_end(delivery, told=dumps(told), keep=keep) if keep or follows(delivery, done=False) else []
        if self.heirs is not None:
            also = [*also, *self.heirs.follow(delivery, outcome)]
        return self._store.bury(self._name, delivery, fields, also)

    # --- out ---------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Does anything wait for its round trip?"""
        return bool(self._settlements or any(self._acks))

    def due_at(self, *, quiet: bool) -> float | None:
        """Return when (monotonic) what waits should go, None if nothing does.

        At once (0.0) for everything but acknowledgements and counters; `quiet` says that no
        company is to be expected.
        """
        if self._settlements or (quiet and self.waiting_since is not None):
            return 0.0
        times = [] if self.waiting_since is None else [self.waiting_since + LINGER]
        if self.tallies and quiet:
            times.append(self._counted + COUNT_EVERY)
        return min(times, default=None)

    def load(self, turn: Turn, *, all_counters: bool = False) -> None:
        """Put everything that waits on a turn."""
        plain: list[_Entries] = []
        for tier, acks in enumerate(self._acks):
            if acks:
                self._acks[tier] = _Acks()
                plain += ((tier, acks.plain[at : at + MOST_ACKS]) for at in range(0, len(acks.plain), MOST_ACKS))
                self._load_acks(turn, tier, acks)
        for some in self._together(plain):
            ids = [(tier, [delivery.entry_id for delivery in deliveries]) for tier, deliveries in some]
            turn.add(self._store.ack(ids, each=bool(self._listeners)), self._acked_together, some)
        self.waiting_since = None
        settlements, self._settlements = self._settlements, []
        for settlement in settlements:
            turn.add(settlement.command(), self._settled, settlement)
        now = self._clock.elapsed()
        if self.tallies and (now >= self._counted + COUNT_EVERY or all_counters):
            tallies, self.tallies = self.tallies, {}
            turn.add(self._store.count(self.now(), pack(tallies)), self._count_written, tallies)
            self._counted = now

    def _together(self, entries: Iterable[_Entries]) -> Iterator[list[_Entries]]:
        """Group what one command acknowledges: all tiers, but each alone after a failure, which may be one tier's."""
        some: list[_Entries] = []
        size = 0
        for one in entries:
            if some and (self._repeating or size + len(one[1]) > MOST_ACKS):
                yield some
                some, size = [], 0
            some.append(one)
            size += len(one[1])
        if some:
            yield some

    def _load_acks(self, turn: Turn, tier: int, acks: _Acks) -> None:
        """Put those on a turn that keep a result, or have consequences."""
        for at in range(0, len(acks.kept), MOST_RESULTS):
            kept = acks.kept[at : at + MOST_RESULTS]
            deliveries, keys, ttls, results = zip(*kept, strict=True)
            ids = [delivery.entry_id for delivery in deliveries]
            turn.add(self._store.ack_results(tier, ids, keys, ttls, results), self._acked, (tier, _Acks(kept=kept)))
        for delivery, command in acks.finished:
            turn.add(command, self._acked, (tier, _Acks(finished=[(delivery, command)])))

    def repeating(self, *, again: bool) -> None:
        """Say whether what goes next may have been carried out before: then nothing is `superseded`."""
        self._repeating = again

    # --- replies -------------------------------------------------------------------------------

    def _acked_together(self, what: list[_Entries], reply: Any) -> bool:
        if isinstance(reply, BrokerError):  # to be said again: acknowledging twice does no harm
            for tier, deliveries in what:
                self._acks[tier].plain += deliveries
            self._linger()
            return True
        for (tier, deliveries), before in zip(what, reply, strict=True):
            self._gone(tier, deliveries, before)
        return False

    def _acked(self, what: tuple[int, _Acks], reply: Any) -> bool:
        tier, acks = what
        if isinstance(reply, BrokerError):
            self._acks[tier].add(acks)
            self._linger()
            return True
        self._gone(tier, acks.deliveries(), reply)
        return False

    def _gone(self, tier: int, deliveries: list[Delivery], before: Collection[bytes]) -> None:
        """Forget what the server has acknowledged; some of it somebody settled `before`."""
        self._intake.settled(tier, deliveries)
        late = () if self._repeating else before
        if self._listeners:
            self._tell(deliveries, before, late)
        elif late:
            self.count_superseded(deliveries[0], len(late))

    def _tell(self, deliveries: Sequence[Delivery], before: Collection[bytes], late: Collection[bytes]) -> None:
        """Tell the listeners which acknowledgements counted, and which came late.

        One that was said twice (`before` without being `late`) was settled by its first saying, or by somebody
        else: of that nothing is known, and nothing is told.
        """
        for delivery in deliveries:
            event = self._told.pop(delivery, None)
            if delivery.entry_id in late:
                self.count_superseded(delivery)
            elif event is not None and delivery.entry_id not in before:
                self.emit(event)

    def _settled(self, settlement: _Settlement, reply: Any) -> bool:
        delivery, outcome = settlement.delivery, settlement.outcome
        if isinstance(reply, BrokerError):
            self._settlements.append(settlement)
            return True
        if isinstance(outcome, Release):
            return False
        self._intake.forget(delivery.tier, delivery.entry_id)
        if not reply:
            if not self._repeating:
                self.count_superseded(delivery)
            return False
        tally = self.tally(delivery)
        match outcome:
            case Retry():
                tally.failed += 1
                tally.retried += 1
            case Postpone():
                tally.postponed += 1
            case DeadLetter():
                tally.failed += outcome.reason in _AFTER_A_RUN
                tally.dead += 1
                if self.heirs is not None:
                    self.heirs.buried(delivery, outcome)
            case _:
                pass
        if self._listeners:
            self.emit(Settled(delivery, outcome, settlement.duration))
        return False

    def _count_written(self, tallies: Mapping[tuple[str, bytes], Tally], reply: Any) -> bool:
        if isinstance(reply, BrokerError):  # counted later: a server out of memory must not slow the work
            for key, tally in tallies.items():
                self.tallies.setdefault(key, Tally()).add(tally)
        return False

    # --- counting ------------------------------------------------------------------------------

    def count_superseded(self, delivery: Delivery, count: int = 1) -> None:
        """Others settled a delivery first, or took it over."""
        self.superseded += count
        self.tally(delivery).superseded += count
        log.info("%d settled by others first, in tier %s", count, delivery.tier_name)
        if self._listeners:
            self.emit(Superseded(delivery))

    def tally(self, delivery: Delivery) -> Tally:
        """Return the counters of a delivery's tier and task."""
        key = (delivery.tier_name, delivery.fields.get(b"task", b"?"))
        tally = self.tallies.get(key)
        if tally is None:
            tally = self.tallies[key] = Tally()
        return tally

    def now(self) -> float:
        """Return the server's Unix time, as last compared."""
        return self._clock.now() + self.clock_offset

    def emit(self, event: Event) -> None:
        """Tell the listeners; one that raises is named in the log."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("listener %r raised", listener)


def _same(command: Command) -> Command:
    return command


def _label(delivery: Delivery) -> str:
    try:
        return f"{delivery.task} {delivery.task_id}"
    except StreamqError:
        return repr(delivery)
