"""Outages: while the server cannot be used, the loops of a worker log that once, wait with backoff, and go on.

Failures are counted for each loop. So if one loop fails while the others succeed, it does not spin, and its failure is
not hidden. A step that is refused for a reason of its own (a key of another type, a missing right) is no outage: it is
named here, and everything else goes on. An outage whose cause changes (the connection is lost, then the login is
refused) is logged again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import anyio

from streamq.clock import Clock, ServerClock
from streamq.consumer.events import Listeners, Recovered, Trouble
from streamq.consumer.losses import Losses
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.queue.missing_right import with_remedy
from streamq.queue.refusals import Refusals, SaidBefore
from streamq.queue.remedies import advised
from streamq.queue.server_errors import cause, is_final
from streamq.tasks.retry_policy import Backoff
from streamq.wire.keys import Keys

log = SafeLog("streamq")

LONGEST_PAUSE = 2.0  # seconds
_STEPS: Final = {
    "cron": "reading the schedules", "renew": "renewing leases", "sweep": "sweeping", "listen": "the wake channel",
    "promote": "promoting delayed tasks", "burst": "looking whether the queue is empty",
}  # fmt: skip
_ROLE: Final = "worker"  # whose rights are missing
_PAUSE = Backoff(base=0.1, factor=2.0, cap=LONGEST_PAUSE)


class Outage:
    """The outages of one consumer, by loop. `keys` are those of its queue, for the remedy of a missing right."""

    def __init__(
        self, name: str, listeners: Listeners, uniform: random.Random, clock: Clock | ServerClock,
        keys: Keys | None = None,
    ) -> None:  # fmt: skip
        self._name = name
        self._listeners = listeners
        self._random = uniform
        self._clock = clock
        self._keys = keys
        self._streaks: dict[str, int] = {}
        self._refused_loops: dict[str, int] = {}
        self._error: BrokerError | None = None
        self._lacking: dict[str, tuple[str, str]] = {}  # by loop: what is late, and why
        self._since = 0.0
        self._losses = Losses(name, clock)
        self._refusals = Refusals(name, clock=clock, role=_ROLE, keys=keys)
        self._said = SaidBefore()  # causes of this outage
        self._last_cause = ""
        self._heard = clock.elapsed()  # when (monotonic) a loop had its last reply

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
        why = with_remedy(str(error), error.code, _ROLE, self._keys)
        if loop not in self._lacking:
            log.warning("%s: %s: %s", self._name, what, why, event="refused")
            self._listeners.emit(Trouble(f"{what}: {why}"))
        self._lacking[loop] = (what, why)

    def has(self, loop: str) -> None:
        """Note that a loop has all its rights."""
        if (lacked := self._lacking.pop(loop, None)) is not None:
            log.warning(
                "%s: the missing right is back; no longer so: %s", self._name, lacked[0], event="refused_no_longer"
            )

    @property
    def silence(self) -> float:
        """Seconds since the server answered any loop."""
        return self._clock.elapsed() - self._heard

    @property
    def unannounced(self) -> bool:
        """Does this worker lack a right to the channel on which workers tell each other what is due?"""
        return bool(self._lacking)

    @property
    def refused(self) -> list[str]:
        """What is refused while everything else goes on, and why."""
        return [*(f"{what}: {why}" for what, why in self._lacking.values()), *self._refusals.named()]

    def note_refused(self, what: str, error: BrokerError, *, part: str = "") -> None:
        """Note that the server refuses something, which concerns nothing else."""
        self._refusals.note_refused(what, error, part=part)

    def note_restored(self, streams: Sequence[str], groups: Sequence[str]) -> None:
        """Note the streams that were gone and are created anew, and those that had lost their consumer group alone."""
        self._losses.note(streams, groups)

    def note_accepted(self, what: str, part: str = "") -> None:
        """Note that the server refuses something no longer: it has carried it out."""
        self._refusals.note_accepted(what, part)

    def forget(self, what: str, part: str) -> None:
        """Note that nobody will ask for this any more."""
        self._refusals.forget(what, part)

    async def wait(self, loop: str, error: BrokerError, longest: float = LONGEST_PAUSE) -> None:
        """Note that a loop failed, and wait before its next try: longer each time, with jitter.

        An error that is no state of the server does not begin an outage: the loop is named as refused.
        """
        if error.code and is_final(error):
            self.note_refused(_refused_loop(loop), error)
            streak = self._refused_loops[loop] = self._refused_loops.get(loop, 0) + 1
        else:
            self._note(error)
            streak = self._streaks[loop] = self._streaks.get(loop, 0) + 1
        await anyio.sleep(min(longest, _PAUSE.ceiling(min(streak, 8))) * self._random.uniform(0.5, 1.0))

    def _note(self, error: BrokerError) -> None:
        """Log the first error of an outage, and each further one with another cause, ten at most in ten minutes."""
        now, why = self._clock.elapsed(), cause(error)
        if not self._streaks:
            self._since, self._said = now, SaidBefore()
            self._said.may_say(why, now)
            log.warning(
                "%s: %s; waiting for the server", self._name, advised(str(error), error.code), event="server_lost"
            )
            self._listeners.emit(Trouble(str(error)))
        elif why != self._last_cause and self._said.may_say(why, now):
            log.warning(
                "%s: still waiting for the server, now: %s",
                self._name,
                advised(str(error), error.code),
                event="server_lost",
            )
        self._error, self._last_cause = error, why

    def over(self, loop: str) -> None:
        """Note that a loop got its reply."""
        self._heard = self._clock.elapsed()
        if self._refused_loops and self._refused_loops.pop(loop, 0):
            self.note_accepted(_refused_loop(loop))
        if self._streaks and self._streaks.pop(loop, 0) and not self._streaks:
            after = self._clock.elapsed() - self._since
            log.warning("%s: the server answers again, after %.1f s", self._name, after, event="server_back")
            self._listeners.emit(Recovered(after))


def _refused_loop(loop: str) -> str:
    return _STEPS.get(loop, f"the step {loop!r} of this worker")
