"""`RateLimitMiddleware`: at most so many starts per second; what comes too early waits in Redis.

The rules are in `bucket.py`, pure; `rate_fleet.py` has them carried out in Redis. A task that finds no token is
given a slot and raises RetryLater until then; the slot travels in a header, valid for the next run alone.
A slot of one process means nothing to another: there the task counts as planned, and the gate of that process decides.
Cost: O(1) per task; a key of a process costs memory until its plan has passed, one of the fleet has a TTL.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from streamq.errors import BrokerError, CircuitOpenError, ConfigurationError, RetryLater, check_integer
from streamq.middleware.chain import CallNext, Context
from streamq.middleware.limit_key import Key, check_key, keyed
from streamq.middleware.rate_limit_fleet import FleetBuckets
from streamq.middleware.token_bucket import SLACK, Bucket, Rate, Ticket
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Uniform

__all__ = ["SLACK", "HeldBack", "RateLimitMiddleware"]

log = logging.getLogger("streamq")

_HEADER: Final = "rate_limit:"
_FLEET: Final = "fleet"  # who gave a slot: all, or one process under a name of chance
_FEW: Final = 64  # buckets that are not worth a look for idle ones
_BLIND: Final = 1.0  # seconds, and up to twice that, until a server that could not be used is asked again


class HeldBack(RetryLater):
    """A limit holds a task back. It has not run: outer limits take their tokens back."""


class _LocalBuckets:
    """The buckets of one limit in this process; its steps are those of FleetBuckets."""

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._look_at = _FEW

    def __len__(self) -> int:
        return len(self._buckets)

    async def admit(self, _: Store, name: str, ticket: Ticket | None) -> tuple[float, Ticket | None]:
        now = self._clock()
        return now, self._bucket(name).admit(self._rate, now, ticket)

    async def give_back(self, _: Store, name: str) -> float:
        self._bucket(name).give_back(self._rate)
        return self._clock()

    async def drain(self, _: Store, name: str, after: float) -> tuple[float, Ticket]:
        now = self._clock()
        return now, self._bucket(name).drain(self._rate, now, after)

    def _bucket(self, name: str) -> Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self._look_at:
                self._drop_idle()
            bucket = self._buckets[name] = Bucket()
        return bucket

    def _drop_idle(self) -> None:
        """Forget the keys that are as if they had never been used; amortized O(1) for each new one."""
        now = self._clock()
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if not bucket.idle(now)}
        self._look_at = max(_FEW, 2 * len(self._buckets))


class RateLimitMiddleware:
    """Start at most `max_per_second` tasks of one name, or of one key, evenly.

    After a pause, up to `burst` may start at once; with the default of 1, starts are spread evenly.
    `key` is what to count by instead of the name of the task: a function of the context, or a format string over
    the arguments ("customer:{customer_id}"). With `scope="fleet"` all workers share the bucket of a key, in Redis;
    two limits that count by the same key need a `name` each. A task that must wait goes to the delayed set with the
    time it may run: it holds no slot and spends no attempt.

    A handler that raises RetryLater(after=..., drain=True) has nothing of its key start for so long. While
    the server cannot be used, tasks of a fleet's limit are put off for 1 to 2 s: none starts uncounted.

    `clock` returns monotonic seconds, for `scope="process"`; `uniform` is where jitter comes from. Raises
    ConfigurationError for a rate, a burst, a key or a scope that cannot be used.
    """

    def __init__(
        self, max_per_second: float = 10.0, burst: int = 1, key: Key = None,
        clock: Callable[[], float] = time.monotonic, *, scope: Literal["process", "fleet"] = "process",
        name: str = "", uniform: Uniform = random,
    ) -> None:  # fmt: skip
        if not 0 < max_per_second < math.inf:
            raise ConfigurationError(f"max_per_second={max_per_second!r} cannot be used: give a number above 0")
        if scope not in ("process", "fleet"):
            raise ConfigurationError(f"scope={scope!r} is none: give 'process' or 'fleet'")
        self.max_per_second = float(max_per_second)
        self.burst = check_integer("burst", burst, 1)
        self.scope = scope
        self.name = name
        self._key = check_key(key)
        self._random = uniform
        rate = Rate.of(max_per_second, burst)
        self._local = _LocalBuckets(rate, clock)
        self._buckets = FleetBuckets(rate) if scope == "fleet" else self._local
        self._giver = _FLEET if scope == "fleet" else secrets.token_urlsafe(4)

    def __repr__(self) -> str:
        rate, named = f"{self.max_per_second:g}/s", f" {self.name}" if self.name else ""
        where = "fleet" if self.scope == "fleet" else f"keys={len(self._local)}"
        return f"<RateLimitMiddleware{named} {rate} burst={self.burst} {where}>"

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task if there is a token for it. Raises HeldBack with the time that is left."""
        key = keyed(self._key, context)
        name = f"{self.name}:{key}" if self.name else key
        ticket = self._ticket(context, name)
        try:
            now, wait = await self._buckets.admit(context.store, name, ticket)
        except BrokerError as error:
            raise self._blind(context, name, ticket, error) from error
        if wait is not None:
            raise HeldBack(
                f"held back by the limit of {self.max_per_second:g}/s for {name}",
                after=max(0.0, wait.due - now), headers=self._headers(context, name, wait),
            )  # fmt: skip
        try:
            return await call_next(context)
        except (HeldBack, CircuitOpenError) as held:
            # It did not start, so it took no token; and when it comes back, soon or late, it has waited here already.
            now = await self._given_back(context, name)
            held.headers = {**(held.headers or {}), **self._headers(context, name, Ticket(now))}
            raise
        except RetryLater as request:
            if request.drain:
                await self._drain(context, name, request)
            raise

    # --- when the server cannot be used ------------------------------------------------------------

    def _blind(self, context: Context, name: str, ticket: Ticket | None, error: BrokerError) -> HeldBack:
        """Return what puts a task off for a moment; the slot that it has stays its own."""
        after = self._random.uniform(_BLIND, 2 * _BLIND)
        headers = None if ticket is None else self._headers(context, name, ticket)
        return HeldBack(f"the limit for {name} cannot be asked: {error}", after=after, headers=headers)

    async def _given_back(self, context: Context, name: str) -> float:
        try:
            return await self._buckets.give_back(context.store, name)
        except BrokerError:  # a token is lost; the slot is one that has passed
            return 0.0

    async def _drain(self, context: Context, name: str, request: RetryLater) -> None:
        """Have nothing of this key start for as long as a handler was told to wait; its task comes first then."""
        request.drain = False  # this limit is the one next to the handler, and outer ones have others to serve
        if not isinstance(request.after, int | float) or not request.after < math.inf:
            return  # a mistake of the handler: it counts as a failed run
        after = max(0.0, float(request.after))
        try:
            now, slot = await self._buckets.drain(context.store, name, after)
        except BrokerError as error:
            log.warning("the limit for %s cannot be drained for %g s: %s", name, after, error)
            return
        request.after = max(after, slot.due - now)
        request.headers = {**(request.headers or {}), **self._headers(context, name, slot)}

    # --- tickets ------------------------------------------------------------------------------------

    def _headers(self, context: Context, name: str, ticket: Ticket) -> dict[str, Any]:
        """Return a ticket as it travels: valid for the next run of this task alone."""
        packed = [self._giver, round(ticket.due, 6), int(ticket.again), context.delivery.starts + 1]
        return {_HEADER + name: packed}

    def _ticket(self, context: Context, name: str) -> Ticket | None:
        """Return the ticket that a delivery carries for this run, None if it has none."""
        if b"headers" not in context.delivery.fields:
            return None
        match context.delivery.headers.get(_HEADER + name):
            case [str() as giver, int() | float() as due, 0 | 1 as again, int() as starts]:
                if starts != context.delivery.starts:
                    return None
                if giver != self._giver:  # another process planned it, on another clock
                    return Ticket(-math.inf)
                return Ticket(due, again=bool(again))
        return None
