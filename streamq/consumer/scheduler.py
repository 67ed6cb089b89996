"""Recurring tasks: sends what the schedules have due, when it is due. Every worker has this loop, and none is special.

At its time each worker that knows of a tick tries to send it, and one script lets the first do it (tick.lua):
the message and the next tick are one step, so that a crash loses neither, and nothing is sent twice. It
goes by the server's clock; who comes too early is told how long to wait.

Cost: nothing while no schedule is known. It looks when the worker starts, when the wake channel says that schedules
changed or its connection was lost, and, where it has something to tick, every `LOOK` seconds, which covers
leaps of clocks and a server that lost its data: what tasks declare is then registered again. Whoever remembers of
it a tick that is over asks the others first, one of which may have sent it and know the next. A tick
costs each such worker one command.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from streamq.consumer.consumer import Consumer
from streamq.errors import BrokerError, ConfigurationError, MissingExtraError
from streamq.queue.schedules import Definition, Row, as_ms, ask, first_after, look, register, tick
from streamq.tasks.cron import due_ticks

log = logging.getLogger("streamq")

LOOK = 60.0  # seconds
_MARGIN = 0.0005  # seconds: the server counts in whole milliseconds
_ASIDE = 2.0  # seconds after which a message that the server refused is tried again
_ITS_OWN = frozenset({"ERR", "WRONGTYPE"})  # errors that are of one schedule
_ASKED = 1.0  # seconds that the others have to answer: each that reaches the server is told at once
_BATCH = 100  # ticks of one schedule that one step sends


@dataclass(slots=True)
class _Clockwork:
    """A schedule that is ticked here: its next tick in ms, and when that is on the worker's own clock."""

    definition: Definition
    due: int
    at: float
    failed: int = -1  # the tick whose message the server refused
    refused: int = -1  # the tick for which it was found gone or changed, and was not


