"""Schedules in Redis: the definitions, the next tick of each, and the steps that change them.

A definition is JSON. It holds the whole message except its id, so a worker can send the message without knowing the
task. Its `revision` is a digest of the rest: a worker that has read another revision cannot tick. The next tick is what
the fleet agrees on: the first worker replaces it and sends the message, in one atomic step.
The loop that ticks is `consumer/scheduler.py`, the arithmetic of ticks is `tasks/cron.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from streamq.client import Command
from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.errors import ConfigurationError, EncodingError, MessageError, SignatureError, UndecodableError
from streamq.queue.schedule_problem import problem_of, problem_of_ticks, read_definition
from streamq.queue.sending import DEDUP_BOUND, MessageBuilder
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.cron import ON_TIME, Cron, Missed, next_tick, require_parser
from streamq.tasks.task import Call, Task
from streamq.wire.argument_types import check_items, check_type
from streamq.wire.delivery import Delivery
from streamq.wire.message import Field, dumps, milliseconds
from streamq.wire.names import check_name, qualified
from streamq.wire.signing import Signer

SCHEDULED_FOR: Final = "scheduled_for"  # the header with the time of the tick
NEVER: Final = 253_402_300_799_000  # ms: the end of the year 9999
NO_TICK: Final = "it has no next tick"
_STEP: Final = 100  # definitions that are read at a stretch


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule, as `RedisBroker.schedules` lists it.

    `next` and `last` are aware datetimes in UTC: the next tick, and the last tick that was sent. `declared`: it comes
    from `@task(cron=...)`; the others were stored by `RedisBroker.schedule`. `overdue`: the next tick is in the past
    and was not sent; for a declared schedule this means that no running worker has it in its code. `problem` says why
    no worker can send its ticks: its definition cannot be used, or its signature is refused by the keys of this broker.
    It is empty if none is known. `task` is empty if the definition cannot be read.
    """

    name: str
    expression: str
    tz: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    missed: Missed
    overlap: bool
    declared: bool
    next: datetime | None
    last: datetime | None
    overdue: bool
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDefinition:
    """When a schedule ticks, and the message that each tick sends. `expires` is in seconds after the tick."""

    name: str
    cron: str
    tz: str
    missed: Missed
    overlap: bool
    declared: bool
    task: str
    stream: str
    fields: Sequence[str]
    headers: Mapping[str, Any] = field(default_factory=dict)
    expires: float | None = None
    revision: str = ""
    sig: str = ""

    @property
    def overlap_key(self) -> str:
        """The deduplication key that a run holds where runs must not overlap."""
        return overlap_key(self.name)

    @property
    def content(self) -> dict[str, Any]:
        """What the revision and the signature are of."""
        return {
            "cron": self.cron, "tz": self.tz, "missed": self.missed, "overlap": self.overlap,
            "declared": self.declared, "task": self.task, "stream": self.stream, "fields": self.fields,
            "headers": self.headers, "expires": self.expires,
        }  # fmt: skip

    def packed(self) -> bytes:
        """Return the definition as it is stored in Redis, with its revision."""
        content = self.content
        digest = hashlib.blake2b(dumps(content), digest_size=8).hexdigest()
        return dumps({**content, "revision": digest, **({"sig": self.sig} if self.sig else {})})

    def signed(self, signer: Signer | None) -> ScheduleDefinition:
        """Return the definition with its signature, where messages are signed."""
        return self if signer is None else replace(self, sig=signer.sign_schedule(self.name, dumps(self.content)))

    def check_signature(self, signer: Signer | None) -> None:
        """Raise SignatureError if messages are signed, and this definition is not signed with an accepted key."""
        if signer is not None:
            signer.check_schedule(self.name, dumps(self.content), self.sig)

    @classmethod
    def parse(cls, name: str, packed: bytes) -> ScheduleDefinition | None:
        """Return a stored definition. None if it is no valid definition."""
        found = cls.read(name, packed)
        return None if isinstance(found, str) else found

    @classmethod
    def read(cls, name: str, packed: bytes) -> ScheduleDefinition | str:
        """Return a stored definition, or why it cannot be used."""
        found = read_definition(packed)
        problem = found if isinstance(found, str) else problem_of(name, found)
        if problem is not None or isinstance(found, str):
            return str(problem)
        known = cls.__dataclass_fields__
        return cls(**{**{word: value for word, value in found.items() if word in known}, "name": name})


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """A schedule as it is in Redis: its packed form, its definition, its next tick (ms).

    If there is no definition, `problem` says why it cannot be used.
    """

    name: str
    packed: bytes
    definition: ScheduleDefinition | None
    due: int | None
    problem: str = ""


# --- definitions --------------------------------------------------------------------------------


def overlap_key(name: str) -> str:
    """Return the deduplication key of a schedule of this name whose runs must not overlap."""
    return qualified("schedule", name)


