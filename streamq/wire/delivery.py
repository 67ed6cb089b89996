"""A delivery: one entry in the hands of one consumer, decoded as it is asked for; and what it leaves when it dies.

Owns decoding; the encoding and the small parts of the format are `message`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from streamq.errors import UndecodableError
from streamq.wire.message import LARGEST, MOST_FIELDS, TRACEBACK_TAIL, Field, entry_ms, iso, load, shown, text, utf8
from streamq.wire.next_step import Stage, decode


class Delivery:
    """One entry of a stream in the hands of one consumer, decoded as it is asked for.

    Not a frozen dataclass: one is made per message on the hot path. `crashes` are the workers
    that died while they held this entry; `convicted` says that the last of them ran nothing
    else, `orphaned` that it died only now. Properties raise UndecodableError where the entry is not a message.
    """

    __slots__ = (
        "_fields", "alone", "convicted", "crashes", "entry_id", "flat", "orphaned", "plain", "redelivered",
        "state", "tier", "tier_name",
    )  # fmt: skip

    def __init__(
        self, tier: int, tier_name: str, entry_id: bytes, flat: list[bytes], *,
        redelivered: bool = False, crashes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.tier = tier
        self.tier_name = tier_name
        self.entry_id = entry_id
        self.flat = flat
        self.redelivered = redelivered
        self.crashes = crashes
        self.alone = False
        self.convicted = False
        self.orphaned = False
        self.plain = False  # known to have no field but its task, arguments, id and priority
        self.state: Any = None  # what the worker's lifespan yielded
        self._fields: dict[bytes, bytes] | None = None

    def __repr__(self) -> str:
        entry = self.entry_id.decode(errors="backslashreplace")
        name = self.fields.get(b"task", b"?").decode(errors="backslashreplace")
        return f"<Delivery {name} tier={self.tier_name} entry={entry}{' redelivered' * self.redelivered}>"

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The entry as it lies in the stream."""
        fields = self._fields
        if fields is None:
            flat = iter(self.flat)
            fields = self._fields = dict(zip(flat, flat, strict=False))
        return fields

    @property
    def task(self) -> str:
        """The name of the task."""
        name = self.fields.get(b"task")
        if not name:
            raise UndecodableError("the entry has no field 'task'")
        return text(name, "task")

    @property
    def task_id(self) -> str:
        """The task's id: the field `id`, or else the id of the first entry that carried it."""
        given = self.fields.get(b"id")
        return text(given, "id") if given else self.entry_id.decode()

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the keyword arguments."""
        fields = self.fields
        args, kwargs = fields.get(b"args"), fields.get(b"kwargs")
        return load(args, "args", list) if args else [], load(kwargs, "kwargs", dict) if kwargs else {}

    @property
    def args(self) -> list[Any]:
        """The positional arguments."""
        return self.arguments()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        return self.arguments()[1]

    @property
    def headers(self) -> dict[str, Any]:
        """What producers and middleware attached."""
        raw = self.fields.get(b"headers")
        return load(raw, "headers", dict) if raw else {}

    @property
    def attempt(self) -> int:
        """Which run of the retry budget this is, from 1."""
        return self._integer(b"attempt") or 1

    @property
    def starts(self) -> int:
        """How often it was started, this run, crashes and postponed runs included."""
        earlier = self._integer(b"starts")
        return min((self.attempt if earlier is None else earlier + 1) + len(self.crashes), LARGEST)

    @property
    def priority(self) -> int | None:
        """The numeric priority it was sent with, None for the default."""
        return self._integer(b"priority")

    @property
    def retries(self) -> int | None:
        """Retries that its sender asked for, None for those of the task."""
        return self._integer(b"retries")

    @property
    def timeout(self) -> float | None:
        """The timeout (s) that its sender asked for, None for that of the task."""
        return self._number(b"timeout")

    @property
    def result_ttl(self) -> float | None:
        """How long (s) its sender wants the result kept, None for what the task says."""
        return self._number(b"result_ttl")

    @property
    def expires(self) -> float | None:
        """The Unix time after which it must not start."""
        moment = self._integer(b"expires")
        return None if moment is None else moment / 1000

    @property
    def enqueued_at(self) -> float:
        """The Unix time of its enqueue: the field, or else the entry's own time."""
        moment = self._integer(b"enqueued_at")
        return (moment if moment is not None else entry_ms(self.entry_id)) / 1000

    @property
    def unknown_since(self) -> float | None:
        """The Unix time at which a worker first did not know its task."""
        moment = self._integer(b"unknown_since")
        return None if moment is None else moment / 1000

    @property
    def dedup(self) -> str | None:
        """The deduplication key that it was sent with, and holds until what `dedup_until` says."""
        raw = self.fields.get(b"dedup")
        return None if raw is None else text(raw, "dedup")

    @property
    def dedup_until(self) -> str | None:
        """When it frees that key: "started" or "done"; None if it leaves that to the key's time, unless it fails."""
        raw = self.fields.get(b"dedup_until")
        return None if raw is None else text(raw, "dedup_until")

    @property
    def then(self) -> list[Stage] | None:
        """What is sent when it has succeeded: the later stages of its workflow, None if there are none."""
        raw = self.fields.get(b"then")
        return None if raw is None else decode(raw)

    @property
    def group(self) -> bytes | None:
        """The only consumer group that is to run it (a retry), None for all."""
        return self.fields.get(b"group")

    def check(self) -> None:
        """Raise UndecodableError unless every field can be read, and be sent again by a retry."""
        if len(self.fields) > MOST_FIELDS:
            raise UndecodableError(f"the entry has {len(self.fields)} fields, and at most {MOST_FIELDS} are read")
        for key, value in self.fields.items():
            text(value, text(key, shown(key)))
        for name in ("task", "task_id", "args", "kwargs", "headers", "starts", "priority",
                     "retries", "timeout", "result_ttl", "expires", "enqueued_at", "unknown_since",
                     "then"):  # fmt: skip
            getattr(self, name)

    def again(self, group: str, **changes: str | None) -> list[str]:
        """Return the flat fields that run this task again in the same group.

        `changes` overwrite fields; None removes one. The id and the time of the enqueue are
        written out, because the next entry has others.
        """
        fields = {text(k, "a field's name"): text(v, "a field") for k, v in self.fields.items()}
        fields |= {"id": self.task_id, "group": group}
        fields.setdefault("enqueued_at", str(entry_ms(self.entry_id)))
        for name, value in changes.items():
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
        return [part for pair in fields.items() for part in pair]

    def _integer(self, name: bytes) -> int | None:
        raw = self.fields.get(name)
        if raw is None:
            return None
        try:
            value = int(raw)
        except ValueError:
            value = -1
        if not 0 <= value <= LARGEST and not (name == b"priority" and raw[:1] == b"-" and raw[1:].isdigit()):
            raise UndecodableError(f"field {name.decode()!r} is {shown(raw)}, which is no whole number")
        return value

    def _number(self, name: bytes) -> float | None:
        raw = self.fields.get(name)
        if raw is None:
            return None
        try:
            value = float(raw)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise UndecodableError(f"field {name.decode()!r} is {shown(raw)}, which is no number of seconds")
        return value


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run failed, in words that outlive the process."""

    error_type: str
    error: str
    traceback: str = ""


def dead_letter(
    delivery: Delivery, *, reason: str, failure: Failure, worker: str, stream: str, died_at: float, group: str
) -> list[Field]:
    """Return the flat fields of a dead letter. `died_at` is Unix seconds.

    An entry that cannot be decoded keeps each of its fields, byte for byte, as `raw.<name>`.
    """
    fields = delivery.fields
    entry = delivery.entry_id.decode()
    flat: list[Field] = ["task_id", fields.get(b"id") or entry, "task", fields.get(b"task", b"")]
    flat += ("args", fields.get(b"args") or "[]", "kwargs", fields.get(b"kwargs") or "{}")
    flat += ("tier", delivery.tier_name, "reason", reason, "error_type", failure.error_type)
    flat += ("error", utf8(failure.error), "traceback", utf8(failure.traceback[-TRACEBACK_TAIL:]))
    try:
        delivery.check()
    except UndecodableError:
        flat += ("attempts", fields.get(b"attempt", b"1"), "starts", "0")
        flat += ("enqueued_at", iso(entry_ms(delivery.entry_id) / 1000))
        for name, value in list(fields.items())[:MOST_FIELDS]:
            flat += (b"raw." + name, value)
    else:
        flat += ("attempts", str(delivery.attempt), "starts", str(delivery.starts))
        flat += ("enqueued_at", iso(delivery.enqueued_at))
        for name in (b"priority", b"retries", b"timeout", b"result_ttl", b"headers", b"then"):
            if name in fields:
                flat += (name, fields[name])
    if delivery.crashes:
        flat += ("crashed", " ".join(delivery.crashes))
    return [*flat, "died_at", iso(died_at), "worker", worker, "group", group, "origin", f"{stream} {entry}"]
