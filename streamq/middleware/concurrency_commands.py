"""The commands of one concurrency limit, and how its waiters are named in Redis.

This module knows the keys and the scripts (`scripts/permit_*.lua`). It keeps no state.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from streamq.client import Command
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery
from streamq.wire.names import qualified

log = SafeLog("streamq")

_WAKING: Final = "waking a waiter"
RESERVED_MS: Final = 2000  # for so long a permit is reserved for a waiter
_SINCE: Final = re.compile(r"[0-9]{1,16}")
_IDENTITY: Final = re.compile(r"\S+ (\d+) (\S+:delayed) (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Waiter:
    """A task that waits for a permit of one name.

    `identity` is its member in the waiting list: '<entry id> <expires, ms, or 0> <delayed set> <its member there>'.
    `since` is when it asked first, in microseconds of the server; "" if it has not asked yet.
    """

    name: str
    identity: str
    since: str = ""

    @classmethod
    def from_delivery(cls, store: Store, name: str, delivery: Delivery) -> Waiter:
        """Return the waiter for a delivery that asks for the first time."""
        expires = 0 if delivery.expires is None else round(delivery.expires * 1000)
        delayed = store.keys.tiers[delivery.tier].delayed
        member = store.keys.retry_member(delivery.task_id)
        return cls(name, f"{delivery.entry_id.decode()} {expires} {delayed} {member}")

    def resumed(self, identity: object, since: object, *, earliest: float) -> Waiter | None:
        """Return this waiter with the place that the header of its message claims, None for a place of another.

        A producer can write any header. So the place must be that of this very task in its own delayed set, and no
        older than the task: `earliest` (Unix s) is when it was accepted.
        """
        if not (isinstance(identity, str) and isinstance(since, str) and _SINCE.fullmatch(since)):
            return None
        entry, _, rest = identity.partition(" ")
        if not entry or rest != self.identity.partition(" ")[2] or int(since) < earliest * 1e6:
            return None
        return Waiter(self.name, identity, since)


class LimitCommands:
    """Makes the commands of a limit that allows `maximum` runs, and wakes waiters in delayed sets of other workers."""

    def __init__(self, store: Store, maximum: int) -> None:
        self.store = store
        self.maximum = maximum

    def __repr__(self) -> str:
        return f"<LimitCommands of {self.maximum}>"

    def acquire(self, waiter: Waiter, run: str, lease_ms: int) -> Command:
        """Return the command that asks for a permit."""
        return self._step(
            "permit_acquire", waiter.name, self.maximum, lease_ms, RESERVED_MS, self._channel, run, waiter.identity,
            waiter.since,
        )  # fmt: skip

    def release(self, name: str, runs: Sequence[str]) -> Command:
        """Return the command that releases the permits of runs."""
        return self._step("permit_release", name, self.maximum, RESERVED_MS, self._channel, *runs)

    def renew(self, name: str, runs: Sequence[str], lease_ms: int) -> Command:
        """Return the command that renews the permits of runs."""
        return self._step("permit_renew", name, self.maximum, lease_ms, RESERVED_MS, self._channel, *runs)

    def check(self, waiter: Waiter) -> Command:
        """Return the command that wakes a waiter which has just been delayed, if a permit is reserved for it by now."""
        return self._step("permit_check", waiter.name, self._channel, waiter.identity, waiter.since)

    def sweep(self, name: str) -> Command:
        """Return the command that reserves the permits that are over for waiters."""
        return self._step("permit_sweep", name, RESERVED_MS, self._channel)

    async def wake(self, foreign: Sequence[bytes]) -> None:
        """Wake the waiters that are delayed in tiers which this worker does not serve."""
        for identity in foreign:
            found = _IDENTITY.fullmatch(identity.decode(errors="replace"))
            if found is None:
                continue
            member, entry = found[3], identity.partition(b" ")[0].decode()
            try:
                await self.store.one(step("permit_wake")([found[2]], self._channel, qualified(member, entry), member))
            except BrokerError as error:
                if not self.store.refusals.note_failed(_WAKING, error, part=found[2], then="it asks by itself later"):
                    log.info("a waiter cannot be woken, it asks by itself later: %s", error, event="limit_refused")
            else:
                self.store.refusals.note_accepted(_WAKING, found[2])

    @property
    def _channel(self) -> str:
        return self.store.keys.wake

    def _step(self, script: str, name: str, *arguments: str | float) -> Command:
        keys = self.store.keys
        names = [keys.permits(name), keys.called(name), keys.line(name), keys.limits]
        return step(script)([*names, *(tier.delayed for tier in keys.tiers)], name, *arguments)