def definition_of(
    builder: MessageBuilder, name: str, cron: Cron, call: Call[Any], *, declared: bool
) -> ScheduleDefinition:
    """Return the definition of a schedule. Raises ConfigurationError, and what `enqueue` raises for its call."""
    check_name("schedule", name, what="name of a schedule")
    message = builder.scheduled_message(call, None if cron.overlap else overlap_key(name))
    definition = ScheduleDefinition(
        name=name, cron=cron.expression, tz=cron.tz, missed=cron.missed, overlap=cron.overlap, declared=declared,
        task=call.task.name, stream=message.stream, fields=message.fields, headers=message.headers,
        expires=message.expires,
    )  # fmt: skip
    try:
        definition.packed()
    except TypeError as error:  # all else is text by now
        raise EncodingError(call.task.name, "headers", str_of(error)) from error
    return definition


def stored_definition(
    builder: MessageBuilder, name: str, cron: Cron | str, call: Call[Any] | Task[Any, Any] | str
) -> ScheduleDefinition:
    """Return the definition for `RedisBroker.schedule`. The arguments are those of the `Cron` or of the call.

    Raises ConfigurationError if both have arguments, and what `definition_of` raises.
    """
    cron = Cron(cron) if isinstance(cron, str) else cron
    if not isinstance(cron, Cron):
        raise ConfigurationError(f"a schedule's cron is of type {type(cron).__name__}: give a Cron, or its expression")
    if not isinstance(call, Call):
        call = builder.make_call(call, cron.args, cron.kwargs)
    elif cron.args or cron.kwargs:
        raise ConfigurationError(f"{repr_of(cron)} and {repr_of(call)} both have arguments: give them to one")
    return definition_of(builder, name, cron, call, declared=False)


def declared_definitions(builder: MessageBuilder, tasks: Iterable[Task[Any, Any]]) -> list[ScheduleDefinition]:
    """Return the schedules that tasks declare. Each has the name of its task; `-2`, `-3`, ... follow for further ones.

    Raises ConfigurationError, MissingExtraError without the parser.
    """
    found = {}
    for task in check_items("tasks", tasks, "a list of tasks"):
        check_type("a task", task, Task, "functions that @task decorates")
        for number, cron in enumerate(task.cron, 1):
            name = task.name if number == 1 else f"{task.name}-{number}"
            if name in found:
                raise ConfigurationError(f"two schedules are named {name!r}: rename one task with @task(name=...)")
            call = Call(task, tuple(cron.args), cron.kwargs)
            try:
                found[name] = definition_of(builder, name, cron, call, declared=True)
            except MessageError as error:
                raise ConfigurationError(
                    f"the schedule {name!r}, which @task(cron=...) declares, cannot be sent: {error}; "
                    f"its arguments are those of {repr_of(cron)}"
                ) from error
    if found:
        require_parser()
    return list(found.values())


# --- reading and changing ------------------------------------------------------------------------


async def read_schedules(store: Store) -> tuple[int, list[StoredSchedule]]:
    """Return the server's time (ms) and all schedules."""
    now, stored, _ = await _read(store)
    return now, stored


async def _read(store: Store, *more: Command) -> tuple[int, list[StoredSchedule], list[Any]]:
    keys = store.keys
    time, flat, ticks, *others = await store.call(
        [("TIME",), ("HGETALL", keys.schedules), ("ZRANGE", keys.ticks, 0, -1, "WITHSCORES"), *more]
    )
    due = {name: int(max(0.0, min(float(score), NEVER))) for name, score in _pairs(ticks)}
    stored = []
    for number, (name, raw) in enumerate(dict(_pairs(flat)).items(), 1):
        text = name.decode(errors="replace")
        match ScheduleDefinition.read(text, raw):
            case str(problem):
                stored.append(StoredSchedule(text, raw, None, due.get(name), problem))
            case definition:
                stored.append(StoredSchedule(text, raw, definition, due.get(name)))
        if number % _STEP == 0:  # to read ten thousand takes a second: others run meanwhile
            await store.client.pause(0)
    return int(time[0]) * 1000 + int(time[1]) // 1000, stored, others


async def register(store: Store, definition: ScheduleDefinition, due: int) -> int | None:
    """Store a definition whose next tick is `due` (ms). If its expression and time zone did not change, the tick stays.

    Returns the next tick (ms). None: the name is taken, by a stored schedule where this one is declared, or the other
    way round.
    """
    done, at = await store.one(step("register")(
        [store.keys.schedules, store.keys.ticks], definition.name, definition.packed(), due, store.keys.wake
    ))  # fmt: skip
    return int(at) if done else None


async def unregister(store: Store, name: str) -> bool:
    """Remove a schedule. Returns whether there was one."""
    keys = [store.keys.schedules, store.keys.ticks, store.keys.ticked]
    return bool(await store.one(step("unregister")(keys, name, store.keys.wake)))


async def notify_workers(store: Store) -> None:
    """Make all workers read the schedules again, and register again those that they declare and that are missing."""
    await store.one(("PUBLISH", store.keys.wake, "schedules"))


