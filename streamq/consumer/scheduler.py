"""The scheduler: sends the messages of schedules when their ticks are due. Every worker has one; none is special.

When a tick is due, each worker that knows the schedule tries to send it. One script (tick.lua) lets the first worker
do so: it sends the message and sets the next tick in one step. So a crash loses neither, and nothing is sent twice. The
server's clock counts; a worker that comes too early gets the time until the tick.

Cost: nothing while no schedule is known. Schedules are loaded when the worker starts, when the wake channel announces
a change, when its connection was lost, and, while there is a schedule to tick, every `LOAD_EVERY` seconds. That covers
leaps of clocks and a server that lost its data: schedules that tasks declare are then registered again. A worker that
remembers a past tick of a lost schedule asks the other workers first: one of them may have sent it, and know the next
one. A tick costs each worker one command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from streamq.consumer.consumer import Consumer
from streamq.consumer.shortage import is_shortage
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import BrokerError, ConfigurationError, MissingExtraError, SignatureError
from streamq.queue.schedule_problem import problem_of_ticks
from streamq.queue.schedules import (
    NO_TICK,
    ScheduleDefinition,
    StoredSchedule,
    first_tick_after,
    notify_workers,
    read_schedules,
    register,
    tick_command,
    tick_ms,
)
from streamq.queue.server_errors import concerns_server
from streamq.tasks.cron import ON_TIME, Steps, find_due_ticks
from streamq.wire.command_line import streamq_command
from streamq.wire.keys import is_stream_of

log = SafeLog("streamq")

LOAD_EVERY = 60.0  # seconds between two loads of the schedules
_MARGIN = 0.0005  # seconds: the server counts in whole milliseconds
_RETRY_REFUSED = 2.0  # seconds after which a message that the server refused is tried again
_TICK = "the tick of the schedule"  # which the server may refuse, and the next one
_DECLARATION = "storing the schedule"
_WAIT_FOR_OTHERS = 1.0  # seconds in which other workers may register the schedule: each gets the message at once
_BATCH = 100  # ticks of one schedule that one step sends
_LATE_AT_ONCE = 8  # schedules with missed ticks that one round trip ticks: to find the ticks takes time

T = TypeVar("T")


@dataclass(slots=True)
class _ActiveSchedule:
    """A schedule that this worker ticks: its next tick (Unix ms), and when that is on the worker's monotonic clock."""

    definition: ScheduleDefinition
    due: int
    at: float
    not_found_tick: int = -1  # the tick for which the script found no such schedule