class Recurring:
    """The loop that ticks. `declared` is what the tasks of this worker declare."""

    def __init__(self, consumer: Consumer, declared: Sequence[Definition]) -> None:
        self._consumer = consumer
        self._store = consumer.store
        self._elapsed = consumer.store.clock.elapsed
        self._declared = {one.name: one for one in declared}
        self._unusable: set[tuple[str, str]] = set()  # name and revision
        self._running: dict[str, _Clockwork] = {}
        self._lost: dict[str, tuple[_Clockwork, float]] = {}  # what the others are asked for, and until when
        self._offset = 0.0  # what the server's time is ahead of `elapsed`
        self._wake = anyio.Event()
        self._stale = True
        self._first = True
        self._look_at = 0.0

    def __repr__(self) -> str:
        return f"<Recurring of {self._consumer.name}: {sorted(self._running)}>"

    def changed(self) -> None:
        """Schedules were changed, or may have been: look."""
        self._stale = True
        self._wake.set()

    async def tick_forever(self) -> None:
        """Tick until cancelled."""
        while True:
            self._wake = anyio.Event()
            try:
                if self._stale or (self._knows() and self._elapsed() >= self._look_at):
                    await self._look()
                await self._tick()
            except BrokerError as error:
                if error.code == "NOPERM" and not self._declared and not self._running:
                    log.info("%s may not look for schedules, and ticks none: %s", self._consumer.name, error)
                    await self._wake.wait()
                    continue
                self._stale = True
                await self._consumer.recover("cron", error)
                continue
            self._consumer.outage.over("cron")
            if self._stale:
                continue
            pause = self._pause()
            with anyio.move_on_after(pause):
                await self._wake.wait()

    def _pause(self) -> float | None:
        """Return for how long nothing is due; None where there is nothing to tick."""
        if not self._knows():
            return None
        soonest = min((one.at for one in self._running.values()), default=self._look_at)
        return max(0.0, min(soonest, self._look_at) - self._elapsed())

    def _knows(self) -> bool:
        return bool(self._running or self._lost)

    # --- what is known -------------------------------------------------------------------------

    async def _look(self) -> None:
        self._stale = False
        now, rows = await look(self._store)
        if await self._register(now, {row.name: row for row in rows}):
            now, rows = await look(self._store)
        self._synchronize(now)
        self._look_at = min([self._elapsed() + LOOK, *(until for _, until in self._lost.values())])
        before, self._running = self._running, {}
        for row in rows:
            one = row.definition
            if one is None or row.due is None or not self._is_ours(one):
                continue
            work = self._running[row.name] = _Clockwork(one, row.due, self._when(row.due))
            if (old := before.get(row.name)) is not None and old.definition == one:
                work.refused, work.failed = old.refused, old.failed

    def _is_ours(self, one: Definition) -> bool:
        if (one.name, one.revision) in self._unusable:
            return False
        return one.name in self._declared if one.declared else True

    async def _register(self, now: int, rows: dict[str, Row]) -> bool:
        """Define what is declared here: all that differs at the start, later what is gone. Was there anything?"""
        done = False
        lost = {}
        for name, one in self._declared.items():
            row = rows.get(name)
            gone = row is None or row.due is None
            if not (gone or (self._first and row is not None and row.packed != one.packed())):
                continue
            # A server that lost its data lost what was declared by newer code, and the next tick; we remember both.
            known, until = self._lost.get(name, (self._running.get(name), None))
            if known is not None and known.definition.declared:
                if known.due <= now and (until is None or self._elapsed() < until):
                    lost[name] = known, self._elapsed() + _ASKED if until is None else until
                    continue
                await register(self._store, known.definition, known.due)
            elif await register(self._store, one, first_after(one, now / 1000)) is None:
                log.warning(
                    "the schedule %r of @task(cron=...) is not used: one of this name was stored; "
                    "remove that with: streamq schedules rm %s", name, name,
                )  # fmt: skip
            done = True
        if lost.keys() - self._lost.keys():
            await ask(self._store)
        self._lost = lost
        self._first = False
        return done

    def _synchronize(self, now: int) -> None:
        self._offset = now / 1000 - self._elapsed()

    def _when(self, due: int) -> float:
        return due / 1000 - self._offset + _MARGIN

    # --- ticking -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Send all that is due, in one round trip. Raises BrokerError."""
        elapsed = self._elapsed()
        due = [one for one in self._running.values() if one.at <= elapsed]
        works, commands = [], []
        for one in due:
            try:
                commands.append(self._command(one, elapsed + self._offset))
                works.append(one)
            except (ConfigurationError, MissingExtraError) as error:
                self._unusable.add((one.definition.name, one.definition.revision))
                del self._running[one.definition.name]
                log.warning("the schedule %r is not ticked here: %s", one.definition.name, error)
        if not commands:
            return
        trouble: BrokerError | None = None
        for one, reply in zip(works, await self._store.attempt(commands), strict=True):
            if isinstance(reply, BrokerError):
                trouble = self._failed(one, reply) or trouble
            else:
                self._ticked(one, reply)
        if trouble is not None:
            raise trouble

    def _command(self, one: _Clockwork, now: float) -> Any:
        definition, first = one.definition, one.due / 1000
        wanted, following = due_ticks(definition.cron, definition.tz, definition.missed, first, max(now, first))
        if len(wanted) > _BATCH:
            wanted, following = wanted[:_BATCH], wanted[_BATCH]
        return tick(self._store, definition, one.due, wanted, as_ms(following))

    def _failed(self, one: _Clockwork, error: BrokerError) -> BrokerError | None:
        """Put a schedule aside that cannot be ticked; return an error that is not of this one alone."""
        if error.code not in _ITS_OWN:
            return error
        if one.failed != one.due:
            log.warning("the schedule %r waits, its message was refused: %s", one.definition.name, error)
        one.failed, one.at = one.due, self._elapsed() + _ASIDE
        return None

    def _ticked(self, one: _Clockwork, reply: Any) -> None:
        _, due, now = map(int, reply)
        self._synchronize(now)
        if due >= 0:
            one.due, one.at = due, self._when(due)
        elif one.refused != one.due:  # gone, or changed: nobody told us yet
            one.refused, self._stale = one.due, True
        else:  # and we have looked since: it is one that the server cannot read
            one.at = self._elapsed() + LOOK
