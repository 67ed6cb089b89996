"""From a task and its arguments to the command that sends it. No I/O."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from os import urandom
from typing import Any, NamedTuple

from streamq.client import Command
from streamq.errors import ConfigurationError
from streamq.queue.acceptance import Guarded, Newest
from streamq.queue.store import Store
from streamq.tasks.arguments import encode_extra
from streamq.tasks.task import NO_OPTIONS, OPTION_NAMES, Call, Options, Task, TaskRef
from streamq.wire.keys import Keys
from streamq.wire.message import Default, Message, as_text, bounded, pack_flat, plain_fields
from streamq.wire.next_step import Next
from streamq.wire.tiers import Priority, Tier, pick_tier

ACCEPTED_KEPT = 3600.0  # seconds for which a task id given by its sender is remembered
RESULT_KEPT = 3600.0  # seconds for which a failure is told of a step that is known by its name only
DEDUP_TTL = 3600.0  # seconds of a deduplication key for which no `dedup_ttl` is given
DEDUP_BOUND = 24 * 3600.0  # seconds after which one that is held until the task has started or ended frees itself
_NOT_REPEATED = ("delay", "at", "task_id", "dedup_key", "durable")
_ALPHABET = bytes(range(256)).lower().translate(bytes.maketrans(b"+/", b"89"))
PUT_OFF = 60.0  # seconds for which newer ones may send a waiting task to the end of its stream


class Outgoing(NamedTuple):  # as Accepted
    """A message on its way."""

    call: Call[Any]
    tier: int
    task_id: str
    command: Command


@dataclass(frozen=True, slots=True)
class Repeated:
    """What a schedule sends: the flat fields but for id, headers and expiry. `expires` is in seconds after a tick."""

    tier: int
    fields: list[str]
    headers: dict[str, Any]
    expires: float | None


class Sender:
    """Makes messages for one set of tiers. `limit` is in bytes."""

    def __init__(self, keys: Keys, tiers: Sequence[Tier], *, limit: int, now: Callable[[], float]) -> None:
        self._keys = keys
        self._tiers = tuple(tiers)
        self.limit = limit
        self._now = now

    def __repr__(self) -> str:
        return f"<Sender to {', '.join(tier.name for tier in self._tiers)}, at most {self.limit} bytes>"

    def called(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call[Any]:
        """Return what is to be called; keyword arguments that are options become options.

        Raises ConfigurationError for what is no task.
        """
        if isinstance(task, str):
            task = TaskRef(task)
        if not isinstance(task, Task | TaskRef):
            raise ConfigurationError(f"{task!r} is no task: decorate it with @task, or give the name of one")
        if kwargs and not OPTION_NAMES.isdisjoint(kwargs):
            own = task.arguments.names if isinstance(task, Task) else frozenset()
            options = {name: value for name, value in kwargs.items() if name in OPTION_NAMES and name not in own}
            if options:
                kwargs = {name: value for name, value in kwargs.items() if name not in options}
                task = task.options(**options)  # type: ignore[union-attr]
        return Call(task, tuple(args), kwargs)

    def prepare(self, store: Store, call: Call[Any], new_id: str = "") -> Outgoing:
        """Return the message of a call, ready to go. `new_id` is its id if it has none of its own.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        task, options = call.task, call.task.sending
        tier, priority, extra = self._checked(call)
        if options is NO_OPTIONS and priority is None:
            task_id = new_id or new_task_id()
            plain = plain_fields(task.name, task_id, call.args, call.kwargs, extra)
            command = store.add(tier, plain)
            if len(command) > self.limit:  # or nearly
                bounded(plain, task.name, self.limit)
            return Outgoing(call, tier, task_id, command)
        guarded = not (
            options.task_id is None and options.dedup_key is None and not options.delay and options.at is None
        )
        task_id = options.task_id or new_id or new_task_id()
        newest = options.dedup_mode in ("debounce", "keep_last")
        message = Message(
            task=task.name, args=call.args, kwargs=call.kwargs, task_id="" if newest else task_id, priority=priority,
            retries=options.retries, timeout=options.timeout, result_ttl=options.result_ttl,
            expires=self._expiry(options.expires), headers=options.headers,
            dedup=options.dedup_key, dedup_until=_until(options),
        )  # fmt: skip
        fields = message.fields(limit=self.limit, default=extra)
        if newest:
            wanted: Command = store.add_newest(self._newest(tier, task_id, options, as_text(fields)))
        elif guarded:
            wanted = store.add_guarded(self._guarded(tier, task_id, options, as_text(fields)))
        else:
            wanted = store.add(tier, fields)
        return Outgoing(call, tier, task_id, wanted)

    def prepare_all(self, store: Store, calls: Sequence[Call[Any]]) -> list[Outgoing]:
        """Return the messages of calls. Raises as `prepare`."""
        return [self.prepare(store, call, new_id) for call, new_id in zip(calls, _new_ids(len(calls)), strict=True)]

    def step(self, call: Call[Any], task_id: str, *, fed: bool) -> tuple[int, Next]:
        """Return the tier and the message of a step of a workflow. `fed`: it is given a result as its first argument.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        task, options = call.task, call.task.sending
        if options.dedup_key is not None:
            raise ConfigurationError(
                f"dedup_key={options.dedup_key!r} of a step of a workflow: start(flow, workflow_id=...) starts it once"
            )
        tier, priority, extra = self._checked(call, fed=fed)
        keep = options.result_ttl
        if keep is None:
            keep = task.result_ttl if isinstance(task, Task) else RESULT_KEPT
        expires = options.expires
        absolute = expires if isinstance(expires, datetime) else None
        message = Message(
            task=task.name, args=call.args, kwargs=call.kwargs, task_id=task_id, priority=priority,
            retries=options.retries, timeout=options.timeout, result_ttl=options.result_ttl,
            expires=self._expiry(absolute), headers=options.headers,
        )  # fmt: skip
        delay, due = _when(options)
        return tier, Next(
            self._keys.tiers[tier].stream, tuple(as_text(message.fields(limit=self.limit, default=extra))), fed,
            delay or None, due, None if expires is None or absolute is not None else _seconds(expires), keep or None,
        )  # fmt: skip

    def repeated(self, call: Call[Any], key: str | None) -> Repeated:
        """Return what a schedule sends at each tick; `key` is held until it is done.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        task, options = call.task, call.task.sending
        for name in _NOT_REPEATED:
            if (value := getattr(options, name)) is not None:
                raise ConfigurationError(f"{name}={value!r} cannot be used in a schedule: leave it out")
        if isinstance(options.expires, datetime):
            raise ConfigurationError(f"expires={options.expires!r} in a schedule: give seconds after each tick")
        tier, priority, extra = self._checked(call)
        message = Message(
            task=task.name, args=call.args, kwargs=call.kwargs, priority=priority, retries=options.retries,
            timeout=options.timeout, result_ttl=options.result_ttl, dedup=key, dedup_until=key and "done",
        )  # fmt: skip
        fields = as_text(message.fields(limit=self.limit, default=extra))
        expires = options.expires.total_seconds() if isinstance(options.expires, timedelta) else options.expires
        return Repeated(tier, fields, dict(options.headers or {}), expires)

    def _checked(self, call: Call[Any], *, fed: bool = False) -> tuple[int, int | None, Default | None]:
        """Check a call's arguments; return its tier, its priority and what encodes what JSON lacks."""
        task, options = call.task, call.task.sending
        priority = options.priority
        if not isinstance(task, Task):
            return self._tier(options, priority), priority, None
        if fed:  # what it will be given is not known yet
            task.arguments.bind((None, *call.args), call.kwargs)
        else:
            task.arguments.check(call.args, call.kwargs)
        priority = task.priority if priority is None else priority
        return self._tier(options, priority), priority, encode_extra if task.arguments.converter is not None else None

    def _guarded(self, tier: int, task_id: str, options: Options, fields: list[str]) -> Guarded:
        delay, due = _when(options)
        guards = []
        if options.task_id is not None:
            guards.append((self._keys.accepted(task_id), ACCEPTED_KEPT))
        if options.dedup_key is not None:
            ttl = _held(options)
            if _until(options) is not None:  # from when it is due; a number of seconds counts from now
                ttl += delay if due is None else max(0.0, due - self._now())
            guards.append((self._keys.dedup(options.dedup_key), max(0.001, ttl)))
        return Guarded(tier, task_id, fields, pack_flat(fields), delay, due, guards)

    def _newest(self, tier: int, task_id: str, options: Options, fields: list[str]) -> Newest:
        delay, due = _when(options)
        mode, bound = options.dedup_mode or "", options.dedup_max_delay
        if bound is None and mode == "keep_last":
            bound = PUT_OFF
        return Newest(
            mode, tier, task_id, options.dedup_key or "", fields, pack_flat(fields), _held(options), bound, delay, due,
            0.0 if options.task_id is None else ACCEPTED_KEPT,
        )  # fmt: skip

    def _expiry(self, value: datetime | timedelta | float | None) -> float | None:
        """Return Unix seconds of a datetime, or of a time from now."""
        if value is None or isinstance(value, datetime):
            return None if value is None else value.timestamp()
        return self._now() + (value.total_seconds() if isinstance(value, timedelta) else value)

    def _tier(self, options: Options, priority: int | None) -> int:
        if options.tier is None:
            return pick_tier(self._tiers, Priority.NORMAL if priority is None else priority)
        return self.tier_of(options.tier)

    def tier_of(self, name: str) -> int:
        """Return which tier has this name. Raises ConfigurationError if none has."""
        for index, tier in enumerate(self._tiers):
            if tier.name == name:
                return index
        raise ConfigurationError(
            f"tier={name!r} is none of this broker's: {', '.join(tier.name for tier in self._tiers)}"
        )