class Scheduler:
    """The loop that ticks schedules. `declared` are the schedules that tasks of this worker declare."""

    def __init__(self, consumer: Consumer, declared: Sequence[ScheduleDefinition]) -> None:
        self._consumer = consumer
        self._store = consumer.store
        self._outage = consumer.outage
        self._elapsed = consumer.store.clock.elapsed
        self._declared = {one.name: one.signed(self._store.signer) for one in declared}
        self._unusable: set[tuple[str, str]] = set()  # name and revision
        self._noted: dict[str, bytes] = {}  # the stored definition that was logged as unusable last, by name
        self._refused: dict[str, str] = {}  # the signature that was refused last, by name
        self._active: dict[str, _ActiveSchedule] = {}
        self._lost: dict[
            str, tuple[_ActiveSchedule, float]
        ] = {}  # schedules that other workers are asked for, and until when
        self._offset = 0.0  # seconds that the server's Unix time is ahead of `elapsed`
        self._wake = anyio.Event()
        self._stale = True
        self._first = True
        self._unstored = False  # was the storage of a declared schedule refused?
        self._load_at = 0.0

    def __repr__(self) -> str:
        return f"<Scheduler of {self._consumer.name}: {sorted(self._active)}>"

    def changed(self) -> None:
        """Load the schedules again: they have changed, or may have."""
        self._stale = True
        self._wake.set()

    async def tick_forever(self) -> None:
        """Tick until cancelled."""
        while True:
            self._wake = anyio.Event()
            try:
                if self._stale or (self._has_schedules() and self._elapsed() >= self._load_at):
                    await self._load()
                await self._tick()
            except BrokerError as error:
                if error.code == "NOPERM" and not self._declared and not self._active:
                    log.info(
                        "%s has no right to read schedules, so it ticks none: %s",
                        self._consumer.name,
                        error,
                        event="schedule_skipped",
                    )
                    await self._wake.wait()
                    continue
                self._stale = True
                await self._consumer.recover("cron", error)
                continue
            self._outage.over("cron")
            if self._stale:
                continue
            pause = self._pause()
            with anyio.move_on_after(pause):
                await self._wake.wait()

    def _pause(self) -> float | None:
        """Return the seconds until a tick or a load is due, None if there is no schedule."""
        if not self._has_schedules():
            return None
        soonest = min((one.at for one in self._active.values()), default=self._load_at)
        return max(0.0, min(soonest, self._load_at) - self._elapsed())

    def _has_schedules(self) -> bool:
        return bool(self._active or self._lost or self._unstored)

    # --- loading ---------------------------------------------------------------------------------

    async def _load(self) -> None:
        self._stale = False
        now, rows = await read_schedules(self._store)
        if await self._register(now, {row.name: row for row in rows}):
            now, rows = await read_schedules(self._store)
        self._synchronize(now)
        load_every = _RETRY_REFUSED if self._unstored else LOAD_EVERY
        self._load_at = min([self._elapsed() + load_every, *(until for _, until in self._lost.values())])
        before, self._active = self._active, {}
        self._noted = {row.name: self._noted[row.name] for row in rows if row.name in self._noted}
        for row in rows:
            one = row.definition
            if one is None:
                self._note_unusable(row.name, row.packed, row.problem)
            if one is None or not self._is_ours(one):
                continue
            if row.due is None:
                if not one.declared:
                    why = problem_of_ticks(one.cron, one.tz, now / 1000) or f"{NO_TICK} in {self._store.keys.ticks}"
                    self._note_unusable(row.name, row.packed, why)
                continue
            active = self._active[row.name] = _ActiveSchedule(one, row.due, self._when(row.due))
            if (old := before.get(row.name)) is not None and old.definition == one:
                active.not_found_tick = old.not_found_tick
        for name in before.keys() - self._active.keys():
            self._outage.forget(_TICK, name)

    def _note_unusable(self, name: str, packed: bytes, why: str) -> None:
        """Log once for each definition that it cannot be used, and why."""
        if self._noted.get(name) != packed:
            self._noted[name] = packed
            log.warning(
                "this worker does not tick the schedule %r: %s; store it anew, or remove it with: %s",
                name, why, self._remove(name), event="schedule_skipped",
            )  # fmt: skip

    def _remove(self, name: str) -> str:
        return streamq_command(self._store.keys, "schedules", "rm", name)

    def _is_ours(self, one: ScheduleDefinition) -> bool:
        if (one.name, one.revision) in self._unusable:
            return False
        try:
            one.check_signature(self._store.signer)
        except SignatureError as error:  # it may be stored anew, with another signature: it is asked again
            if self._refused.get(one.name) != one.sig:
                self._refused[one.name] = one.sig
                log.warning("this worker does not tick the schedule %r: %s", one.name, error, event="schedule_skipped")
            return False
        return one.name in self._declared if one.declared else True

    async def _register(self, now: int, rows: dict[str, StoredSchedule]) -> bool:
        """Register declared schedules: at the start all that differ, later those that are gone. Was there any?"""
        done = unstored = False
        lost = {}
        for name, one in self._declared.items():
            row = rows.get(name)
            gone = row is None or row.due is None
            if not (gone or (self._first and row is not None and row.packed != one.packed())):
                continue
            # A server that lost its data lost the definition (perhaps of newer code) and the next tick: we know both.
            known, until = self._lost.get(name, (self._active.get(name), None))
            if known is not None and known.definition.declared:
                if known.due <= now and (until is None or self._elapsed() < until):
                    lost[name] = known, self._elapsed() + _WAIT_FOR_OTHERS if until is None else until
                    continue
                stored = await self._store_declared(known.definition, known.due)
            else:
                stored = await self._store_declared(one, first_tick_after(one, now / 1000))
                if stored is False:
                    log.warning(
                        "the schedule %r of @task(cron=...) is not used: a stored schedule has this name; "
                        "remove that one with: %s",
                        name, self._remove(name), event="schedule_skipped",
                    )  # fmt: skip
            unstored |= stored is None
            done |= stored is not None
        if lost.keys() - self._lost.keys():
            await self._ask_others()
        self._lost = lost
        self._first, self._unstored = unstored, unstored
        return done

    async def _store_declared(self, one: ScheduleDefinition, due: int) -> bool | None:
        """Store a schedule that a task declares. Returns False if its name is taken, None if the server refuses it."""
        try:
            at = await register(self._store, one, due)
        except BrokerError as error:
            if concerns_server(error):
                raise
            self._outage.note_refused(_DECLARATION, error, part=one.name)
            return None
        self._outage.note_accepted(_DECLARATION, one.name)
        return at is not None

    async def _ask_others(self) -> None:
        """Let other workers store what was lost. If this user may not publish, they find it with their next load."""
        try:
            await notify_workers(self._store)
        except BrokerError as error:
            if concerns_server(error):
                raise

    def _synchronize(self, now: int) -> None:
        self._offset = now / 1000 - self._elapsed()

    def _when(self, due: int) -> float:
        return due / 1000 - self._offset + _MARGIN

    # --- ticking -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Send ticks that are due, in one round trip. Raises BrokerError if the server cannot be used."""
        elapsed = self._elapsed()
        sent, commands = [], []
        for one in self._due(elapsed):
            try:
                commands.append(await self._command(one, elapsed + self._offset))
                sent.append(one)
            except (ConfigurationError, MissingExtraError, OSError) as error:
                if is_shortage(error):  # the first use of a time zone, or of the parser, opens files
                    one.at = elapsed + _RETRY_REFUSED
                    log.warning("the schedule %r is ticked late: %s", one.definition.name, error, event="schedule_late")
                    continue
                self._unusable.add((one.definition.name, one.definition.revision))
                del self._active[one.definition.name]
                log.warning(
                    "this worker does not tick the schedule %r: %s",
                    one.definition.name,
                    error,
                    event="schedule_skipped",
                )
        if not commands:
            return
        trouble: BrokerError | None = None
        for one, command, reply in zip(sent, commands, await self._store.attempt(commands), strict=True):
            if isinstance(reply, BrokerError):
                trouble = self._failed(one, await self._store.explain(reply, command)) or trouble
            else:
                self._ticked(one, reply)
        if trouble is not None:
            raise trouble

    def _due(self, elapsed: float) -> list[_ActiveSchedule]:
        """Return the schedules to tick now: all that are on time, and a few of those that have missed ticks."""
        due = [one for one in self._active.values() if one.at <= elapsed]
        late = [one for one in due if one.at < elapsed - ON_TIME]
        if len(late) <= _LATE_AT_ONCE:
            return due
        return [one for one in due if one.at >= elapsed - ON_TIME] + late[:_LATE_AT_ONCE]

    async def _command(self, one: _ActiveSchedule, now: float) -> Any:
        definition, first = one.definition, one.due / 1000
        if not is_stream_of(self._store.keys, definition.stream):  # who wrote it has not this worker's rights
            raise ConfigurationError(
                f"it sends to {repr_of(definition.stream)}, which is no stream of {self._store.keys.namespace!r}"
            )
        wanted, following = await _others_between(
            find_due_ticks(definition.cron, definition.tz, definition.missed, first, max(now, first))
        )
        if len(wanted) > _BATCH:
            wanted, following = wanted[:_BATCH], wanted[_BATCH]
        return tick_command(self._store, definition, one.due, wanted, tick_ms(following))

    def _failed(self, one: _ActiveSchedule, error: BrokerError) -> BrokerError | None:
        """Delay a schedule whose tick was refused; return the error if it is the state of the server."""
        if concerns_server(error):
            return error
        self._outage.note_refused(_TICK, error, part=one.definition.name)
        one.at = self._elapsed() + _RETRY_REFUSED
        return None

    def _ticked(self, one: _ActiveSchedule, reply: Any) -> None:
        _, due, now = map(int, reply)
        self._outage.note_accepted(_TICK, one.definition.name)
        self._synchronize(now)
        if due >= 0:
            one.due, one.at = due, self._when(due)
        elif one.not_found_tick != one.due:  # gone or changed, and not announced yet
            one.not_found_tick, self._stale = one.due, True
        else:  # and loaded since: the server cannot read its definition
            one.at = self._elapsed() + LOAD_EVERY
            self._note_unusable(
                one.definition.name, one.definition.revision.encode(),
                "the server cannot read its definition, or reads another one",
            )  # fmt: skip


async def _others_between(steps: Steps[T]) -> T:
    """Return what is found, and let others run between the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: T = done.value
            return found
        await anyio.lowlevel.checkpoint()
