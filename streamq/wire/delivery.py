"""A delivery: one entry of a stream that one consumer holds.

Owns the decoding of messages; each field is decoded when it is read. Encoding, and the parts that both share, are in
`wire.message`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamq.errors import UndecodableError
from streamq.wire.bounds import (
    ATTEMPT,
    DEDUP_TTL,
    PRIORITY,
    RESULT_TTL,
    RETRIES,
    STARTS,
    TIMEOUT,
    UNIX_FIELD,
    Bound,
    seconds_field,
    whole_number,
)  # fmt: skip
from streamq.wire.message import MOST_FIELDS, entry_ms, load, text
from streamq.wire.names import IS_PLAIN_ID, check_field
from streamq.wire.workflow_bounds import check_stages
from streamq.wire.workflow_record import StepPlace
from streamq.wire.workflow_steps import Stage, decode

_NAMES = {b"task": "task", b"id": "task_id", b"dedup": "key"}  # fields that are names, and of what
_NO_TASK = "the entry has no field 'task'"
BASIC_FIELDS = frozenset((b"task", b"args", b"kwargs", b"id"))  # fields that are checked as they are used
_BASIC_FIELDS_AND_PRIORITY = BASIC_FIELDS | {b"priority"}


class Delivery:
    """One entry of a stream that one consumer holds. Each field is decoded when it is read.

    Not a frozen dataclass: one is made per message on the hot path. `crashed_workers` are the workers that died while
    they held this entry. `owner_died`: the sweep that reclaimed it found its owner dead. `crash_proven`: that owner ran
    nothing else. `began`: its handler did, as far as is known. `isolated`: a suspect that runs with nothing beside it.
    Properties raise UndecodableError where the entry is not a message.
    """

    __slots__ = (
        "_fields",
        "began",
        "crash_proven",
        "crashed_workers",
        "end",
        "entry_id",
        "flat",
        "isolated",
        "only_basic_fields",
        "owner_died",
        "redelivered",
        "state",
        "tier",
        "tier_name",
        "verified",
    )  # fmt: skip

    def __init__(
        self, tier: int, tier_name: str, entry_id: bytes, flat: list[bytes], *,
        redelivered: bool = False, crashed_workers: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.tier = tier
        self.tier_name = tier_name
        self.entry_id = entry_id
        self.flat = flat
        self.redelivered = redelivered
        self.crashed_workers = crashed_workers
        self.isolated = False
        self.crash_proven = False
        self.owner_died = False
        self.verified = False  # its signature was checked, where messages are signed
        self.began = True  # its handler; where that was not called, the one who knows it takes it back
        self.only_basic_fields = False  # known to have no fields but task, args, kwargs, id and priority
        self.state: Any = None  # the value that the worker's lifespan yielded
        self.end: Any = None  # of a run that is to be acknowledged: when (Unix s), how long (s), was it cancelled
        self._fields: dict[bytes, bytes] | None = None

    def __repr__(self) -> str:
        entry = self.entry_id.decode(errors="backslashreplace")
        name = self.fields.get(b"task", b"?").decode(errors="backslashreplace")
        given = self.fields.get(b"id", b"").decode(errors="backslashreplace")
        task_id = f" {given}" if given else ""  # without a field, it is that of the entry
        return f"<Delivery {name}{task_id} tier={self.tier_name} entry={entry}{' redelivered' * self.redelivered}>"

    def copy(self) -> Delivery:
        """Return a copy for code of the user's: what that does to it does not reach the worker."""
        other = Delivery(
            self.tier, self.tier_name, self.entry_id, [*self.flat],
            redelivered=self.redelivered, crashed_workers=self.crashed_workers,
        )  # fmt: skip
        other.isolated, other.crash_proven, other.owner_died = self.isolated, self.crash_proven, self.owner_died
        other.verified, other.only_basic_fields, other.state = self.verified, self.only_basic_fields, self.state
        other.began = self.began
        return other

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The fields of the entry, not decoded."""
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
            raise UndecodableError(_NO_TASK)
        return text(name, "task")

    @property
    def task_id(self) -> str:
        """The id of the task: the field `id`, or else the id of its first entry."""
        given = self.fields.get(b"id")
        return text(given, "id") if given else self.entry_id.decode()

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the keyword arguments."""
        fields = self.fields if self._fields is None else self._fields
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
        """The headers that producers and middleware attached."""
        raw = self.fields.get(b"headers")
        return load(raw, "headers", dict) if raw else {}

    @property
    def attempt(self) -> int:
        """The number of this run in the retry budget, from 1."""
        return self._integer(b"attempt", ATTEMPT) or 1

    @property
    def starts(self) -> int:
        """How often the task was started, with this run, crashes and postponed runs included."""
        earlier = self._integer(b"starts", STARTS)
        starts = (self.attempt if earlier is None else earlier + 1) + len(self.crashed_workers)
        return min(starts, int(STARTS.highest))

    @property
    def priority(self) -> int | None:
        """The priority that it was sent with, None for the default."""
        return self._integer(b"priority", PRIORITY)

    @property
    def retries(self) -> int | None:
        """The number of retries that its sender chose, None for that of the task."""
        return self._integer(b"retries", RETRIES)

    @property
    def timeout(self) -> float | None:
        """The timeout (s) that its sender chose, None for that of the task."""
        return self._seconds(b"timeout", TIMEOUT)

    @property
    def result_ttl(self) -> float | None:
        """How long (s) the result is kept, as its sender chose; None for the TTL of the task."""
        return self._seconds(b"result_ttl", RESULT_TTL)

    @property
    def expires(self) -> float | None:
        """The Unix time after which it must not start."""
        moment = self._ms(b"expires", UNIX_FIELD)
        return None if moment is None else moment / 1000

    @property
    def enqueued_at(self) -> float:
        """The Unix time of its enqueue: the field, or else the time of the entry."""
        moment = self._ms(b"enqueued_at", UNIX_FIELD)
        return (moment if moment is not None else self._entry_moment()) / 1000

    @property
    def unknown_since(self) -> float | None:
        """The Unix time at which a worker first did not know its task."""
        moment = self._ms(b"unknown_since", UNIX_FIELD)
        return None if moment is None else moment / 1000

    @property
    def dedup(self) -> str | None:
        """The deduplication key that it was sent with, and holds as `dedup_until` says."""
        raw = self.fields.get(b"dedup")
        return None if raw is None else text(raw, "dedup")

    @property
    def dedup_until(self) -> str | None:
        """When it frees that key: "started" or "done"; None if the key expires by its TTL, or is freed by a failure."""
        raw = self.fields.get(b"dedup_until")
        return None if raw is None else text(raw, "dedup_until")

    @property
    def dedup_ttl(self) -> float | None:
        """For how long (s) it holds that key at most, None for the default. A replay of its dead letter needs it."""
        ttl = self._ms(b"dedup_ttl", DEDUP_TTL)
        return None if ttl is None else ttl / 1000

    @property
    def then(self) -> list[Stage] | None:
        """The later stages of its workflow, sent when it has succeeded; None if there are none."""
        raw = self.fields.get(b"then")
        return None if raw is None else decode(raw)

    @property
    def workflow(self) -> StepPlace | None:
        """Which step of which workflow it is; None for other tasks."""
        raw = self.fields.get(b"workflow")
        return None if raw is None else StepPlace.parse(raw)

    @property
    def group(self) -> bytes | None:
        """The only consumer group that runs it (a retry), None for all groups."""
        return self.fields.get(b"group")

    def replace_arguments(self, args: bytes) -> None:
        """Replace the positional arguments (JSON)."""
        self.flat = [part for name, value in {**self.fields, b"args": args}.items() for part in (name, value)]
        self._fields = None

    def check(self, may_send_to: Callable[[str], bool] | None = None) -> None:
        """Raise UndecodableError unless every field can be decoded, and sent again by a retry.

        `may_send_to` says to which streams the later steps of its workflow may go, None: to any.
        """
        if len(self.fields) > MOST_FIELDS:
            raise UndecodableError(f"the entry has {len(self.fields)} fields, and at most {MOST_FIELDS} are read")
        fields = self.fields
        if not fields.get(b"task"):
            raise UndecodableError(_NO_TASK)
        for key, value in fields.items():
            readable = text(value, text(key, key[:80].decode(errors="backslashreplace")))
            if key in _NAMES and (value or key == b"dedup") and not IS_PLAIN_ID(value):
                check_field(_NAMES[key], readable, key.decode())
        for name in ("task_id", "args", "kwargs", "headers", "starts", "priority",
                     "retries", "timeout", "result_ttl", "expires", "enqueued_at", "unknown_since",
                     "dedup_ttl"):  # fmt: skip
            getattr(self, name)
        if (stages := self.then) is not None:
            check_stages(stages, may_send_to or _anywhere)

    def resend_fields(self, group: str, **changes: str | None) -> list[str]:
        """Return the flat fields of a message that runs this task again, in this group alone.

        `changes` overwrite fields; None removes one. The task id and the time of the enqueue are written as fields,
        because the next entry has another id and time.
        """
        fields = {text(k, "a field's name"): text(v, "a field") for k, v in self.fields.items()}
        fields |= {"id": self.task_id, "group": group}
        fields.setdefault("enqueued_at", str(self._entry_moment()))
        if "sig" in fields:  # it is that of the old fields: `Signer` makes a new one
            del fields["sig"]
        for name, value in changes.items():
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
        return [part for pair in fields.items() for part in pair]

    def _entry_moment(self) -> int:
        """Return the time (Unix ms) of its entry. An id by hand may be beyond the calendar."""
        return min(entry_ms(self.entry_id), int(UNIX_FIELD.highest) * 1000)

    def _integer(self, name: bytes, bound: Bound) -> int | None:
        raw = self.fields.get(name)
        return None if raw is None else whole_number(name.decode(), raw, bound)

    def _ms(self, name: bytes, bound: Bound) -> int | None:
        raw = self.fields.get(name)
        return None if raw is None else whole_number(name.decode(), raw, bound, per=1000)

    def _seconds(self, name: bytes, bound: Bound) -> float | None:
        raw = self.fields.get(name)
        return None if raw is None else seconds_field(name.decode(), raw, bound)


def has_small_priority(fields: dict[bytes, bytes]) -> bool:
    """Is there, beside basic fields, a priority that is certainly valid? All others are checked in full."""
    return fields.keys() <= _BASIC_FIELDS_AND_PRIORITY and (given := fields[b"priority"]).isdigit() and len(given) < 10


def _anywhere(_: str) -> bool:
    return True
