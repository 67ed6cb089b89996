"""The permits of concurrency limits, in Redis: taken, renewed, given back, and handed on to who waits.

Theory. A limit of a name has a bound and three sorted sets: `permits` (who runs, each with the end of its lease),
`line` (who waits, in the order in which they asked) and `called` (those first in line for whom a freed permit is kept
for `GRANT` seconds). Each step drops what is over and calls as many of the line as there are permits. Being called is:
the waiter's due time in its delayed set becomes now, and the schedulers hear of it. So nobody polls, and whoever gives
a permit back wakes exactly who is to have it.

- A waiter is put into its delayed set by its worker, after the script has told it to wait. If it is called in between,
  nothing is there to be woken. Its permit is kept all the same, and its worker looks again, within milliseconds and
  until it is delayed: who was called by then is woken.
- One that was withdrawn or has expired is not found among the delayed: it is passed over. In the first 5 s it might be
  on its way, so a permit is kept for it, for half a second.
- One that comes later than that (its tier had a backlog) takes a permit that is kept for one who is not here yet
  either: those that were called and are here come before those that are not.
- A worker that dies stops renewing; the next step of anyone drops its permits and calls others. If nobody takes a step,
  the residents do: `limits` says which names want a look and when, and each worker asks every `SWEEP` seconds.
- A waiter of whom all this loses sight comes by itself after 5 minutes, and a tenth of a second for each before it.
- A run whose permit could not be renewed in time goes on; it takes the permit again, beyond the bound
  if that was given to another, and is counted as lost. Nobody else starts until there is room for it.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio

from streamq.client import Command
from streamq.errors import BrokerError
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.retry_policy import Uniform
from streamq.wire.delivery import Delivery

log = logging.getLogger("streamq")

GRANT: Final = 2.0  # seconds that a permit is kept for one that was called
SWEEP: Final = 1.0  # seconds between two looks at what nobody looks after
_FAR: Final = 300.0  # seconds after which a waiter asks by itself
_APART: Final = 0.1  # seconds, for each of those before it
_LOOK: Final = 0.002  # seconds until the first look after one that was told to wait; then twice that, and so on
_LOOK_LONGEST: Final = 8.0
_LAST_WORD: Final = 2.0  # seconds that an ended run waits for the server to take its permit back
_NAMES: Final = 100  # that one sweep looks after
_PLACE: Final = re.compile(r"\S+ (\d+) (\S+:delayed) (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the line of one name: which run, and since when (microseconds; "" if it has none yet)."""

    name: str
    run: str
    since: str = ""

    @classmethod
    def of(cls, store: Store, name: str, delivery: Delivery) -> Place:
        """Return the place of a delivery that asks for the first time."""
        expires = 0 if delivery.expires is None else round(delivery.expires * 1000)
        delayed = store.keys.tiers[delivery.tier].delayed
        return cls(name, f"{delivery.entry_id.decode()} {expires} {delayed} {store.member(delivery.task_id)}")

    @classmethod
    def told(cls, name: str, run: object, since: object) -> Place | None:
        """Return the place that a message tells of, None if that makes no sense."""
        if not (isinstance(run, str) and _PLACE.fullmatch(run) and isinstance(since, str)):
            return None
        return cls(name, run, since) if re.fullmatch(r"[0-9]{1,16}", since) else None


