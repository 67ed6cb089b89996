"""Schedules as they lie in Redis: what is defined, when it ticks next, and the steps that change that.

A definition is JSON and has the whole message but its id, so that whoever ticks need not know the task. Its
`revision` is a digest of the rest: a worker that has read another one does not tick. The next tick is
what the fleet agrees on: it is replaced, and the message sent, by whoever comes first, in one step.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from streamq.client import Command
from streamq.errors import ConfigurationError, UndecodableError
from streamq.queue.sending import DEDUP_BOUND, Repeated, Sender
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.cron import MISSED, ON_TIME, Cron, Missed, next_tick, require
from streamq.tasks.task import Call, Task
from streamq.wire.delivery import Delivery
from streamq.wire.message import dumps, milliseconds

SCHEDULED_FOR: Final = "scheduled_for"  # the header with the time of the tick
NEVER: Final = 253_402_300_799_000  # ms: the end of the year 9999
_LONGEST: Final = 1e10  # seconds after a tick that a message may expire at most
_NAME: Final = re.compile(r"[^\s|@\ud800-\udfff]{1,170}")
_NAME_RULE: Final = "1 to 170 characters, no white space, '|' or '@'"


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule, as it is listed. `next` and `last` are ticks (aware, UTC): the next, and the last that was sent.

    `declared` ones come from `@task(cron=...)`, the others were stored by `RedisBroker.schedule`. `overdue`: the
    next tick is over and nobody sent it; of a declared one no worker runs whose code has it. `task` is empty if
    its definition cannot be read.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What ticks, and what a tick sends. `expires` is in seconds after the tick."""

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

    @property
    def key(self) -> str:
        """The deduplication key that a run holds where runs must not overlap."""
        return key_of(self.name)

    def packed(self) -> bytes:
        """Return it as it lies in Redis."""
        content = {
            "cron": self.cron, "tz": self.tz, "missed": self.missed, "overlap": self.overlap,
            "declared": self.declared, "task": self.task, "stream": self.stream, "fields": self.fields,
            "headers": self.headers, "expires": self.expires,
        }  # fmt: skip
        digest = hashlib.blake2b(dumps(content), digest_size=8).hexdigest()
        return dumps({**content, "revision": digest})

    @classmethod
    def of(cls, name: str, packed: bytes) -> Definition | None:
        """Return what was packed; None if this is no definition."""
        try:
            found = orjson.loads(packed)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(found, dict):
            return None
        wanted = {"name": name, "tz": "UTC", "missed": "last", "overlap": True, "declared": False, **found}
        known = cls.__dataclass_fields__
        try:
            made = cls(**{word: value for word, value in wanted.items() if word in known})
            dumps(made.headers)  # nested too deep, it could be read and not be sent
            return made if made._sound() else None
        except TypeError:  # a field is missing, or of another type
            return None

    def _sound(self) -> bool:
        texts = (self.cron, self.tz, self.task, self.stream, self.revision, *self.fields)
        return (
            all(isinstance(text, str) for text in texts)
            and self.missed in MISSED
            and isinstance(self.headers, dict)
            and (self.expires is None or 0 <= self.expires < _LONGEST)
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A schedule as it was seen: its definition if that can be read, its packed form, its next tick in ms."""

    name: str
    packed: bytes
    definition: Definition | None
    due: int | None


# --- what is to be scheduled ---------------------------------------------------------------------


def key_of(name: str) -> str:
    """Return the deduplication key of a schedule whose runs must not overlap."""
    return f"schedule:{name}"


def define(
    sender: Sender, streams: Sequence[str], name: str, cron: Cron, call: Call[Any], *, declared: bool
) -> Definition:
    """Return the definition of a schedule. Raises ConfigurationError, and what `enqueue` raises for its call."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} cannot name a schedule: give {_NAME_RULE}")
    made: Repeated = sender.repeated(call, None if cron.overlap else key_of(name))
    return Definition(
        name=name, cron=cron.expression, tz=cron.tz, missed=cron.missed, overlap=cron.overlap, declared=declared,
        task=call.task.name, stream=streams[made.tier], fields=made.fields, headers=made.headers,
        expires=made.expires,
    )  # fmt: skip


def declared_by(sender: Sender, streams: Sequence[str], tasks: Iterable[Task[Any, Any]]) -> list[Definition]:
    """Return the schedules that tasks declare: named as the task, and if it has several `-2`, `-3`, ... are appended.

    Raises what `define` raises, MissingExtraError without the parser.
    """
    found = {}
    for task in tasks:
        for number, cron in enumerate(task.cron, 1):
            name = task.name if number == 1 else f"{task.name}-{number}"
            if name in found:
                raise ConfigurationError(f"two schedules are named {name!r}: rename one task with @task(name=...)")
            call = Call(task, tuple(cron.args), cron.kwargs)
            found[name] = define(sender, streams, name, cron, call, declared=True)
    if found:
        require()
    return list(found.values())


# --- the steps -----------------------------------------------------------------------------------


async def look(store: Store) -> tuple[int, list[Row]]:
    """Return the server's time (ms) and all schedules."""
    now, rows, _ = await _look(store)
    return now, rows


