"""The token buckets that all workers share: one hash in Redis for each key, on the server's clock.

One command for each start, one more for a token that is returned, one for a drain. The rules are in `token_bucket`.
"""

from __future__ import annotations

from typing import Any, Final

from streamq.client import Command
from streamq.errors import BrokerError
from streamq.middleware.token_bucket import Rate, Reservation
from streamq.queue.store import Store
from streamq.scripts import step

_NOT_KEPT: Final = "the limit is not kept: somebody else's value is in its key"
_WAIT: Final = "its tasks wait, and everything else goes on"


class FleetBuckets:
    """The buckets of one limit in Redis. Its methods raise BrokerError if the server cannot be used.

    What is refused is named in the log once, and in the health of the worker, as that of the limit `name`.
    """

    def __init__(self, rate: Rate, name: str = "") -> None:
        self._what = f"the rate limit{f' {name}' if name else ''} of {1 / rate.interval:g}/s"
        self._rate = rate
        self._interval_ms = rate.interval * 1000

    def __repr__(self) -> str:
        return f"<FleetBuckets {1 / self._rate.interval:g}/s>"

    async def acquire(
        self, store: Store, name: str, reservation: Reservation | None
    ) -> tuple[float, Reservation | None]:
        """Take a token. Return the server's time (s), and a reservation if there is no token."""
        due = "" if reservation is None else max(0.0, reservation.due * 1000)
        missed = int(reservation is not None and reservation.missed)
        now, reserved, missed_now = await self._ask(store, self._what, name, step("rate_acquire")(
            [store.keys.rate(name)], self._interval_ms, self._rate.burst, self._rate.capacity, due, missed
        ))  # fmt: skip
        return now / 1000, Reservation(float(reserved) / 1000, missed=missed_now == b"1") if reserved else None

    async def return_token(self, store: Store, name: str) -> float:
        """Return the last token: its task did not start. Return the server's time (s)."""
        command = step("rate_return")([store.keys.rate(name)], self._interval_ms)
        return float(await self._ask(store, f"a token returned to {self._what}", name, command)) / 1000

    async def drain(self, store: Store, name: str, after: float) -> tuple[float, Reservation]:
        """Let nothing start for `after` seconds. Return the server's time (s), and a reservation for the task."""
        now, due = await self._ask(store, f"the drain of {self._what}", name, step("rate_drain")(
            [store.keys.rate(name)], self._interval_ms, self._rate.capacity, round(after * 1000)
        ))  # fmt: skip
        return now / 1000, Reservation(float(due) / 1000, missed=True)

    async def _ask(self, store: Store, what: str, name: str, command: Command) -> Any:
        try:
            reply = await store.one(command)
        except BrokerError as error:
            store.refusals.note_failed(what, error, part=name, then=_NOT_KEPT if error.code == "WRONGTYPE" else _WAIT)
            raise
        if store.refusals:
            store.refusals.note_accepted(what, name)
        return reply
