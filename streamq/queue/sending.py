"""From a task and its arguments to the command that sends it. No I/O.

`MessageBuilder` checks the arguments, picks the tier, and builds the message. It knows no connection and no middleware:
`middleware/producer.py` sends the messages that are built here.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from os import urandom
from typing import Any, Final, NamedTuple

from streamq.client import Command
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.queue.enqueue_requests import GuardedEnqueue, NewestWinsEnqueue
from streamq.queue.store import Store
from streamq.tasks.options import NO_OPTIONS, OPTION_NAMES, Options
from streamq.tasks.task import Call, Task, TaskRef
from streamq.wire import bounds
from streamq.wire.keys import Keys
from streamq.wire.message import Default, Message, as_text, bounded, pack_flat, plain_fields
from streamq.wire.names import qualified
from streamq.wire.tiers import Priority, Tier, pick_tier
from streamq.wire.workflow_steps import NextStep

ACCEPTED_KEPT = 3600.0  # seconds for which a `task_id` of the caller's own is remembered
RESULT_KEPT = 3600.0  # seconds for which the failure of a workflow step is kept that is known by its name only
DEDUP_TTL = 3600.0  # seconds that a deduplication key is held without a `dedup_ttl`
DEDUP_BOUND = 24 * 3600.0  # seconds that a key is held at most until its task has started or is done
KEEP_LAST_MAX_DELAY = 60.0  # seconds for which newer enqueues may move a waiting task to the end of its stream
_NOT_SCHEDULED = ("delay", "at", "task_id", "dedup_key", "durable")
_ALPHABET = bytes(range(256)).lower().translate(bytes.maketrans(b"+/", b"89"))


class PreparedMessage(NamedTuple):  # a tuple, as Accepted: one is made for each task that is sent
    """A message that is ready to be sent: the command, and what its handle needs."""

    call: Call[Any]
    tier: int
    task_id: str
    command: Command


@dataclass(frozen=True, slots=True)
class ScheduledMessage:
    """What a schedule sends at each tick.

    `fields` are the flat fields without id, headers and expiry, which each tick adds. `expires` is in seconds after
    the tick.
    """

    stream: str
    fields: list[str]
    headers: dict[str, Any]
    expires: float | None


_SENT: Final = (Task, TaskRef)


class MessageBuilder:
    """Builds the messages for one set of tiers. A message has at most `max_payload` bytes."""

    def __init__(self, keys: Keys, tiers: Sequence[Tier], *, max_payload: int, now: Callable[[], float]) -> None:
        self._keys = keys
        self._tiers = tuple(tiers)
        self._normal = pick_tier(self._tiers, Priority.NORMAL)
        self.max_payload = max_payload
        self._now = now

    def __repr__(self) -> str:
        return f"<MessageBuilder for {', '.join(tier.name for tier in self._tiers)}, at most {self.max_payload} bytes>"

    def make_call(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call[Any]:
        """Return the call of a task, or of a name, with these arguments. A call has its arguments already.

        Keyword arguments that are names of options become options, unless the task has a parameter of that name.
        Raises ConfigurationError for an object that is no task.
        """
        if task.__class__ is Task and not kwargs:  # most calls
            return Call(task, tuple(args), kwargs)
        if isinstance(task, str):
            task = TaskRef(task)
        if isinstance(task, Call):
            return self._with_options(task, args, kwargs)
        if not isinstance(task, _SENT):
            raise ConfigurationError(f"{repr_of(task)} is no task: decorate it with @task, or give the name of one")
        if kwargs and not OPTION_NAMES.isdisjoint(kwargs):
            own = task.arguments.names if isinstance(task, Task) else frozenset()
            options = {name: value for name, value in kwargs.items() if name in OPTION_NAMES and name not in own}
            if options:
                kwargs = {name: value for name, value in kwargs.items() if name not in options}
                task = task.options(**options)  # type: ignore[union-attr]
        return Call(task, tuple(args), kwargs)

    def _with_options(self, call: Call[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call[Any]:
        """Return a call that has its arguments already, sent with these options."""
        if args or not OPTION_NAMES.issuperset(kwargs):
            given = [*map(repr_of, args), *(name for name in kwargs if name not in OPTION_NAMES)]
            raise ConfigurationError(
                f"{call.task.name}.call(...) has its arguments already, so {', '.join(given)} cannot be used: "
                "give them to call, or give the task itself"
            )
        return call.options(**kwargs) if kwargs else call

    def prepare(self, store: Store, call: Call[Any], new_id: str = "") -> PreparedMessage:
        """Return the message of a call, ready to be sent. `new_id` is its id if the call names none.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        task, options = call.task, call.task.send_options
        call, tier, priority, extra = self._check_call(call)
        if options is NO_OPTIONS and priority is None:
            task_id = new_id or new_task_id()
            plain = plain_fields(task.name, task_id, call.args, call.kwargs, extra)
            command = store.enqueue_commands.plain(tier, plain)
            if len(command) > self.max_payload:  # or nearly
                bounded(plain, task.name, self.max_payload)
            return PreparedMessage(call, tier, task_id, command)
        guarded = not (
            options.task_id is None and options.dedup_key is None and not options.delay and options.at is None
        )
        task_id = options.task_id or new_id or new_task_id()
        newest = options.dedup_mode in ("debounce", "keep_last")
        message = Message(
            task=task.name, args=call.args, kwargs=call.kwargs, task_id="" if newest else task_id, priority=priority,
            retries=options.retries, timeout=options.timeout, result_ttl=options.result_ttl,
            expires=self._expires_at(options.expires), headers=options.headers,
            dedup=_dedup_key(options), dedup_until=_dedup_until(options), dedup_ttl=_noted_dedup_ttl(options),
        )  # fmt: skip
        fields = message.fields(limit=self.max_payload, default=extra)
        if newest:
            enqueue: Command = store.enqueue_commands.newest_wins(
                self._newest_wins(tier, task_id, options, as_text(fields))
            )
        elif guarded:
            enqueue = store.enqueue_commands.guarded(self._guarded(tier, task_id, options, as_text(fields)))
        else:
            enqueue = store.enqueue_commands.plain(tier, fields)
        return PreparedMessage(call, tier, task_id, enqueue)

    def prepare_all(self, store: Store, calls: Sequence[Call[Any]]) -> list[PreparedMessage]:
        """Return the messages of calls. Raises what `prepare` raises."""
        return [self.prepare(store, call, new_id) for call, new_id in zip(calls, _new_ids(len(calls)), strict=True)]

    def workflow_step(self, call: Call[Any], task_id: str, *, takes_result: bool) -> tuple[Call[Any], int, NextStep]:
        """Return a workflow step as it is sent, its tier and its message.

        `takes_result`: its first argument is the result of the step before.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        task, options = call.task, call.task.send_options
        if options.dedup_key is not None:
            raise ConfigurationError(
                f"dedup_key={repr_of(options.dedup_key)} of a step of a workflow: "
                "start(flow, workflow_id=...) starts it once"
            )
        call, tier, priority, extra = self._check_call(call, takes_result=takes_result)
        keep = options.result_ttl
        if keep is None:
            keep = task.result_ttl if isinstance(task, Task) else RESULT_KEPT
        expires = options.expires
        absolute = expires if isinstance(expires, datetime) else None
        message = Message(
            task=task.name, args=call.args, kwargs=call.kwargs, task_id=task_id, priority=priority,
            retries=options.retries, timeout=options.timeout, result_ttl=options.result_ttl,
            expires=self._expires_at(absolute), headers=options.headers,
        )  # fmt: skip
        delay, due = _delay_and_due(options)
        return call, tier, NextStep(
            self._keys.tiers[tier].stream, tuple(as_text(message.fields(limit=self.max_payload, default=extra))),
            takes_result, delay or None, due, None if expires is None or absolute is not None else _seconds(expires),
            keep or None,
        )  # fmt: skip

    def scheduled_message(self, call: Call[Any], dedup_key: str | None) -> ScheduledMessage:
        """Return what a schedule sends at each tick. The task holds `dedup_key` until it is done.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        task, options = call.task, call.task.send_options
        for name in _NOT_SCHEDULED:
            if (value := getattr(options, name)) is not None:
                raise ConfigurationError(f"{name}={repr_of(value)} cannot be used in a schedule: leave it out")
        if isinstance(options.expires, datetime):
            raise ConfigurationError(f"expires={repr_of(options.expires)} in a schedule: give seconds after each tick")
        call, tier, priority, extra = self._check_call(call)
        message = Message(
            task=task.name, args=call.args, kwargs=call.kwargs, priority=priority, retries=options.retries,
            timeout=options.timeout, result_ttl=options.result_ttl, dedup=dedup_key, dedup_until=dedup_key and "done",
        )  # fmt: skip
        fields = as_text(message.fields(limit=self.max_payload, default=extra))
        expires = options.expires.total_seconds() if isinstance(options.expires, timedelta) else options.expires
        return ScheduledMessage(self._keys.tiers[tier].stream, fields, dict(options.headers or {}), expires)

    def _check_call(
        self, call: Call[Any], *, takes_result: bool = False
    ) -> tuple[Call[Any], int, int | None, Default | None]:
        """Check the arguments of a call. Return it as it is sent, tier, priority, and what encodes other types."""
        task, options = call.task, call.task.send_options
        if not isinstance(task, Task):
            return call, self._pick_tier(options.tier, options.priority), options.priority, None
        # The result of the step before is not known yet: it counts as an argument, and only the others are checked.
        args, kwargs = task.arguments.sendable(call.args, call.kwargs, first=int(takes_result))
        if args is not call.args:
            call = Call(task, tuple(args), kwargs)
        tier, priority = task.placed
        return call, self._pick_tier(tier, priority), priority, task.arguments.default

    def _guarded(self, tier: int, task_id: str, options: Options, fields: list[str]) -> GuardedEnqueue:
        delay, due = _delay_and_due(options)
        guards = []
        if options.task_id is not None:
            guards.append((self._keys.accepted(task_id), ACCEPTED_KEPT))
        if options.dedup_key is not None:
            ttl = _dedup_ttl(options)
            if _dedup_until(options) is not None:  # counts from the due time; a window in seconds counts from now
                ttl += delay if due is None else max(0.0, due - self._now())
            guards.append((self._keys.dedup(_dedup_key(options) or ""), max(0.001, ttl)))
        own = options.task_id is not None
        return GuardedEnqueue(tier, task_id, fields, pack_flat(fields), delay, due, guards, own_id=own)

    def _newest_wins(self, tier: int, task_id: str, options: Options, fields: list[str]) -> NewestWinsEnqueue:
        delay, due = _delay_and_due(options)
        mode, bound = options.dedup_mode or "", options.dedup_max_delay
        if bound is None and mode == "keep_last":
            bound = KEEP_LAST_MAX_DELAY
        return NewestWinsEnqueue(
            mode, tier, task_id, _dedup_key(options) or "", fields, pack_flat(fields), _dedup_ttl(options), bound,
            delay, due, 0.0 if options.task_id is None else ACCEPTED_KEPT,
        )  # fmt: skip

    def _expires_at(self, value: datetime | timedelta | float | None) -> float | None:
        """Return the Unix seconds of a datetime, or of a number of seconds from now."""
        if value is None or isinstance(value, datetime):
            return None if value is None else _unix_seconds(value)
        return self._now() + (value.total_seconds() if isinstance(value, timedelta) else value)

    def _pick_tier(self, name: str | None, priority: int | None) -> int:
        if name is None:
            return self._normal if priority is None else pick_tier(self._tiers, priority)
        return self.tier_of(name)

    def tier_of(self, name: str) -> int:
        """Return the index of the tier of this name. Raises ConfigurationError for an unknown name."""
        for index, tier in enumerate(self._tiers):
            if tier.name == name:
                return index
        raise ConfigurationError(
            f"tier={repr_of(name)} is none of this broker's: {', '.join(tier.name for tier in self._tiers)}; "
            "give it the tiers of its queue (--tiers, RedisBroker(tiers=...))"
        )


