"""Counting: what each settlement of a consumer counts travels with its command, and is written in the same step.

The counters and their fields in Redis are in `wire.counters`. Only two kinds are added up here, and written at most ten
times a second: those of runs whose lease was lost, which nothing settles, and those that the server refused to write
beside a settlement. Counters are lesser than the work. So where this user may not use their key at all, settlements go
without it (`barred`), until the key can be written again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from streamq.client import Command
from streamq.consumer.round_trip import RoundTrip
from streamq.errors import BrokerError
from streamq.queue.store import Store
from streamq.scripts import with_counters, writes_counters
from streamq.tasks.outcome import DeadLetter, Outcome, Postpone, Reason, Retry
from streamq.wire.counters import OTHER, pack_one, pack_shares, prefix_of, share_of
from streamq.wire.delivery import Delivery
from streamq.wire.keys import STATS_KEPT

MOST_STRANGERS = 100  # names of tasks that this worker does not know, and counts by name
COUNT_EVERY = 0.1  # seconds between two writes of counters that no settlement has written

_WRITING = "writing the counters of this worker"
_LACKS = "the monitor lacks them, and everything else goes on"

LONGEST_NAME = 400  # bytes
_AFTER_A_RUN = frozenset((Reason.RETRIES_EXHAUSTED, Reason.REJECTED))
_UNCOUNTED = b"uncounted"  # the reply of a script that has settled, and could not write what that counts


class Counting:
    """What the settlements of one consumer count, and the counters that none of them has written."""

    def __init__(self, store: Store) -> None:
        self.unwritten: Counter[str] = Counter()  # amounts by field
        self.barred = False  # this user may not use the keys of the counters, or that of the totals
        self.known: Collection[bytes] = ()  # the tasks of this worker
        self.held = False  # they wait for the last round trip: one that is cut off would count them twice
        self._numbers: dict[tuple[str, bytes], int] = {}  # by tier and task
        self._prefixes: list[str] = []  # by number
        self._strangers: set[bytes] = set()
        self._store = store
        self._clock = store.clock
        self._refused = False
        self._written = 0.0  # when (monotonic) they were last written

    def __repr__(self) -> str:
        return f"<Counting of {len(self._numbers)} tasks, {len(self.unwritten)} counters unwritten>"

    def _number_of(self, delivery: Delivery) -> int:
        """Return the number of a delivery's tier and task."""
        key = (delivery.tier_name, delivery.fields.get(b"task", b"?"))
        number = self._numbers.get(key)
        if number is None:
            key = (key[0], self._counted_as(key[1]))
            number = self._numbers.setdefault(key, len(self._prefixes))
            if number == len(self._prefixes):
                self._prefixes.append(prefix_of(*key))
        return number

    def _counted_as(self, name: bytes) -> bytes:
        """Return the name that a task is counted by: producers must not make counters without end."""
        if name in self.known or name in self._strangers:
            return name
        if len(self._strangers) >= MOST_STRANGERS or len(name) > LONGEST_NAME:
            return OTHER.encode()
        self._strangers.add(name)
        return name

    # --- with a settlement -------------------------------------------------------------------

    def acknowledging(self, command: Command, deliveries: Sequence[Delivery], *, superseded: bool) -> Command:
        """Return a command that acknowledges these deliveries, in this order, with what it counts.

        `superseded`: those that had been settled before count as such. A command that may have been carried out
        before, because its reply was lost, counts none.
        """
        shares, numbers = [], self._numbers
        for delivery in deliveries:
            ended, run, cancelled = delivery.end
            number = numbers.get((delivery.tier_name, delivery.fields.get(b"task", b"?")))
            if number is None:
                number = self._number_of(delivery)
            latency = ended - int(delivery.entry_id.partition(b"-")[0]) / 1000
            shares.append(share_of(number, latency, run, cancelled=cancelled))
        return self._with(command, *pack_shares(shares, self._prefixes, superseded=superseded))

    def settling(self, command: Command, delivery: Delivery, outcome: Outcome, *, superseded: bool) -> Command:
        """Return a command that settles a delivery in another way, with what it counts; see `acknowledging`."""
        prefix = self._prefixes[self._number_of(delivery)]
        return self._with(command, pack_one(prefix, _counts_as(outcome), superseded=superseded))

    def _with(self, command: Command, counts: bytes, shares: bytes = b"") -> Command:
        stats = None if self.barred else self._store.keys.stats(self._clock.now())
        return with_counters(command, stats, STATS_KEPT, counts, shares)

    def heard(self, reply: Any) -> Any:
        """Return the reply of a settlement, without the counters that it could not write: they are written later."""
        if not isinstance(reply, list) or not reply or reply[0] != _UNCOUNTED:
            return reply
        _, answer, flat = reply
        for name, amount in zip(flat[::2], flat[1::2], strict=True):
            self.unwritten[name.decode()] += int(amount)
        return answer

    def to_blame(self, error: BrokerError, command: Command) -> bool:
        """Return whether a settlement may have been refused for the key of its counters, and bar that key.

        If so it is to be sent again: without that key. A server checks the rights on all keys of a script before it
        runs.
        """
        if error.code != "NOPERM" or not writes_counters(command):
            return False
        self.barred = True
        return True

    # --- by themselves -----------------------------------------------------------------------

    def superseded(self, delivery: Delivery) -> None:
        """Count a run whose lease was lost: nothing settles it."""
        self.unwritten[f"{self._prefixes[self._number_of(delivery)]}superseded"] += 1

    @property
    def due_at(self) -> float | None:
        """When (monotonic) the counters should be written, None if there are none."""
        return self._written + COUNT_EVERY if self.unwritten and not self.held else None

    def load(self, trip: RoundTrip, *, at_once: bool) -> None:
        """Put the counters that are not written on a round trip, if they are due or `at_once`."""
        due_at = self.due_at
        if (at_once and self.unwritten) or (due_at is not None and self._clock.elapsed() >= due_at):
            counters, self.unwritten = self.unwritten, Counter()
            command = self._store.settle_commands.add_counters(self._clock.now(), counters)
            trip.add(command, self._replied, (counters, command))
            self._written = self._clock.elapsed()

    def _replied(self, sent: tuple[Counter[str], Command], reply: Any) -> bool:
        counters, command = sent
        if isinstance(reply, BrokerError):  # written later: a server that is out of memory must not slow the work
            self.unwritten.update(counters)
            error = self._store.explained(reply, command)
            self._refused |= self._store.refusals.note_failed(_WRITING, error, then=_LACKS)
            return False
        self.barred = False
        if self._refused:
            self._refused = False
            self._store.refusals.note_accepted(_WRITING)
        return False


def _counts_as(outcome: Outcome) -> tuple[str, ...]:
    """Return what a settlement that is no acknowledgement counts."""
    match outcome:
        case Retry():
            return "failed", "retried"
        case Postpone():
            return ("postponed",)
        case DeadLetter(reason=reason):
            return ("failed", "dead") if reason in _AFTER_A_RUN else ("dead",)
        case _:
            return ()
