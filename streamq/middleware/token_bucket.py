"""A token bucket that gives reservations to tasks that it cannot let start. Pure: no I/O, no clock of its own.

Theory. A token bucket, kept as a generic cell rate algorithm (GCRA; ITU-T I.371, 1993). A bucket of `burst` tokens
that gains one every 1/rate seconds is one number: the time at which it would be full. Four numbers per key are all the
state there is. The hash in Redis has shorter names for them.

- `reserved_until` (`tail`): the end of the reservations. A task that finds no token reserves the next free time and
  comes back then. Reservations are 1/rate apart, so the tasks come back one by one, however many wait. Each is
  postponed once, and all together make no burst of retries.
- `full_at` (`gate`): counts real starts. Every start takes a token here, with a reservation or without, so nothing
  that happens to reservations can break the limit. It admits `burst` at once and, besides, the tasks that fall due
  within `SLACK` seconds (at least one), so that a task that is a little late does not wait again.
- `late_reserved_until` (`again`): the end of the reservations of late tasks, which came at their time or after it and
  found no token. These are few. While there are any, a task that comes back joins them, so order is kept.
- `drained_until` (`shut`): nothing starts before this, because a handler asked for it (Retry-After). The bucket is
  empty then, and tasks whose reservations have passed get late reservations, in order.

A postponed task carries its reservation, for its very next run only:

- it comes early (somebody promoted it by hand): it waits for the rest of its time;
- it comes late (no worker ran, or its tier was busy): it starts if there is a token. If all the others of an outage
  come with it, it gets a late reservation. It takes no second ordinary one;
- it never comes (cancelled, expired): its reservation stays unused;
- it ran and is retried: that is another start, and takes another token.

The rate is given with each step: a worker with another rate changes what is reserved from then on.
In any T seconds at most `burst + T * rate + max(1, SLACK * rate)` tasks of a key start. `rate_acquire.lua`,
`rate_return.lua` and `rate_drain.lua` do the same for a fleet, and a test compares the two step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SLACK = 0.1  # seconds that a task may be late for its reservation and still start without another wait
EARLY = 0.002  # seconds: clocks in whole milliseconds make a task this early


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a bucket fills.

    `interval` is 1/rate in seconds, `burst` how many may start at once after a pause, `capacity` how many starts are
    let through at once, slack included.
    """

    interval: float
    burst: int
    capacity: int

    @classmethod
    def of(cls, per_second: float, burst: int) -> Rate:
        """Return the rate of so many starts per second, with slack for late tasks."""
        return cls(1 / per_second, burst, burst + max(1, int(SLACK * per_second)))


@dataclass(frozen=True, slots=True)
class Reservation:
    """The time (s) at which a task may come back. `missed` says that the task has missed a reservation before."""

    due: float
    missed: bool = False


@dataclass(slots=True)
class Bucket:
    """The starts of one key. All times are on one clock, in seconds."""

    reserved_until: float = -math.inf
    full_at: float = -math.inf
    late_reserved_until: float = -math.inf
    drained_until: float = -math.inf

    def acquire(self, rate: Rate, now: float, reservation: Reservation | None) -> Reservation | None:
        """Take a token and return None, or return the reservation to come back with."""
        if reservation is None:
            return self._acquire_or_reserve(rate, now)
        if reservation.due > now + EARLY:
            return reservation
        next_token = self._next_token_at(rate)
        if next_token <= now + EARLY and (reservation.missed or self.late_reserved_until <= now + EARLY):
            self.full_at = max(self.full_at, now) + rate.interval
            return None
        due = max(self.late_reserved_until, next_token, now)
        self.late_reserved_until = due + rate.interval
        return Reservation(due, missed=True)

    def _acquire_or_reserve(self, rate: Rate, now: float) -> Reservation | None:
        """Decide on a task that has no reservation yet."""
        free = self.reserved_until - (rate.burst - 1) * rate.interval
        due = max(free, self.late_reserved_until, self._next_token_at(rate))
        if due <= now:
            self.reserved_until = max(self.reserved_until, now) + rate.interval
            self.full_at = max(self.full_at, now) + rate.interval
            return None
        self.reserved_until = max(self.reserved_until, due) + rate.interval
        return Reservation(due)

    def return_token(self, rate: Rate) -> None:
        """Take back the last token: its task did not start."""
        self.full_at -= rate.interval

    def drain(self, rate: Rate, now: float, after: float) -> Reservation:
        """Let nothing start for `after` seconds. Return the reservation of the task that asked for this."""
        self.drained_until = max(self.drained_until, now + after)
        self.full_at = max(self.full_at, self.drained_until + (rate.capacity - 1) * rate.interval)
        due = max(self.late_reserved_until, self.drained_until)
        self.late_reserved_until = due + rate.interval
        return Reservation(due, missed=True)

    def _next_token_at(self, rate: Rate) -> float:
        return max(self.full_at - (rate.capacity - 1) * rate.interval, self.drained_until)

    def idle(self, now: float) -> bool:
        """Return whether a new bucket would do the same: it is full, and no task has a reservation."""
        return max(self.reserved_until, self.full_at, self.late_reserved_until, self.drained_until) <= now
