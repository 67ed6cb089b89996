"""The token bucket of a whole fleet: one hash in Redis for each key, and the server's clock.

One command for each start; one more for a token that is given back, and for a drain.
"""

from __future__ import annotations

from streamq.middleware.token_bucket import Rate, Ticket
from streamq.queue.store import Store
from streamq.scripts import step


class FleetBuckets:
    """The buckets of one limit, shared by all workers. Its steps raise BrokerError if the server cannot be used."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._interval = rate.interval * 1000

    def __repr__(self) -> str:
        return f"<FleetBuckets {1 / self._rate.interval:g}/s>"

    async def admit(self, store: Store, name: str, ticket: Ticket | None) -> tuple[float, Ticket | None]:
        """Take a token; returns the server's time, and the slot to come back at if there is none."""
        due = "" if ticket is None else max(0.0, ticket.due * 1000)
        missed = int(ticket is not None and ticket.again)
        now, slot, again = await store.one(step("rate")(
            [store.keys.rate(name)], self._interval, self._rate.burst, self._rate.capacity, due, missed
        ))  # fmt: skip
        return now / 1000, Ticket(float(slot) / 1000, again=again == b"1") if slot else None

    async def give_back(self, store: Store, name: str) -> float:
        """What took the last token has not started; returns the server's time."""
        return float(await store.one(step("rate_back")([store.keys.rate(name)], self._interval))) / 1000

    async def drain(self, store: Store, name: str, after: float) -> tuple[float, Ticket]:
        """Let nothing start for `after` seconds; returns the server's time, and the slot of who asked for that."""
        now, slot = await store.one(step("rate_drain")(
            [store.keys.rate(name)], self._interval, self._rate.capacity, round(after * 1000)
        ))  # fmt: skip
        return now / 1000, Ticket(float(slot) / 1000, again=True)
