"""A token bucket that gives slots to those it cannot let start. Pure: no I/O, no clock of its own.

Theory. A token bucket, kept as a generic cell rate algorithm (GCRA; ITU-T I.371, 1993): a
bucket of `burst` tokens that gains one every 1/rate seconds is one number, the time at which it
would be full. Four numbers per key are all the state there is:

- `tail`: where the plan ends. A task that finds no token is given the next slot of the plan and
  comes back then. Slots are distinct and 1/rate apart, so however many tasks wait,
  they come back one by one: each is held once, and there is no storm.
- `gate`: what really started. Every start takes a token here, planned or not, so nothing that
  happens to a plan can break the limit. The gate admits `burst` at once and, besides, what falls due
  within `SLACK` seconds (at least one), so that a task a little late costs nothing.
- `again`: the plan of those that came to their slot and found the gate shut. It is short, and
  while it lasts whoever comes back joins it, so order is kept.
- `shut`: nothing starts before this, because somebody was told so (Retry-After). The bucket is empty then, and those
  whose slots have passed come through `again`, in order.

A held task carries its slot, tied to the very run that is to come:

- it comes early (somebody promoted it by hand): it waits for the rest of its time;
- it comes late (no worker ran, or its tier was busy): it starts if the gate is open, and joins
  `again` if all the others of an outage come with it. Its slot is not taken twice;
- it never comes (cancelled, expired): its slot stays unused;
- it ran and is retried: that is another start, and takes another token.

`interval` is given with each step: who has another rate changes what is planned from then on.
In any T seconds at most `burst + T * rate + max(1, SLACK * rate)` tasks of a key start. `rate.lua` and
its siblings do the same for a fleet, and a test compares the two step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SLACK = 0.1  # seconds that a task may be late for its slot and still start without another wait
EARLY = 0.002  # seconds: clocks in whole milliseconds make a task this early


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a bucket fills: `interval` is 1/rate in seconds, `capacity` what its gate lets through at once."""

    interval: float
    burst: int
    capacity: int

    @classmethod
    def of(cls, per_second: float, burst: int) -> Rate:
        """Return the rate of so many per second, with some slack at the gate."""
        return cls(1 / per_second, burst, burst + max(1, int(SLACK * per_second)))


@dataclass(frozen=True, slots=True)
class Ticket:
    """A slot that was given to a task. `again` says that it has missed one before."""

    due: float
    again: bool = False


@dataclass(slots=True)
class Bucket:
    """The starts of one key; all times are on one clock, in seconds."""

    tail: float = -math.inf
    gate: float = -math.inf
    again: float = -math.inf
    shut: float = -math.inf

    def admit(self, rate: Rate, now: float, ticket: Ticket | None) -> Ticket | None:
        """Take a token and return None, or return the slot to come back at."""
        if ticket is None:
            return self._first(rate, now)
        if ticket.due > now + EARLY:
            return ticket
        opens = self._opens(rate)
        if opens <= now + EARLY and (ticket.again or self.again <= now + EARLY):
            self.gate = max(self.gate, now) + rate.interval
            return None
        due = max(self.again, opens, now)
        self.again = due + rate.interval
        return Ticket(due, again=True)

    def _first(self, rate: Rate, now: float) -> Ticket | None:
        """Decide on a task that has no slot yet."""
        due = max(self.tail - (rate.burst - 1) * rate.interval, self.again, self._opens(rate))
        if due <= now:
            self.tail = max(self.tail, now) + rate.interval
            self.gate = max(self.gate, now) + rate.interval
            return None
        self.tail = max(self.tail, due) + rate.interval
        return Ticket(due)

    def give_back(self, rate: Rate) -> None:
        """What took the last token has not started after all."""
        self.gate -= rate.interval

    def drain(self, rate: Rate, now: float, after: float) -> Ticket:
        """Let nothing start for `after` seconds, and return the slot of who asked for that."""
        self.shut = max(self.shut, now + after)
        self.gate = max(self.gate, self.shut + (rate.capacity - 1) * rate.interval)
        due = max(self.again, self.shut)
        self.again = due + rate.interval
        return Ticket(due, again=True)

    def _opens(self, rate: Rate) -> float:
        return max(self.gate - (rate.capacity - 1) * rate.interval, self.shut)

    def idle(self, now: float) -> bool:
        """Is this bucket full, and nobody on the way to it: like one that was never used?"""
        return max(self.tail, self.gate, self.again, self.shut) <= now
