"""The permits of concurrency limits in Redis: acquired, renewed, released, and passed on to waiters.

Theory. A limit of a name has a maximum and three sorted sets. `permits` has the runs, each with the end of its lease.
`line` is the waiting list, in the order in which the waiters asked. `called` has the first waiters, each with a permit
that is reserved for 2 seconds. Each step drops the entries that are over, and reserves the free permits for the first
waiters. A waiter with a reserved permit becomes due now in its delayed set, and the schedulers are woken. So nobody
polls, and a run that releases its permit wakes exactly the waiter that gets it.

- A worker puts a waiter into its delayed set after the script has told it to wait. If a permit is reserved in between,
  there is nothing to wake. The permit is reserved all the same. The step that delays the waiter is followed by a check,
  in the same round trip, so no end of the worker comes between. The check wakes the waiter if a permit is reserved for
  it, and puts it back into `line` if it was passed over.
- A waiter that was cancelled or has expired is not in its delayed set: it is passed over. In its first 5 s it might be
  on its way there, so a permit is reserved for it, for half a second.
- A waiter that comes after its reservation (its tier had a backlog) takes a permit that is reserved for another one
  that has not come yet either: waiters that are here come before those that are not.
- A worker that dies stops renewing. The next step of any worker drops its permits and reserves them for waiters. If no
  worker takes a step, the sweep does: `limits` says which names are due for a sweep and when, and each worker asks
  every `SWEEP_INTERVAL` seconds.
- A waiter that is lost in all of this asks by itself after 5 minutes, and a tenth of a second more for each one before.
- A run whose permit could not be renewed in time goes on. It takes the permit again, beyond the maximum if another run
  got it meanwhile, and is counted as lost. No other run starts until there is room.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import anyio

from streamq.client import Command
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.middleware.concurrency_commands import LimitCommands, Waiter
from streamq.queue.server_errors import is_final
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Uniform

log = SafeLog("streamq")

SWEEP_INTERVAL: Final = 1.0  # seconds between two looks for limits that no worker takes a step for
_ASK_AFTER: Final = 300.0  # seconds after which a waiter asks by itself
_ASK_APART: Final = 0.1  # seconds more for each waiter before it
_RELEASE_WITHIN: Final = 2.0  # seconds that an ended run waits for the server to take its permit back
_LAST_RELEASE_WITHIN: Final = 0.5  # seconds that the last releases of a worker may take
_RENEWING: Final = "renewing permits"
_RELEASING: Final = "releasing permits"
_SWEEPING: Final = "looking for concurrency limits to sweep"
_SWEEPING_NAME: Final = "sweeping the permits"
_UNTIL_ITS_LEASE_ENDS: Final = "a permit is free when its lease ends"
_LATE: Final = "a waiter may ask late, and everything else goes on"
_FOREIGN_AGAIN_MS: Final = 60_000  # until a name is swept again whose keys hold somebody else's values
_SWEPT_AT_ONCE: Final = 100  # names that one sweep looks at


class Permits:
    """The permits of one limit that the runs of one worker have.

    `maximum` is the limit, `lease` the seconds for which a permit is valid without renewal.
    """

    def __init__(self, store: Store, maximum: int, lease: float, *, uniform: Uniform = random) -> None:
        self._store = store
        self._commands = LimitCommands(store, maximum)
        self.lost = 0
        self._lease = lease
        self._random = uniform
        self._held: dict[str, set[str]] = {}  # runs by name
        self._to_release: dict[str, set[str]] = {}  # runs that have ended, and the server may not know it
        self._release_added = anyio.Event()

    def __repr__(self) -> str:
        return f"<Permits {self.running} of {self._commands.maximum}, lost={self.lost}>"

    @property
    def running(self) -> int:
        """How many runs of this worker have a permit."""
        return sum(map(len, self._held.values()))

    # --- a run -----------------------------------------------------------------------------------

    async def acquire(self, waiter: Waiter, run: str) -> tuple[Waiter, float] | None:
        """Acquire a permit for a run and return None.

        If there is no permit, return the waiter as the server knows it, and the seconds until it asks by itself.
        Raises BrokerError if the server cannot be used.
        """
        try:
            granted, since, rank, *foreign = await self._store.one(
                self._commands.acquire(waiter, run, _ms(self._lease))
            )
            await self._commands.wake(foreign)
        except BrokerError as error:
            if not is_final(error):  # the server may have granted it
                self._release_later(waiter.name, run)
            raise
        except BaseException:  # the run is cancelled, and maybe its worker: there is no later
            await self.release(waiter.name, run)
            raise
        if granted:
            self._held.setdefault(waiter.name, set()).add(run)
            return None
        after = (_ASK_AFTER + rank * _ASK_APART) * self._random.uniform(1.0, 1.2)
        return Waiter(waiter.name, waiter.identity, since.decode()), after

    def check(self, waiter: Waiter) -> Command:
        """Return the command that is to follow the step which delays a waiter."""
        return self._commands.check(waiter)

    async def release(self, name: str, run: str) -> None:
        """Release a permit, even if the run is cancelled. If the server cannot be used, it is released later."""
        self._forget(name, run)
        with anyio.move_on_after(_RELEASE_WITHIN, shield=True):
            try:
                await self._release(name, [run])
            except BrokerError as error:
                if not self._store.refusals.note_failed(_RELEASING, error, part=name, then=_UNTIL_ITS_LEASE_ENDS):
                    log.info("the permit of %s for %s is released later: %s", run, name, error, event="limit_refused")
                if _is_foreign(error):
                    return
            else:
                return
        self._release_later(name, run)

    async def _release(self, name: str, runs: Sequence[str]) -> None:
        _, *foreign = await self._store.one(self._commands.release(name, runs))
        self._store.refusals.note_accepted(_RELEASING, name)
        await self._commands.wake(foreign)

    def _release_later(self, name: str, run: str) -> None:
        self._to_release.setdefault(name, set()).add(run)
        self._release_added.set()

    def _forget(self, name: str, run: str) -> None:
        runs = self._held.get(name, set())
        runs.discard(run)
        if not runs:
            self._held.pop(name, None)

    # --- beside the runs -------------------------------------------------------------------------

    async def release_last(self) -> None:
        """Make the deferred releases now or never, within half a second: the worker ends."""
        if self._to_release:
            with suppress(BrokerError), anyio.move_on_after(_LAST_RELEASE_WITHIN, shield=True):
                await self._release_deferred()

    async def maintain_forever(self) -> None:
        """Renew the held permits, make the deferred releases, and sweep the limits that are due, until cancelled."""
        elapsed = self._store.clock.elapsed
        renewed = elapsed()
        while True:
            self._release_added = anyio.Event()
            pause = min(SWEEP_INTERVAL, self._lease / 3)
            try:
                if elapsed() >= renewed + self._lease / 3:
                    renewed = elapsed()
                    await self._renew()
                await self._release_deferred()
                pause = min(pause, await self._sweep())
            except BrokerError as error:
                if not self._store.refusals.note_failed(_SWEEPING, error, then=_LATE):  # only a sweep raises others
                    log.info("permits cannot be renewed, released or swept: %s", error, event="limit_refused")
            with anyio.move_on_after(pause * self._random.uniform(0.8, 1.0) + 0.01):
                await self._release_added.wait()
                await anyio.sleep(0.05)  # a release may be deferred because the server cannot be used

    async def _renew(self) -> None:
        """Renew the leases of all held permits."""
        held = {name: sorted(runs) for name, runs in self._held.items()}
        if not held:
            return
        commands = [self._commands.renew(name, runs, _ms(self._lease)) for name, runs in held.items()]
        replies = await self._store.attempt(commands)
        for (name, runs), command, reply in zip(held.items(), commands, replies, strict=True):
            if isinstance(reply, BrokerError):
                if _is_foreign(reply):
                    continue
                error = await self._store.explain(reply, command)
                if not self._store.refusals.note_failed(_RENEWING, error, part=name, then=_UNTIL_ITS_LEASE_ENDS):
                    raise error
                continue
            self._store.refusals.note_accepted(_RENEWING, name)
            lost, *foreign = reply
            for run in set(runs) - self._held.get(name, set()):
                self._release_later(name, run)  # it ended meanwhile, and may have been renewed after that
            if lost:
                self.lost += lost
                log.warning(
                    "%s of %s had lost permits, and took them again, beyond the limit if others have got them since: "
                    "not renewed for %g s, or deleted (FLUSHALL, DEL, a server that restarts empty)",
                    "1 run" if lost == 1 else f"{lost} runs",
                    name,
                    self._lease,
                    event="permits_lost",
                )
            await self._commands.wake(foreign)

    async def _release_deferred(self) -> None:
        for name, runs in list(self._to_release.items()):
            some = sorted(runs)
            try:
                await self._release(name, some)
            except BrokerError as error:
                refused = self._store.refusals.note_failed(_RELEASING, error, part=name, then=_UNTIL_ITS_LEASE_ENDS)
                if not refused:
                    raise
                if not _is_foreign(error):
                    continue  # it is tried again
            runs.difference_update(some)
            if not runs:
                del self._to_release[name]

    async def _sweep(self) -> float:
        """Sweep the names whose time has come. Return the seconds until the next sweep makes sense."""
        limits = self._store.keys.limits
        (seconds, micros), flat = await self._store.call(
            [("TIME",), ("ZRANGE", limits, 0, _SWEPT_AT_ONCE - 1, "WITHSCORES")]
        )  # fmt: skip
        now = int(seconds) * 1000 + int(micros) // 1000
        self._store.refusals.note_accepted(_SWEEPING)
        for name, due in _pairs(flat):
            if due > now:
                return (due - now) / 1000
            await self._sweep_name(name, now)
        return SWEEP_INTERVAL

    async def _sweep_name(self, name: bytes, now: int) -> None:
        """Sweep one name. What is no name of ours is removed; one whose keys are somebody else's comes later."""
        limits = self._store.keys.limits
        try:
            text = name.decode()
        except UnicodeDecodeError:
            await self._store.one(("ZREM", limits, name))
            return
        try:
            _, *foreign = await self._store.one(self._commands.sweep(text))
        except BrokerError as error:
            if not self._store.refusals.note_failed(_SWEEPING_NAME, error, part=text, then=_LATE):
                raise
            if not _is_foreign(error):
                return
            await self._store.one(("ZADD", limits, "XX", now + _FOREIGN_AGAIN_MS, name))
            return
        self._store.refusals.note_accepted(_SWEEPING_NAME, text)
        await self._commands.wake(foreign)


def _is_foreign(error: BaseException) -> bool:
    """Whether one of the keys holds somebody else's value: then there is no permit to keep."""
    return isinstance(error, BrokerError) and error.code == "WRONGTYPE"


def _pairs(flat: Sequence[Any]) -> list[tuple[bytes, float]]:
    """Return members and scores, as RESP2 and RESP3 give them."""
    if flat and isinstance(flat[0], list | tuple):
        return [(member, float(score)) for member, score in flat]
    return [(member, float(score)) for member, score in zip(flat[::2], flat[1::2], strict=True)]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
