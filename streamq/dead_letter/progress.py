"""What is kept of an operation over dead letters: one bounded hash, `<ns>:operation:<operation_id>`, with a TTL. Pure.

`docs/wire-format.md` has its fields. The steps of `scripts/operation_*.lua` write how far it is; nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal, get_args

import orjson

from streamq.dead_letter.filter import DeadLetterFilter
from streamq.dead_letter.selection import is_full_entry_id
from streamq.errors import BrokerError, ConfigurationError
from streamq.wire import bounds
from streamq.wire.message import iso, milliseconds, utf8
from streamq.wire.stored_numbers import stored_count

Kind = Literal["replay", "purge"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
State = Literal["running", "stopped", "finished"]
STATES: Final[tuple[State, ...]] = get_args(State)
KEPT: Final = milliseconds(7 * 24 * 3600.0)  # ms that an operation is kept after its last step
MOST: Final = 100  # operations in the index
ERROR_KEPT: Final = 500  # characters of the last error
_LARGEST: Final = 10**15  # of each count


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationProgress:
    """An operation over dead letters, and how far it is.

    `done` letters were replayed or removed, and `passed_over` could not be; `last_error` is why the last of those could
    not. `examined` letters were looked at, of the `total` that were in the stream when it began. `state` is "running",
    "stopped" or "finished". One that runs and has not changed for long (`changed_at`) was killed: resume it. `limit` is
    the most letters to replay or remove, `rate` how many a second. `after` is the entry id up to which it has come, and
    `last` the one at which it ends.
    """

    id: str
    kind: Kind
    state: State
    filter: DeadLetterFilter
    examined: int = 0
    done: int = 0
    passed_over: int = 0
    total: int = 0
    last_error: str = ""
    limit: int | None = None
    rate: float | None = None
    retries: int | None = None
    set_arguments: Mapping[str, Any] = field(default_factory=dict)
    edited: bool = False
    started_by: str = ""
    started_at: datetime
    changed_at: datetime
    after: str
    last: str

    def went_on(self, to: str, *, examined: int, done: int = 0, passed_over: int = 0) -> OperationProgress:
        """Return the progress after one more step."""
        return replace(
            self, after=to, examined=self.examined + examined, done=self.done + done,
            passed_over=self.passed_over + passed_over,
        )  # fmt: skip

    @property
    def left(self) -> int | None:
        """How many more letters it may replay or remove; None for any number."""
        return None if self.limit is None else max(0, self.limit - self.done)

    def fields(self) -> list[str | bytes | float]:
        """Return the flat fields with which it begins, without the times."""
        flat: list[str | bytes | float] = [
            "kind", self.kind, "state", self.state, "filter", self.filter.to_json(), "at", self.after,
            "last", self.last, "total", self.total, "by", utf8(self.started_by),
        ]  # fmt: skip
        for name in ("limit", "rate", "retries"):
            if (value := getattr(self, name)) is not None:
                flat += (name, value)
        if self.set_arguments:
            flat += ("set", orjson.dumps(self.set_arguments))
        return [*flat, "edited", 1] if self.edited else flat

    @classmethod
    def of(cls, id_: str, flat: Sequence[bytes]) -> OperationProgress:
        """Return the operation of a hash. Raises BrokerError if it is none."""
        fields = dict(zip(flat[::2], flat[1::2], strict=False))
        try:
            return cls(id=id_, **_read(fields))
        except (ConfigurationError, ValueError, KeyError, OverflowError) as error:
            raise BrokerError(f"the operation {id_!r} cannot be read ({error}): delete it, and begin another") from None


def _read(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    def count(name: bytes) -> int | None:
        return stored_count(fields.get(name), _LARGEST)

    after, last = fields[b"at"].decode(), fields[b"last"].decode()
    kind, state = fields[b"kind"].decode(), fields[b"state"].decode()
    if kind not in KINDS or state not in STATES or not (is_full_entry_id(after) and is_full_entry_id(last)):
        raise ValueError("it has another form")
    limit, rate, retries = (fields.get(name) for name in (b"limit", b"rate", b"retries"))
    values = orjson.loads(fields.get(b"set", b"{}"))
    if type(values) is not dict:
        raise ValueError("its new arguments are no object")
    for name, value in (("limit", limit), ("retries", retries)):  # to read a bound as none would move too many
        if value is not None and stored_count(value, _LARGEST) is None:
            raise ValueError(f"its {name} is no number")
    return {
        "kind": kind,
        "state": state,
        "filter": DeadLetterFilter.of_json(fields[b"filter"]),
        "examined": count(b"examined") or 0,
        "done": count(b"done") or 0,
        "passed_over": count(b"passed") or 0,
        "total": count(b"total") or 0,
        "last_error": fields.get(b"last_error", b"").decode(errors="backslashreplace"),
        "limit": count(b"limit"),
        "rate": None if rate is None else bounds.OPERATION_RATE.check(float(rate), "its rate"),
        "retries": count(b"retries"),
        "set_arguments": values,
        "edited": b"edited" in fields,
        "started_by": fields.get(b"by", b"").decode(errors="backslashreplace"),
        "started_at": _time(count(b"started_at")),
        "changed_at": _time(count(b"changed_at")),
        "after": after,
        "last": last,
    }


def _time(ms: int | None) -> datetime:
    return datetime.fromisoformat(iso((ms or 0) / 1000))