async def _look(store: Store, *more: Command) -> tuple[int, list[Row], list[Any]]:
    keys = store.keys
    time, flat, ticks, *others = await store.call(
        [("TIME",), ("HGETALL", keys.schedules), ("ZRANGE", keys.ticks, 0, -1, "WITHSCORES"), *more]
    )
    due = {name: int(max(0.0, min(float(score), NEVER))) for name, score in _pairs(ticks)}
    packed = dict(_pairs(flat))
    rows = [
        Row(name.decode(errors="replace"), raw, Definition.of(name.decode(errors="replace"), raw), due.get(name))
        for name, raw in packed.items()
    ]
    return int(time[0]) * 1000 + int(time[1]) // 1000, rows, others


async def register(store: Store, definition: Definition, due: int) -> int | None:
    """Define a schedule that ticks next at `due` (ms), unless it did before and ticks as then.

    Returns its next tick, None if there is one of this name that is declared where this is not, or the other way.
    """
    done, at = await store.one(step("register")(
        [store.keys.schedules, store.keys.ticks], definition.name, definition.packed(), due, store.keys.wake
    ))  # fmt: skip
    return int(at) if done else None


async def unregister(store: Store, name: str) -> bool:
    """Forget a schedule; returns whether there was one."""
    keys = [store.keys.schedules, store.keys.ticks, store.keys.ticked]
    return bool(await store.one(step("unregister")(keys, name, store.keys.wake)))


async def ask(store: Store) -> None:
    """Have all workers look, and register again what they remember and is gone."""
    await store.one(("PUBLISH", store.keys.wake, "schedules"))


def tick(store: Store, definition: Definition, expected: int, ticks: Sequence[float], following: int) -> Command:
    """Return the command that sends these ticks (Unix seconds) if `expected` (ms) is still the next one.

    It answers whether it did, the next tick then (-1: it is gone, or changed), and the server's time, in ms.
    """
    keys = [store.keys.schedules, store.keys.ticks, store.keys.ticked, definition.stream]
    if not definition.overlap:
        keys.append(store.keys.dedup(definition.key))
    each = []
    for at in ticks:
        when = shown(at)
        expires = "" if definition.expires is None else milliseconds(at + definition.expires)
        each += [f"{definition.name}@{when}", dumps({**definition.headers, SCHEDULED_FOR: when}), expires]
    last = milliseconds(ticks[-1]) if ticks else 0
    return step("tick")(
        keys, definition.name, definition.revision, expected, following, last, milliseconds(DEDUP_BOUND), *each
    )


async def store_schedule(store: Store, definition: Definition) -> None:
    """Define a schedule that no task declares. Raises ConfigurationError if one declares it."""
    seconds, micros = await store.one(("TIME",))
    due = first_after(definition, int(seconds) + int(micros) / 1e6)
    if await register(store, definition, due) is None:
        raise ConfigurationError(f"the schedule {definition.name!r} is declared by @task(cron=...): give another name")


def first_after(definition: Definition, now: float) -> int:
    """Return the first tick after a Unix time, in ms. Raises what `next_tick` raises."""
    return as_ms(next_tick(definition.cron, definition.tz, now))


def as_ms(tick: float | None) -> int:
    """Return a tick in ms, `NEVER` for none."""
    return NEVER if tick is None else milliseconds(tick)


def shown(tick: float) -> str:
    """Return the time of a tick as it stands in ids and headers."""
    return datetime.fromtimestamp(tick, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def listed(store: Store) -> list[Schedule]:
    """Return all schedules, by the time of their next ticks."""
    now, rows, (ticked,) = await _look(store, ("HGETALL", store.keys.ticked))
    last = dict(_pairs(ticked))
    found = [_listed(row, now, last.get(row.name.encode())) for row in rows]
    return sorted(found, key=lambda one: (one.next is None, one.next or 0, one.name))


def _listed(row: Row, now: int, last: bytes | None) -> Schedule:
    due = None if row.due is None or row.due >= NEVER else _moment(row.due)
    overdue = row.due is not None and row.due < now - ON_TIME * 1000
    sent = _moment(int(last)) if last is not None and last.isdigit() else None
    one = row.definition
    if one is None:
        return Schedule(row.name, "", "UTC", "", [], {}, "last", True, False, due, sent, overdue)
    delivery = Delivery(0, "", b"0-0", [part.encode() for part in one.fields])
    try:
        args, kwargs = delivery.args, delivery.kwargs
    except UndecodableError:
        args, kwargs = [], {}
    return Schedule(
        row.name, one.cron, one.tz, one.task, args, kwargs, one.missed, one.overlap, one.declared, due, sent, overdue
    )


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(min(max(ms, 0), NEVER) / 1000, UTC)


def _pairs(reply: Any) -> list[tuple[bytes, Any]]:
    """Return names and values, however the server's protocol pairs them."""
    if isinstance(reply, dict):
        return list(reply.items())
    if reply and isinstance(reply[0], list | tuple):
        return [(name, value) for name, value in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))
