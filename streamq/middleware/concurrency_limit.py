"""`ConcurrencyLimit`: at most so many runs at once in the whole fleet. Other tasks wait in Redis, in order.

`concurrency_permits` leases the permits and passes them on.
"""

from __future__ import annotations

import random
import secrets
from typing import Any, Final, Literal

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import BrokerError, ConfigurationError
from streamq.middleware.chain import CallNext, Context
from streamq.middleware.concurrency_commands import Waiter
from streamq.middleware.concurrency_permits import Permits
from streamq.middleware.limit_key import Key, check_key, resolve_key
from streamq.middleware.limit_reached import LimitReached
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Uniform
from streamq.wire import bounds
from streamq.wire.names import check_name, qualified

_HEADER: Final = "concurrency:"
_NOT_KEPT: Final = "the limit is not kept: somebody else's value is in its keys"
_WAIT: Final = "its tasks wait, and everything else goes on"
_RETRY_SERVER_AFTER: Final = 1.0  # seconds, up to twice that, that a task waits if the server could not be used


class ConcurrencyLimit:
    """Run at most `max_running` tasks of one name, or of one key, at once, in the whole fleet.

    `key` is what to count by instead of the task's name: a function of the context, or a format string over the
    arguments ("customer:{customer_id}"). Two limits that count by the same key need a `name` each. A task that finds no
    permit goes to the delayed set and waits in order. It holds no slot and spends no attempt. A run that releases its
    permit wakes the first waiter. Permits are leased for `lease` seconds and renewed every third of that, so those of a
    worker that died become free. While the server cannot be used, tasks are postponed for 1 to 2 s.

    `lost` counts runs whose permits could not be renewed in time. These runs go on, and may exceed the limit.
    `uniform` is the source of jitter. Raises ConfigurationError if an option is out of range.
    """

    def __init__(
        self, max_running: int, key: Key = None, lease: float = 30.0, scope: Literal["fleet"] = "fleet", *,
        name: str = "", uniform: Uniform = random,
    ) -> None:  # fmt: skip
        if scope != "fleet":
            raise ConfigurationError(
                f"scope={repr_of(scope)} does not exist: give 'fleet'; for one process there is Worker(concurrency=...)"
            )
        self.max_running = bounds.LIMIT_RUNNING.check(max_running)
        self.lease = float(bounds.LIMIT_LEASE.check(lease))
        self.scope = scope
        self.name = check_name("limit", name, what="name") if name else ""
        self._key = check_key(key)
        self._random = uniform
        self._lost = 0
        self._what = f"the concurrency limit{f' {name}' if name else ''} of {max_running}"
        self._permits: dict[Store, Permits] = {}

    def __repr__(self) -> str:
        named = f" {self.name}" if self.name else ""
        return f"<ConcurrencyLimit{named} {self.max_running} running={self.running} lost={self.lost}>"

    @property
    def running(self) -> int:
        """How many runs of this process have a permit."""
        return sum(permits.running for permits in self._permits.values())

    @property
    def lost(self) -> int:
        """How many runs of this process lost their permits: not renewed in time, or deleted on the server."""
        return self._lost + sum(permits.lost for permits in self._permits.values())

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task if there is a permit for it. Raises LimitReached if there is none; the task waits then."""
        key = resolve_key(self._key, context)
        name = qualified(self.name, key)
        permits = self._permits_of(context.store)
        waiter = self._waiter(context, name)
        run = f"{context.delivery.task_id} {secrets.token_hex(8)}"
        try:
            waiting = await permits.acquire(waiter, run)
        except BrokerError as error:
            if error.code == "WRONGTYPE":
                context.store.refusals.note_failed(self._what, error, part=name, then=_NOT_KEPT)
                return await call_next(context)
            context.store.refusals.note_failed(self._what, error, part=name, then=_WAIT)
            after = self._random.uniform(_RETRY_SERVER_AFTER, 2 * _RETRY_SERVER_AFTER)
            headers = self._headers(context, waiter) if waiter.since else None
            raise LimitReached(
                f"the server cannot be asked for a permit for {name}: {error}", after=after, headers=headers
            ) from error
        if context.store.refusals:
            context.store.refusals.note_accepted(self._what, name)
        if waiting is not None:
            waiter, after = waiting
            if context.delivery.expires is not None:  # it stops waiting then, and needs no permit
                after = min(after, max(0.0, context.delivery.expires - context.store.clock.now()) + 0.1)
            raise LimitReached(
                f"{self.max_running} of {name} run: it waits for a permit", after=after,
                headers=self._headers(context, waiter), then=permits.check(waiter),
            )  # fmt: skip
        try:
            return await call_next(context)
        finally:
            await permits.release(name, run)

    async def live(self, store: Store) -> None:
        """Renew the permits of a worker's runs, and pass on those that are over."""
        permits = self._permits_of(store)
        try:
            await permits.maintain_forever()
        finally:
            await permits.release_last()
            self._lost += permits.lost
            self._permits.pop(store, None)

    def _permits_of(self, store: Store) -> Permits:
        permits = self._permits.get(store)
        if permits is None:
            permits = self._permits[store] = Permits(store, self.max_running, self.lease, uniform=self._random)
        return permits

    def _headers(self, context: Context, waiter: Waiter) -> dict[str, Any]:
        """Return the header of a waiter: valid for the next run of this task only."""
        return {_HEADER + waiter.name: [waiter.identity, waiter.since, context.delivery.starts + 1]}

    def _waiter(self, context: Context, name: str) -> Waiter:
        """Return the waiter that a delivery already is, or a new one."""
        delivery = context.delivery
        new = Waiter.from_delivery(context.store, name, delivery)
        if b"headers" in delivery.fields:
            match delivery.headers.get(_HEADER + name):
                case [identity, since, int() as starts] if starts == delivery.starts:
                    return new.resumed(identity, since, earliest=delivery.enqueued_at) or new
        return new