def new_task_id() -> str:
    """Return 16 random letters and digits. (The id of an entry is unique in its stream only.)

    Base 64 in lower case, so each letter has twice the probability of a digit. Two ids are the same with a probability
    of 2^-82.
    """
    return b2a_base64(urandom(12), newline=False).translate(_ALPHABET).decode()


def _new_ids(count: int) -> list[str]:
    text = b2a_base64(urandom(12 * count), newline=False).translate(_ALPHABET).decode()
    return [text[at : at + 16] for at in range(0, 16 * count, 16)]


def _delay_and_due(options: Options) -> tuple[float, float | None]:
    """Return the delay (s), and the due time (Unix s) if `at` was given."""
    delay = options.delay.total_seconds() if isinstance(options.delay, timedelta) else options.delay or 0.0
    due = None if options.at is None else _unix_seconds(options.at)
    if due is not None and due < 0:
        raise ConfigurationError(f"at={repr_of(options.at)} is before 1970")
    if due == 0:
        due = 0.001  # 1970 itself is long over; 0 says `by delay` (enqueue.lua)
    return delay, due


def _seconds(value: Any) -> float:
    return float(value.total_seconds() if isinstance(value, timedelta) else value)


def _dedup_key(options: Options) -> str | None:
    """Return the deduplication key as it stands in the message. The schedules have keys of their own."""
    return None if options.dedup_key is None else qualified("", options.dedup_key)


