"""From a task and its arguments to the command that sends it. No I/O."""

from __future__ import annotations

import secrets
from base64 import b32encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from streamq.admission import Guarded
from streamq.arguments import encode_extra
from streamq.client import Command
from streamq.errors import ConfigurationError
from streamq.keys import Keys
from streamq.message import Message, as_text, pack_flat
from streamq.store import Store
from streamq.tasks import NO_OPTIONS, OPTION_NAMES, Call, Options, Task, TaskRef
from streamq.tiers import Priority, Tier, pick_tier

ACCEPTED_KEPT = 3600.0  # seconds for which a task id given by its sender is remembered
DEDUP_TTL = 3600.0  # seconds of a deduplication key for which no `dedup_ttl` is given


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way."""

    call: Call[Any]
    tier: int
    task_id: str
    command: Command


class Sender:
    """Makes messages for one set of tiers. `limit` is in bytes."""

    def __init__(self, keys: Keys, tiers: Sequence[Tier], *, limit: int, now: Callable[[], float]) -> None:
        self._keys = keys
        self._tiers = tuple(tiers)
        self._limit = limit
        self._now = now

    def __repr__(self) -> str:
        return f"<Sender to {', '.join(tier.name for tier in self._tiers)}, at most {self._limit} bytes>"

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

    def prepare(self, store: Store, call: Call[Any]) -> Outgoing:
        """Return the message of a call, ready to go.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        task, options = call.task, call.task.sending
        extra = None
        priority = options.priority
        if isinstance(task, Task):
            task.arguments.check(call.args, call.kwargs)
            extra = encode_extra if task.arguments.converter is not None else None
            priority = task.priority if priority is None else priority
        tier = self._tier(options, priority)
        plain = options is NO_OPTIONS
        guarded = not plain and not (
            options.task_id is None and options.dedup_key is None and not options.delay and options.at is None
        )
        task_id = options.task_id or new_task_id()
        message = Message(
            task=task.name, args=call.args, kwargs=call.kwargs, task_id=task_id, priority=priority,
            retries=options.retries, timeout=options.timeout, result_ttl=options.result_ttl,
            expires=self._expiry(options.expires), headers=options.headers,
        )  # fmt: skip
        fields = message.fields(limit=self._limit, default=extra)
        if guarded:
            command = store.add_guarded(self._guarded(tier, task_id, options, as_text(fields)))
        else:
            command = store.add(tier, fields)
        return Outgoing(call, tier, task_id, command)

    def _guarded(self, tier: int, task_id: str, options: Options, fields: list[str]) -> Guarded:
        guards = []
        if options.task_id is not None:
            guards.append((self._keys.accepted(task_id), ACCEPTED_KEPT))
        if options.dedup_key is not None:
            ttl = DEDUP_TTL if options.dedup_ttl is None else options.dedup_ttl
            guards.append((self._keys.dedup(options.dedup_key), max(0.001, ttl)))
        delay = options.delay.total_seconds() if isinstance(options.delay, timedelta) else options.delay or 0.0
        due = None if options.at is None else _moment(options.at)
        if due is not None and due <= 0:
            raise ConfigurationError(f"at={options.at!r} is before 1970")
        return Guarded(tier, task_id, fields, pack_flat(fields), delay, due, guards)

    def _expiry(self, value: datetime | timedelta | float | None) -> float | None:
        """Return Unix seconds of a datetime, or of a time from now."""
        if value is None or isinstance(value, datetime):
            return None if value is None else value.timestamp()
        return self._now() + (value.total_seconds() if isinstance(value, timedelta) else value)

    def _tier(self, options: Options, priority: int | None) -> int:
        if options.tier is None:
            return pick_tier(self._tiers, Priority.NORMAL if priority is None else priority)
        for index, tier in enumerate(self._tiers):
            if tier.name == options.tier:
                return index
        raise ConfigurationError(
            f"tier={options.tier!r} is none of this broker's: {', '.join(tier.name for tier in self._tiers)}"
        )


def new_task_id() -> str:
    """Return 80 random bits as 16 letters and digits: an entry's id is unique in its stream only."""
    return b32encode(secrets.token_bytes(10)).decode().lower()


def _moment(value: datetime | float) -> float:
    """Return Unix seconds of a datetime or a number of them."""
    return value.timestamp() if isinstance(value, datetime) else float(value)