class Permits:
    """What the runs of one worker have of one limit."""

    def __init__(self, store: Store, bound: int, lease: float, *, uniform: Uniform = random) -> None:
        self.lost = 0
        self._store = store
        self._bound = bound
        self._lease = lease
        self._random = uniform
        self._held: dict[str, set[str]] = {}
        self._owed: dict[str, set[str]] = {}  # ended, and the server may not know
        self._sent_off: dict[Place, tuple[float, float]] = {}  # told to wait -> (when to look, the pause before that)
        self._to_keep = anyio.Event()
        self._to_look = anyio.Event()

    def __repr__(self) -> str:
        return f"<Permits {self.running} of {self._bound}, lost={self.lost}>"

    @property
    def running(self) -> int:
        """How many runs of this worker have one."""
        return sum(map(len, self._held.values()))

    # --- a run -----------------------------------------------------------------------------------

    async def take(self, place: Place, run: str) -> tuple[Place, float] | None:
        """Take a permit for a run, or return its place in the line and when (s) it is to ask by itself.

        Raises BrokerError if the server cannot be used.
        """
        try:
            granted, since, rank, *foreign = await self._store.one(self._step(
                "permit_take", place.name, self._bound, _ms(self._lease), _ms(GRANT), self._channel, run, place.run,
                place.since,
            ))  # fmt: skip
            await self._wake(foreign)
        except BaseException:  # whether it was granted is not known, or nobody is left to run
            self._owe(place.name, run)
            raise
        if granted:
            self._held.setdefault(place.name, set()).add(run)
            return None
        mine = Place(place.name, place.run, since.decode())
        self._sent_off[mine] = (self._store.clock.elapsed() + _LOOK, _LOOK)
        self._to_look.set()
        return mine, (_FAR + rank * _APART) * self._random.uniform(1.0, 1.2)

    async def give(self, name: str, run: str) -> None:
        """Give a permit back. Cancelled or not, this is said; a server that cannot be used hears of it later."""
        self._forget(name, run)
        with anyio.move_on_after(_LAST_WORD, shield=True):
            try:
                await self._give(name, [run])
            except BrokerError as error:
                log.info("the permit of %s for %s is given back later: %s", run, name, error)
            else:
                return
        self._owe(name, run)

    async def _give(self, name: str, runs: Sequence[str]) -> None:
        _, *foreign = await self._store.one(
            self._step("permit_give", name, self._bound, _ms(GRANT), self._channel, *runs)
        )
        await self._wake(foreign)

    def _owe(self, name: str, run: str) -> None:
        self._owed.setdefault(name, set()).add(run)
        self._to_keep.set()

    def _forget(self, name: str, run: str) -> None:
        runs = self._held.get(name, set())
        runs.discard(run)
        if not runs:
            self._held.pop(name, None)

    # --- beside the runs -------------------------------------------------------------------------

    async def keep_forever(self) -> None:
        """Renew what is held, give back what is owed, and look after what nobody looks after, until cancelled."""
        elapsed = self._store.clock.elapsed
        renewed = elapsed()
        while True:
            self._to_keep = anyio.Event()
            pause = min(SWEEP, self._lease / 3)
            try:
                if elapsed() >= renewed + self._lease / 3:
                    renewed = elapsed()
                    await self._renew()
                await self._pay()
                pause = min(pause, await self._sweep())
            except BrokerError as error:
                log.info("permits cannot be looked after: %s", error)
            with anyio.move_on_after(pause * self._random.uniform(0.8, 1.0) + 0.01):
                await self._to_keep.wait()
                await anyio.sleep(0.05)  # what is owed may be so because the server cannot be used

    async def _renew(self) -> None:
        """Lengthen the leases of all that is held."""
        held = {name: sorted(runs) for name, runs in self._held.items()}
        if not held:
            return
        replies = await self._store.call([
            self._step("permit_renew", name, self._bound, _ms(self._lease), _ms(GRANT), self._channel, *runs)
            for name, runs in held.items()
        ])  # fmt: skip
        for (name, runs), (lost, *foreign) in zip(held.items(), replies, strict=True):
            for run in set(runs) - self._held.get(name, set()):
                self._owe(name, run)  # it ended meanwhile, and may have been renewed after that
            if lost:
                self.lost += lost
                log.warning("%d runs of %s had lost their permits: not renewed for %g s", lost, name, self._lease)
            await self._wake(foreign)

    async def _pay(self) -> None:
        while self._owed:
            name, runs = next(iter(self._owed.items()))
            some = sorted(runs)
            await self._give(name, some)
            runs.difference_update(some)
            if not runs:
                del self._owed[name]

    async def _sweep(self) -> float:
        """Look after the names whose time has come; returns the seconds until the next look makes sense."""
        limits = self._store.keys.limits
        (seconds, micros), flat = await self._store.call(
            [("TIME",), ("ZRANGE", limits, 0, _NAMES - 1, "WITHSCORES")]
        )  # fmt: skip
        now = int(seconds) * 1000 + int(micros) // 1000
        for name, at in _pairs(flat):
            if at > now:
                return (at - now) / 1000
            _, *foreign = await self._store.one(
                self._step("permit_sweep", name.decode(errors="replace"), _ms(GRANT), self._channel)
            )
            await self._wake(foreign)
        return SWEEP

    async def look_forever(self) -> None:
        """Look again at those who were told to wait, until they are delayed where who calls them finds them."""
        while True:
            self._to_look = anyio.Event()
            now = self._store.clock.elapsed()
            due = [place for place, (at, _) in self._sent_off.items() if at <= now]
            try:
                for name in {place.name for place in due}:
                    await self._look(name, [place for place in due if place.name == name])
            except BrokerError as error:
                log.info("waiters cannot be looked after: %s", error)
            for place in due:
                self._again(place)
            first = min((at for at, _ in self._sent_off.values()), default=None)
            if first is None:
                await self._to_look.wait()
            else:
                await anyio.sleep(max(0.0, first - self._store.clock.elapsed()))

    async def _look(self, name: str, places: Sequence[Place]) -> None:
        for at in range(0, len(places), 500):
            flat = [part for place in places[at : at + 500] for part in (place.run, place.since)]
            _, *settled = await self._store.one(
                self._step("permit_look", name, self._bound, _ms(GRANT), self._channel, *flat)
            )
            done = set(settled)
            for place in places[at : at + 500]:
                if place.run.encode() in done:
                    del self._sent_off[place]

    def _again(self, place: Place) -> None:
        """Look at one later, or not any more."""
        if place in self._sent_off:
            pause = 2 * self._sent_off[place][1]
            if pause > _LOOK_LONGEST:
                del self._sent_off[place]
            else:
                self._sent_off[place] = (self._store.clock.elapsed() + pause, pause)

    # --- commands ----------------------------------------------------------------------------------

    @property
    def _channel(self) -> str:
        return self._store.keys.wake

    def _step(self, script: str, name: str, *arguments: str | float) -> Command:
        keys = self._store.keys
        names = [keys.permits(name), keys.called(name), keys.line(name), keys.limits]
        return step(script)([*names, *(tier.delayed for tier in keys.tiers)], name, *arguments)

    async def _wake(self, foreign: Sequence[bytes]) -> None:
        """Have waiters come that are delayed in tiers which this worker does not serve."""
        for place in foreign:
            found = _PLACE.fullmatch(place.decode(errors="replace"))
            if found is None:
                continue
            member, entry = found[3], place.partition(b" ")[0].decode()
            try:
                await self._store.one(step("permit_wake")([found[2]], self._channel, f"{member}:{entry}", member))
            except BrokerError as error:
                log.info("a waiter cannot be woken, it comes by itself: %s", error)


def _pairs(flat: Sequence[Any]) -> list[tuple[bytes, float]]:
    """Return members and scores, as RESP2 and RESP3 give them."""
    if flat and isinstance(flat[0], list | tuple):
        return [(member, float(score)) for member, score in flat]
    return [(member, float(score)) for member, score in zip(flat[::2], flat[1::2], strict=True)]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