def _noted_dedup_ttl(options: Options) -> float | None:
    """Return for how many seconds a replay holds the key. None: the default. 0: only a delayed task holds it."""
    if options.dedup_key is None:
        return None
    if options.dedup_mode == "debounce":
        return 0.0
    ttl = _dedup_ttl(options)
    return None if ttl == default_dedup_ttl(_dedup_until(options)) else ttl


def default_dedup_ttl(until: str | None) -> float:
    """Return for how many seconds a deduplication key is held at most that is freed by time, or by an event."""
    return DEDUP_TTL if until is None else DEDUP_BOUND


def _dedup_until(options: Options) -> str | None:
    """Return the event that frees the deduplication key, as it stands in the message. None: only time frees it."""
    for word in (options.dedup_window, options.dedup_ttl):
        if isinstance(word, str):
            return word.removeprefix("until_")
    return "done" if options.dedup_mode == "keep_last" else None


def _dedup_ttl(options: Options) -> float:
    """Return for how many seconds the deduplication key is held at most."""
    for seconds in (options.dedup_ttl, options.dedup_window):
        if isinstance(seconds, int | float):
            return float(seconds)
    return default_dedup_ttl(_dedup_until(options))


def _unix_seconds(value: datetime | float) -> float:
    """Return the Unix seconds of a datetime, or the number itself. Raises ConfigurationError before 1970.

    A datetime in the last hours of the calendar may be beyond it in UTC: it becomes its last second.
    """
    if not isinstance(value, datetime):
        return float(value)
    return float(bounds.AT.check(min(value.timestamp(), bounds.LAST_MOMENT), str(value)))