def new_task_id() -> str:
    """Return 16 random letters and digits: an entry's id is unique in its stream only.

    Two are the same with a probability of 2^-82: base 64 in lower case, in which a letter stands twice.
    """
    return b2a_base64(urandom(12), newline=False).translate(_ALPHABET).decode()


def _new_ids(count: int) -> list[str]:
    text = b2a_base64(urandom(12 * count), newline=False).translate(_ALPHABET).decode()
    return [text[at : at + 16] for at in range(0, 16 * count, 16)]


def _when(options: Options) -> tuple[float, float | None]:
    """Return the delay in seconds, and the Unix time it is due if that was given instead."""
    delay = options.delay.total_seconds() if isinstance(options.delay, timedelta) else options.delay or 0.0
    due = None if options.at is None else _moment(options.at)
    if due is not None and due <= 0:
        raise ConfigurationError(f"at={options.at!r} is before 1970")
    return delay, due


def _seconds(value: Any) -> float:
    return float(value.total_seconds() if isinstance(value, timedelta) else value)


def _until(options: Options) -> str | None:
    """Return what frees the deduplication key, as the message says it; None: its time."""
    for word in (options.dedup_window, options.dedup_ttl):
        if isinstance(word, str):
            return word.removeprefix("until_")
    return "done" if options.dedup_mode == "keep_last" else None


def _held(options: Options) -> float:
    """Return for how many seconds the deduplication key is held, at most."""
    for seconds in (options.dedup_ttl, options.dedup_window):
        if isinstance(seconds, int | float):
            return float(seconds)
    return DEDUP_TTL if _until(options) is None else DEDUP_BOUND


def _moment(value: datetime | float) -> float:
    """Return Unix seconds of a datetime or a number of them."""
    return value.timestamp() if isinstance(value, datetime) else float(value)
