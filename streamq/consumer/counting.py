"""Counting: adds up the counters of one consumer in memory and writes them at most ten times a second.

The counters themselves and their fields in Redis are in `wire.counters`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from streamq.client import Command
from streamq.consumer.round_trip import RoundTrip
from streamq.errors import BrokerError
from streamq.queue.store import Store
from streamq.wire.counters import OTHER, Counters, pack
from streamq.wire.delivery import Delivery

MOST_STRANGERS = 100  # names of tasks that this worker does not know, and counts by name
COUNT_EVERY = 0.1  # seconds between two writes of counters

_WRITING = "writing the counters of this worker"
_LACKS = "the monitor lacks them, and everything else goes on"

LONGEST_NAME = 400  # bytes

_ByTask = Mapping[tuple[str, bytes], Counters]


class Counting:
    """Counters by tier and task that are not written yet."""

    def __init__(self, store: Store) -> None:
        self.unwritten: dict[tuple[str, bytes], Counters] = {}
        self.known: Collection[bytes] = ()  # the tasks of this worker
        self.held = False  # they wait for the last round trip: one that is cut off would count them twice
        self._strangers: set[bytes] = set()
        self._store = store
        self._clock = store.clock
        self._refused = False
        self._written = 0.0  # when (monotonic) they were last written

    def __repr__(self) -> str:
        return f"<Counting of {len(self.unwritten)} tasks>"

    def of(self, delivery: Delivery) -> Counters:
        """Return the counters of a delivery's tier and task."""
        key = (delivery.tier_name, delivery.fields.get(b"task", b"?"))
        counters = self.unwritten.get(key)
        if counters is None:
            key = (key[0], self._counted_as(key[1]))
            counters = self.unwritten.setdefault(key, Counters())
        return counters

    def _counted_as(self, name: bytes) -> bytes:
        """Return the name that a task is counted by: producers must not make counters without end."""
        if name in self.known or name in self._strangers:
            return name
        if len(self._strangers) >= MOST_STRANGERS or len(name) > LONGEST_NAME:
            return OTHER.encode()
        self._strangers.add(name)
        return name

    @property
    def due_at(self) -> float | None:
        """When (monotonic) the counters should be written, None if there are none."""
        return self._written + COUNT_EVERY if self.unwritten and not self.held else None

    def load(self, trip: RoundTrip, now: float, *, at_once: bool) -> None:
        """Put the counters on a round trip if they are due, or `at_once`. `now` is the server's Unix time."""
        due_at = self.due_at
        if (at_once and self.unwritten) or (due_at is not None and self._clock.elapsed() >= due_at):
            counters, self.unwritten = self.unwritten, {}
            command = self._store.settle_commands.add_counters(now, pack(counters))
            trip.add(command, self._replied, (counters, command))
            self._written = self._clock.elapsed()

    def _replied(self, sent: tuple[_ByTask, Command], reply: Any) -> bool:
        counters, command = sent
        if isinstance(reply, BrokerError):  # written later: a server that is out of memory must not slow the work
            for key, one in counters.items():
                self.unwritten.setdefault(key, Counters()).add(one)
            error = self._store.explained(reply, command)
            self._refused |= self._store.refusals.note_failed(_WRITING, error, then=_LACKS)
        elif self._refused:
            self._refused = False
            self._store.refusals.note_accepted(_WRITING)
        return False
