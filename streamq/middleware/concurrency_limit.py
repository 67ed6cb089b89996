"""`ConcurrencyLimit`: at most so many runs at once in the whole fleet; the others wait in Redis, in a line.

How permits are leased and handed on is in `permits.py`.
"""

from __future__ import annotations

import random
import secrets
from typing import Any, Final, Literal

import anyio

from streamq.errors import BrokerError, ConfigurationError, check_integer, check_number
from streamq.middleware.chain import CallNext, Context
from streamq.middleware.limit_key import Key, check_key, keyed
from streamq.middleware.permits import Permits, Place
from streamq.middleware.rate_limit import HeldBack
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Uniform

_HEADER: Final = "concurrency:"
_BLIND: Final = 1.0  # seconds, and up to twice that, until a server that could not be used is asked again
_LEAST: Final = 0.3  # seconds of a lease: it is renewed every third, and servers are asked in milliseconds


class ConcurrencyLimit:
    """Run at most `max_running` tasks of one name, or of one key, at once, in the whole fleet.

    `key` is what to count by instead of the name of the task: a function of the context, or a format string over
    the arguments ("customer:{customer_id}"); two limits that count by the same key need a `name` each. A task that
    finds no permit goes to the delayed set and stands in line: it holds no slot and spends no attempt, and whoever
    gives a permit back wakes the first of the line. Permits are leased for `lease` seconds and renewed every third of
    that, so those of a worker that died come back. While the server cannot be used, tasks are put off for 1 to 2 s.

    `lost` counts runs whose permits could not be renewed in time: these go on, and may be beyond the bound.
    Raises ConfigurationError for what cannot be used.
    """

    def __init__(
        self, max_running: int, key: Key = None, lease: float = 30.0, scope: Literal["fleet"] = "fleet", *,
        name: str = "", uniform: Uniform = random,
    ) -> None:  # fmt: skip
        if scope != "fleet":
            raise ConfigurationError(
                f"scope={scope!r} is none: give 'fleet'; for one process there is Worker(concurrency=...)"
            )
        self.max_running = check_integer("max_running", max_running, 1)
        self.lease = float(check_number("lease", lease, _LEAST))
        self.scope = scope
        self.name = name
        self._key = check_key(key)
        self._random = uniform
        self._lost = 0
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
        """How many runs of this process lost their permits, because they could not be renewed in time."""
        return self._lost + sum(permits.lost for permits in self._permits.values())

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task if there is a permit for it. Raises HeldBack, and its place in the line, if there is none."""
        key = keyed(self._key, context)
        name = f"{self.name}:{key}" if self.name else key
        permits = self._of(context.store)
        place = self._place(context, name)
        run = f"{context.delivery.task_id} {secrets.token_hex(8)}"
        try:
            told = await permits.take(place, run)
        except BrokerError as error:
            after = self._random.uniform(_BLIND, 2 * _BLIND)
            headers = self._headers(context, place) if place.since else None
            raise HeldBack(f"no permit for {name} can be asked for: {error}", after=after, headers=headers) from error
        if told is not None:
            mine, after = told
            if context.delivery.expires is not None:  # then it leaves the line, and nobody need call it
                after = min(after, max(0.0, context.delivery.expires - context.store.clock.now()) + 0.1)
            raise HeldBack(
                f"{self.max_running} of {name} run: it is in line", after=after, headers=self._headers(context, mine)
            )
        try:
            return await call_next(context)
        finally:
            await permits.give(name, run)

    async def live(self, store: Store) -> None:
        """Renew the permits of a worker's runs, and look after those that wait."""
        permits = self._of(store)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(permits.keep_forever)
                group.start_soon(permits.look_forever)
        finally:
            self._lost += permits.lost
            self._permits.pop(store, None)

    def _of(self, store: Store) -> Permits:
        permits = self._permits.get(store)
        if permits is None:
            permits = self._permits[store] = Permits(store, self.max_running, self.lease, uniform=self._random)
        return permits

    def _headers(self, context: Context, place: Place) -> dict[str, Any]:
        """Return a place as it travels: valid for the next run of this task alone."""
        return {_HEADER + place.name: [place.run, place.since, context.delivery.starts + 1]}

    def _place(self, context: Context, name: str) -> Place:
        """Return the place that a delivery has already, or a new one."""
        if b"headers" in context.delivery.fields:
            match context.delivery.headers.get(_HEADER + name):
                case [run, since, int() as starts] if starts == context.delivery.starts:
                    if (place := Place.told(name, run, since)) is not None:
                        return place
        return Place.of(context.store, name, context.delivery)
