"""`RateLimitMiddleware`: at most so many starts per second; what comes too early waits in Redis.

Theory. A token bucket, kept as a generic cell rate algorithm (GCRA; ITU-T I.371, 1993): a
bucket of `burst` tokens that gains one every 1/rate seconds is one number, the time at which it
would be full. Three such numbers per key are all the state there is:

- `tail`: where the plan ends. A task that finds no token is given the next slot of the plan and
  raises RetryLater until then. Slots are distinct and 1/rate apart, so however many tasks wait,
  they come back one by one: each is held once, and there is no storm.
- `gate`: what really started. Every start takes a token here, planned or not, so nothing that
  happens to a plan can break the limit. The gate admits `burst` at once and, besides, what falls due
  within `SLACK` seconds (at least one), so that a task a little late costs nothing.
- `again`: the plan of those that came to their slot and found the gate shut. It is short, and
  while it lasts whoever comes back joins it, so order is kept.

A held task carries its slot in a header, tied to the very run that is to come:

- it comes early (somebody promoted it by hand): it waits for the rest of its time;
- it comes late (no worker ran, or its tier was busy): it starts if the gate is open, and joins
  `again` if all the others of an outage come with it. Its slot is not taken twice;
- it comes to another process, or after a restart: it counts as planned there, and the gate of
  that process decides. N processes make N times the rate, whoever planned;
- it never comes (cancelled, expired): its slot stays unused;
- it ran and is retried: that is another start, and takes another token.

In any T seconds at most `burst + T * rate + max(1, SLACK * rate)` tasks of a key start in one
process. Tasks of one key in one tier start in the order they came, but for swaps among those due
within `SLACK` seconds. Cost: O(1) per task; a key costs memory until its tail has passed.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamq.errors import CircuitOpenError, ConfigurationError, RetryLater
from streamq.middleware.chain import CallNext, Context

SLACK = 0.1  # seconds that a task may be late for its slot and still start without another wait
_EARLY = 0.002  # seconds: clocks in whole milliseconds make a task this early
_HEADER = "rate_limit:"
_FEW = 64  # buckets that are not worth a look for idle ones


class HeldBack(RetryLater):
    """A limit holds a task back. It has not run: outer limits take their tokens back."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A slot that was given to a task. `again` says that it has missed one before."""

    due: float
    again: bool = False


@dataclass(slots=True)
class Bucket:
    """The starts of one key: pure, all times on one monotonic clock in seconds.

    `interval` is 1/rate, `capacity` what may start at once (see the module).
    """

    interval: float
    burst: int
    capacity: int
    tail: float = -math.inf
    gate: float = -math.inf
    again: float = -math.inf

    def admit(self, now: float, ticket: Ticket | None) -> Ticket | None:
        """Take a token and return None, or return the slot to come back at."""
        if ticket is None:
            return self._first(now)
        if ticket.due > now + _EARLY:
            return ticket
        opens = self._opens()
        if opens <= now + _EARLY and (ticket.again or self.again <= now + _EARLY):
            self.gate = max(self.gate, now) + self.interval
            return None
        due = max(self.again, opens, now)
        self.again = due + self.interval
        return Ticket(due, again=True)

    def _first(self, now: float) -> Ticket | None:
        """Decide on a task that has no slot yet."""
        earliest = max(self.tail - (self.burst - 1) * self.interval, self.again)
        if earliest <= now and self._opens() <= now:
            self.tail = max(self.tail, now) + self.interval
            self.gate = max(self.gate, now) + self.interval
            return None
        due = max(earliest, now)
        self.tail = max(self.tail, due) + self.interval
        return Ticket(due)

    def give_back(self) -> None:
        """What took the last token has not started after all."""
        self.gate -= self.interval

    def _opens(self) -> float:
        return self.gate - (self.capacity - 1) * self.interval

    def idle(self, now: float) -> bool:
        """Is this bucket full, and nobody on the way to it: like one that was never used?"""
        return max(self.tail, self.gate, self.again) <= now


class RateLimitMiddleware:
    """Start at most `max_per_second` tasks of one name in this process, evenly.

    After a pause, up to `burst` may start at once; with the default of 1, starts are spread evenly.
    `key` is a function of the context that returns what to count by, instead of the name of the
    task. `clock` returns monotonic seconds. A task that must wait goes to the delayed set with the
    time it may run: it holds no slot and spends no attempt.

    Raises ConfigurationError for a rate or a burst that cannot be used.
    """

    def __init__(
        self, max_per_second: float = 10.0, burst: int = 1, key: Callable[[Context], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        if not 0 < max_per_second < math.inf:
            raise ConfigurationError(f"max_per_second={max_per_second!r} cannot be used: give a number above 0")
        if type(burst) is not int or burst < 1:
            raise ConfigurationError(f"burst={burst!r} cannot be used: give an integer of at least 1")
        self.max_per_second = float(max_per_second)
        self.burst = burst
        self._key = key
        self._clock = clock
        self._capacity = burst + max(1, int(SLACK * max_per_second))
        self._name = secrets.token_urlsafe(4)
        self._buckets: dict[str, Bucket] = {}
        self._look_at = _FEW

    def __repr__(self) -> str:
        rate = f"{self.max_per_second:g}/s"
        return f"<RateLimitMiddleware {rate} burst={self.burst} keys={len(self._buckets)}>"

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task if there is a token for it. Raises HeldBack with the time that is left."""
        key = context.task.name if self._key is None else str(self._key(context))
        bucket = self._bucket(key)
        now = self._clock()
        wait = bucket.admit(now, self._ticket(context, key))
        if wait is not None:
            after = max(0.0, wait.due - now)
            raise HeldBack(
                f"held back by the limit of {self.max_per_second:g}/s for {key}",
                after=after, headers={_HEADER + key: self._pack(context, wait)},
            )  # fmt: skip
        try:
            return await call_next(context)
        except (HeldBack, CircuitOpenError) as held:
            # It did not start, so it took no token; and when it comes back it has waited here already.
            bucket.give_back()
            again = Ticket(self._clock() + held.after)
            held.headers = {**(held.headers or {}), _HEADER + key: self._pack(context, again)}
            raise

    def _pack(self, context: Context, ticket: Ticket) -> list[Any]:
        """Return a ticket as it travels: valid for the next run of this task alone."""
        return [self._name, round(ticket.due, 6), int(ticket.again), context.delivery.starts + 1]

    def _ticket(self, context: Context, key: str) -> Ticket | None:
        """Return the ticket that a delivery carries for this run, None if it has none."""
        if b"headers" not in context.delivery.fields:
            return None
        match context.delivery.headers.get(_HEADER + key):
            case [str() as name, int() | float() as due, 0 | 1 as again, int() as starts]:
                if starts != context.delivery.starts:
                    return None
                if name != self._name:  # another process planned it, on another clock
                    return Ticket(-math.inf)
                return Ticket(due, again=bool(again))
        return None

    def _bucket(self, key: str) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._look_at:
                self._drop_idle()
            bucket = self._buckets[key] = Bucket(1 / self.max_per_second, self.burst, self._capacity)
        return bucket

    def _drop_idle(self) -> None:
        """Forget the keys that are as if they had never been used; amortized O(1) for each new one."""
        now = self._clock()
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if not bucket.idle(now)}
        self._look_at = max(_FEW, 2 * len(self._buckets))