def tick_command(
    store: Store, definition: ScheduleDefinition, expected: int, ticks: Sequence[float], following: int
) -> Command:
    """Return the command that sends these ticks (Unix seconds) if `expected` (ms) is still the next one.

    The reply says whether it did, then the next tick (ms; -1: the schedule is gone, or has changed), then the server's
    time (ms).
    """
    keys = [store.keys.schedules, store.keys.ticks, store.keys.ticked, definition.stream]
    if not definition.overlap:
        keys.append(store.keys.dedup(definition.overlap_key))
    each = []
    for at in ticks:
        when = format_tick(at)
        expires = "" if definition.expires is None else milliseconds(at + definition.expires)
        own: list[Field] = [
            f"{definition.name}@{when}",
            dumps({**definition.headers, SCHEDULED_FOR: when}),
            f"{expires}",
        ]
        each += [*own, _signature(store, definition, own)]
    last = milliseconds(ticks[-1]) if ticks else 0
    return step("tick")(
        keys, definition.name, definition.revision, expected, following, last, milliseconds(DEDUP_BOUND), *each
    )


def _signature(store: Store, definition: ScheduleDefinition, own: Sequence[Field]) -> Field:
    """Return the signature of the message of a tick, whose `own` fields tick.lua adds; empty where none is signed."""
    if store.signer is None:
        return ""
    added = [part for name, value in zip(("id", "headers", "expires"), own, strict=True) if value
             for part in (name, value)]  # fmt: skip
    return store.signer.sign(definition.stream, [*definition.fields, *added])[-1]


async def store_schedule(store: Store, definition: ScheduleDefinition) -> None:
    """Store a schedule that no task declares. Raises ConfigurationError if `@task(cron=...)` declares the name."""
    seconds, micros = await store.one(("TIME",))
    due = first_tick_after(definition, int(seconds) + int(micros) / 1e6)
    if await register(store, definition.signed(store.signer), due) is None:
        raise ConfigurationError(
            f"the schedule {repr_of(definition.name)} is declared by @task(cron=...): give another name"
        )


def first_tick_after(definition: ScheduleDefinition, now: float) -> int:
    """Return the first tick after a Unix time, in ms. Raises what `next_tick` raises."""
    return tick_ms(next_tick(definition.cron, definition.tz, now))


def tick_ms(tick: float | None) -> int:
    """Return a tick in ms. `NEVER` for None."""
    return NEVER if tick is None else milliseconds(tick)


def format_tick(tick: float) -> str:
    """Return the time of a tick as it stands in task ids and headers."""
    return datetime.fromtimestamp(tick, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def list_schedules(store: Store) -> list[Schedule]:
    """Return all schedules, by the time of their next ticks."""
    now, stored, (ticked,) = await _read(store, ("HGETALL", store.keys.ticked))
    last = dict(_pairs(ticked))
    found = [_described(one, now, last.get(one.name.encode()), store.signer) for one in stored]
    return sorted(found, key=lambda one: (one.next is None, one.next or 0, one.name))


def _described(stored: StoredSchedule, now: int, last: bytes | None, signer: Signer | None) -> Schedule:
    due = None if stored.due is None or stored.due >= NEVER else _moment(stored.due)
    overdue = stored.due is not None and stored.due < now - ON_TIME * 1000
    sent = _moment(int(last)) if last is not None and last.isdigit() and len(last) < 20 else None
    one = stored.definition
    if one is None:
        return Schedule(
            stored.name, "", "UTC", "", [], {}, "last", True, False, due, sent, overdue, stored.problem
        )  # fmt: skip
    delivery = Delivery(0, "", b"0-0", [part.encode() for part in one.fields])
    try:
        args, kwargs = delivery.args, delivery.kwargs
    except UndecodableError:
        args, kwargs = [], {}
    return Schedule(
        stored.name, one.cron, one.tz, one.task, args, kwargs, one.missed, one.overlap, one.declared, due, sent,
        overdue, _problem(one, signer, now / 1000, stored.due) if overdue or due is None else "",
    )  # fmt: skip


def _problem(one: ScheduleDefinition, signer: Signer | None, now: float, due: int | None) -> str:
    """Return why no worker sends the ticks of this definition, whose next tick is `due` (ms); empty if not known."""
    try:
        if not one.declared:  # workers sign anew what their code declares
            one.check_signature(signer)
    except SignatureError as error:
        return str(error)
    return problem_of_ticks(one.cron, one.tz, now) or ("" if due is not None or one.declared else NO_TICK)


def _moment(ms: int) -> datetime:
    """Return an aware datetime, within what `datetime` can hold."""
    return datetime.fromtimestamp(min(max(ms, 0), NEVER) / 1000, UTC)


def _pairs(reply: Any) -> list[tuple[bytes, Any]]:
    """Return names and values. RESP2 and RESP3 pair them in different ways."""
    if isinstance(reply, dict):
        return list(reply.items())
    if reply and isinstance(reply[0], list | tuple):
        return [(name, value) for name, value in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))
