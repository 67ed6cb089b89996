"""Outages: while the server cannot be used, the loops of a worker log that once, wait with backoff, and go on.

Failures are counted for each loop. So if one loop fails while the others succeed, it does not spin, and its failure is
not hidden. A step that is refused for one tier alone (a key of another type, a missing right) is no outage: it is
named here, and everything else goes on.
"""

from __future__ import annotations

import random
from typing import Final

import anyio

from streamq.clock import Clock, ServerClock
from streamq.consumer.events import Listeners, Recovered, Trouble
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.queue.missing_right import with_remedy
from streamq.tasks.retry_policy import Backoff

log = SafeLog("streamq")

LONGEST_PAUSE = 2.0  # seconds
_ROLE: Final = "worker"  # whose rights are missing
_PAUSE = Backoff(base=0.1, factor=2.0, cap=LONGEST_PAUSE)


class Outage:
    """The outages of one consumer, by loop."""

    def __init__(self, name: str, listeners: Listeners, uniform: random.Random, clock: Clock | ServerClock) -> None:
        self._name = name
        self._listeners = listeners
        self._random = uniform
        self._clock = clock
        self._streaks: dict[str, int] = {}
        self._error: BrokerError | None = None
        self._lacking: dict[str, tuple[str, str]] = {}  # by loop: what is late, and why
        self._since = 0.0
        self._refused: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Outage of {self._name}: {self._error} in {sorted(self._streaks)}>"

    def __bool__(self) -> bool:
        return bool(self._streaks)

    @property
    def error(self) -> BrokerError | None:
        """The latest error; None if the server can be used."""
        return self._error if self._streaks else None

    def lacks(self, loop: str, error: BrokerError, what: str) -> None:
        """Note a right without which a loop works on, later: `what` says what is late. Logged once."""
        why = with_remedy(str(error), error.code, _ROLE)
        if loop not in self._lacking:
            log.warning("%s: %s: %s", self._name, what, why)
            self._listeners.emit(Trouble(f"{what}: {why}"))
        self._lacking[loop] = (what, why)

    def has(self, loop: str) -> None:
        """Note that a loop has all its rights."""
        if (lacked := self._lacking.pop(loop, None)) is not None:
            log.warning("%s: the missing right is back; no longer so: %s", self._name, lacked[0])

    @property
    def refused(self) -> list[str]:
        """What is refused while everything else goes on, and why."""
        return [f"{what}: {why}" for what, why in (*self._lacking.values(), *self._refused.items())]

    def note_refused(self, what: str, error: BrokerError) -> None:
        """Note that the server refuses something, which concerns nothing else."""
        why = str(error) if str(error).startswith(error.code) else f"{error.code} {error}"
        why = with_remedy(why, error.code, _ROLE)
        if self._refused.get(what) != why:
            log.warning("%s: %s is refused: %s; everything else goes on", self._name, what, why)
        self._refused[what] = why

    def note_accepted(self, what: str) -> None:
        """Note that the server refuses something no longer."""
        if self._refused.pop(what, None) is not None:
            log.warning("%s: %s is refused no longer", self._name, what)

    async def wait(self, loop: str, error: BrokerError, longest: float = LONGEST_PAUSE) -> None:
        """Note that a loop failed, and wait before its next try: longer each time, with jitter."""
        if not self._streaks:
            self._since = self._clock.elapsed()
            log.warning("%s: %s; waiting for the server", self._name, error)
            self._listeners.emit(Trouble(str(error)))
        self._error = error
        streak = self._streaks[loop] = self._streaks.get(loop, 0) + 1
        await anyio.sleep(min(longest, _PAUSE.ceiling(min(streak, 8))) * self._random.uniform(0.5, 1.0))

    def over(self, loop: str) -> None:
        """Note that a loop got its reply."""
        if self._streaks and self._streaks.pop(loop, 0) and not self._streaks:
            after = self._clock.elapsed() - self._since
            log.warning("%s: the server answers again, after %.1f s", self._name, after)
            self._listeners.emit(Recovered(after))
