"""`RateLimitMiddleware`: at most so many starts per second. A task that comes too early waits in the delayed set.

The rules are in `token_bucket`, pure; `rate_limit_fleet` carries them out in Redis. A task that finds no token gets a
reservation and raises LimitReached until then. The reservation travels in a header, and is valid for the next run only.
A reservation of one process means nothing to another: there the task counts as due, and takes a token of that process.
Cost: O(1) per task. A key takes memory of the process until its reservations have passed; in Redis it has a TTL.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import BrokerError, CircuitOpenError, ConfigurationError, RetryLater
from streamq.middleware.chain import CallNext, Context
from streamq.middleware.limit_key import Key, check_key, resolve_key
from streamq.middleware.limit_reached import LimitReached
from streamq.middleware.per_key import PerKey
from streamq.middleware.rate_limit_fleet import FleetBuckets
from streamq.middleware.token_bucket import Bucket, Rate, Reservation
from streamq.queue.server_errors import concerns_server
from streamq.queue.store import Store
from streamq.tasks.exception_groups import leaves
from streamq.tasks.retry_policy import Uniform
from streamq.wire import bounds

log = SafeLog("streamq")

_HEADER: Final = "rate_limit:"
_FLEET: Final = "fleet"  # the issuer of reservations in Redis; a process has a random name instead
_RETRY_SERVER_AFTER: Final = 1.0  # seconds, up to twice that, that a task waits if the server could not be used


class _LocalBuckets:
    """The buckets of one limit in this process, with the methods of FleetBuckets."""

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets = PerKey(lambda _: Bucket(), lambda bucket: bucket.idle(clock()))

    def __len__(self) -> int:
        return len(self._buckets)

    async def acquire(self, _: Store, name: str, reservation: Reservation | None) -> tuple[float, Reservation | None]:
        now = self._clock()
        return now, self._buckets.get(name).acquire(self._rate, now, reservation)

    async def return_token(self, _: Store, name: str) -> float:
        self._buckets.get(name).return_token(self._rate)
        return self._clock()

    async def drain(self, _: Store, name: str, after: float) -> tuple[float, Reservation]:
        now = self._clock()
        return now, self._buckets.get(name).drain(self._rate, now, after)


class RateLimitMiddleware:
    """Start at most `max_per_second` tasks of one name, or of one key, evenly spread.

    `burst` is the burst size: so many may start at once after a pause. `key` is what to count by instead of the task's
    name: a function of the context, or a format string over the arguments ("customer:{customer_id}"). With
    `scope="fleet"` all workers share the bucket of a key, in Redis. Two limits that count by the same key need a `name`
    each. A task that must wait goes to the delayed set until its time. It holds no slot and spends no attempt.

    If a handler raises RetryLater(after=..., drain=True), nothing of its key starts for that time. While the server
    cannot be used, tasks of a limit of the fleet are postponed for 1 to 2 s: none starts uncounted.

    `clock` returns monotonic seconds, for `scope="process"`. `uniform` is the source of jitter.
    Raises ConfigurationError for a rate, a burst, a key or a scope that cannot be used.
    """

    def __init__(
        self, max_per_second: float = 10.0, burst: int = 1, key: Key = None,
        clock: Callable[[], float] = time.monotonic, *, scope: Literal["process", "fleet"] = "process",
        name: str = "", uniform: Uniform = random,
    ) -> None:  # fmt: skip
        if scope not in ("process", "fleet"):
            raise ConfigurationError(f"scope={repr_of(scope)} does not exist: give 'process' or 'fleet'")
        self.max_per_second = float(bounds.RATE.check(max_per_second))
        self.burst = bounds.BURST.check(burst)
        self.scope = scope
        self.name = name
        self._key = check_key(key)
        self._random = uniform
        rate = Rate.of(self.max_per_second, burst)
        self._local = _LocalBuckets(rate, clock)
        self._buckets = FleetBuckets(rate, name) if scope == "fleet" else self._local
        self._issuer = _FLEET if scope == "fleet" else secrets.token_urlsafe(4)

    def __repr__(self) -> str:
        rate, named = f"{self.max_per_second:g}/s", f" {self.name}" if self.name else ""
        where = "fleet" if self.scope == "fleet" else f"keys={len(self._local)}"
        return f"<RateLimitMiddleware{named} {rate} burst={self.burst} {where}>"

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task if there is a token for it. Raises LimitReached with the time that is left if there is none."""
        key = resolve_key(self._key, context)
        name = f"{self.name}:{key}" if self.name else key
        reservation = self._reservation(context, name)
        try:
            now, reserved = await self._buckets.acquire(context.store, name, reservation)
        except BrokerError as error:
            if error.code != "WRONGTYPE":
                raise self._server_unusable(context, name, reservation, error) from error
            return await call_next(context)  # the limit is not kept: somebody else's value is in its key
        if reserved is not None:
            raise LimitReached(
                f"postponed by the limit of {self.max_per_second:g}/s for {name}",
                after=max(0.0, reserved.due - now), headers=self._headers(context, name, reserved),
            )  # fmt: skip
        try:
            return await call_next(context)
        except (RetryLater, BaseExceptionGroup) as error:
            requests = [one for one in leaves(error) if isinstance(one, RetryLater)]
            if all(isinstance(one, LimitReached | CircuitOpenError) for one in leaves(error)):
                # It did not start, so its token is returned. When it comes back, soon or late, it has waited here.
                now = await self._return_token(context, name)
                for request in requests:
                    request.headers = {**(request.headers or {}), **self._headers(context, name, Reservation(now))}
            else:
                for request in requests:
                    if request.drain:
                        await self._drain(context, name, request)
            raise

    def _server_unusable(
        self, context: Context, name: str, reservation: Reservation | None, error: BrokerError
    ) -> LimitReached:  # fmt: skip
        """Return the error that postpones a task for a moment. The task keeps its reservation."""
        after = self._random.uniform(_RETRY_SERVER_AFTER, 2 * _RETRY_SERVER_AFTER)
        headers = None if reservation is None else self._headers(context, name, reservation)
        return LimitReached(
            f"the server cannot be asked for the limit of {name}: {error}", after=after, headers=headers
        )

    async def _return_token(self, context: Context, name: str) -> float:
        try:
            return await self._buckets.return_token(context.store, name)
        except BrokerError:  # a token is lost; the reservation is one that has passed
            return 0.0

    async def _drain(self, context: Context, name: str, request: RetryLater) -> None:
        """Let nothing of this key start for the time that a handler asked for. Its task comes first then."""
        request.drain = False  # only the innermost limit is drained: outer ones limit other calls as well
        if not isinstance(request.after, int | float) or request.after not in bounds.AFTER:
            return  # a mistake of the handler: it counts as a failed run
        after = max(0.0, float(request.after))
        try:
            now, reservation = await self._buckets.drain(context.store, name, after)
        except BrokerError as error:
            if concerns_server(error):  # another one is named by the buckets
                log.warning(
                    "the limit for %s cannot be drained for %g s: %s", name, after, error, event="limit_refused"
                )
            return
        request.after = max(after, reservation.due - now)
        request.headers = {**(request.headers or {}), **self._headers(context, name, reservation)}

    # --- the header that carries a reservation ------------------------------------------------------

    def _headers(self, context: Context, name: str, reservation: Reservation) -> dict[str, Any]:
        """Return the header of a reservation: valid for the next run of this task only."""
        packed = [self._issuer, round(reservation.due, 6), int(reservation.missed), context.delivery.starts + 1]
        return {_HEADER + name: packed}

    def _reservation(self, context: Context, name: str) -> Reservation | None:
        """Return the reservation that a delivery carries for this run, None if it has none."""
        if b"headers" not in context.delivery.fields:
            return None
        match context.delivery.headers.get(_HEADER + name):
            case [str() as issuer, int() | float() as due, 0 | 1 as missed, int() as starts]:
                if starts != context.delivery.starts:
                    return None
                if issuer != self._issuer:  # another process issued it, on another clock
                    return Reservation(-math.inf)
                return Reservation(due, missed=bool(missed))
        return None
