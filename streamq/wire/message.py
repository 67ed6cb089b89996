"""The wire format of a message: encoding, and the parts that encoding and decoding share.

Knows no key, no task and no worker. Decoding is in `wire/delivery.py`, dead letters are in
`wire/dead_letter_fields.py`. The table of fields is in `docs/wire-format.md`. Fields that streamq does not know are
kept through every retry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import orjson

from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import EncodingError, PayloadTooLargeError, UndecodableError
from streamq.wire.bounds import FIELDS_OF_ENTRY, LAST_MOMENT, shown
from streamq.wire.json_values import OPTIONS, json_value

MAX_PAYLOAD = 1 << 20  # bytes of one message
TRACEBACK_TAIL = 8_000  # characters of a traceback that a dead letter keeps
MOST_FIELDS = int(FIELDS_OF_ENTRY.highest)

Field = str | bytes
_T = TypeVar("_T")
Default = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A task to be sent. Times are Unix seconds; None means the default, which is not written.

    If `task_id` is empty, the id of the entry is the task id.
    """

    task: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    task_id: str = ""
    priority: int | None = None
    retries: int | None = None
    timeout: float | None = None
    result_ttl: float | None = None
    expires: float | None = None
    enqueued_at: float | None = None
    dedup: str | None = None
    dedup_until: str | None = None
    dedup_ttl: float | None = None
    headers: Mapping[str, Any] | None = None

    def fields(self, *, limit: int = MAX_PAYLOAD, default: Default | None = None) -> list[Field]:
        """Return the flat fields of the entry; fields with a default are left out.

        `default` converts values that JSON lacks (pydantic's types). Raises EncodingError if an argument cannot be
        encoded, which it names, and PayloadTooLargeError if the fields have more than `limit` bytes.
        """
        flat = plain_fields(self.task, self.task_id, self.args, self.kwargs, default)
        for name, written in _OPTIONAL:
            if (value := getattr(self, name)) is not None:
                flat += (name, written(value))
        if self.headers:
            flat += ("headers", _dump(self.task, "headers", self.headers, default))
        return bounded(flat, self.task, limit)


def plain_fields(
    task: str, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], default: Default | None
) -> list[Field]:
    """Return the flat fields of a message that has no others, as `Message.fields` does, without its limit."""
    flat: list[Field] = ["task", task]
    if task_id:
        flat += ("id", task_id)
    if args:
        flat += ("args", _dump(task, "args", args, default))
    if kwargs:
        flat += ("kwargs", _dump(task, "kwargs", kwargs, default))
    return flat


def bounded(flat: list[Field], task: str, limit: int) -> list[Field]:
    """Return flat fields. Raises PayloadTooLargeError if they have more than `limit` bytes."""
    size = sum(map(len, flat))
    if size > limit:
        raise PayloadTooLargeError(task, size, limit)
    return flat


def milliseconds(seconds: float) -> int:
    """Return seconds as whole milliseconds, as Redis stores them."""
    return round(seconds * 1000)


def _integer(value: int) -> str:
    return str(int(value))


def _seconds(value: float) -> str:
    return repr(float(value))


def _moment(value: float) -> str:
    return str(milliseconds(value))


# Optional fields, and how each is written.
_OPTIONAL: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("priority", _integer),
    ("retries", _integer),
    ("timeout", _seconds),
    ("result_ttl", _seconds),
    ("expires", _moment),
    ("enqueued_at", _moment),
    ("dedup", str),
    ("dedup_until", str),
    ("dedup_ttl", _moment),
)


def dumps(value: Any, default: Default | None = None) -> bytes:
    """Return a value as JSON. Raises TypeError for values that JSON lacks, NaN and infinity included."""
    encode = json_value if default is None else partial(json_value, default=default)
    try:
        packed = orjson.dumps(value, encode, OPTIONS)
    except TypeError as error:
        if (cause := error.__cause__) is None or isinstance(cause, TypeError):
            raise
        raise TypeError(f"{error} ({type_name(cause)}: {str_of(cause)})") from cause
    # orjson writes NaN and infinity as null; an error is better than a changed value.
    if b"null" in packed and not _finite(value, encode):
        raise TypeError("NaN and infinity have no JSON")
    return packed


def pack_flat(fields: Sequence[str]) -> bytes:
    """Return a message as it is stored while delayed: a JSON array of its flat fields."""
    return orjson.dumps(fields)


def as_text(flat: Iterable[Field]) -> list[str]:
    """Return flat fields as text."""
    return [part.decode() if isinstance(part, bytes) else part for part in flat]


def entry_ms(entry_id: bytes) -> int:
    """Return the time (Unix ms) in the id of an entry."""
    return int(entry_id.partition(b"-")[0])


def iso(seconds: float) -> str:
    """Return a Unix time in ISO 8601, UTC, with milliseconds.

    Entry ids and fields that were written by hand may be beyond the year 9999: they become its last second.
    """
    return datetime.fromtimestamp(min(seconds, LAST_MOMENT), UTC).isoformat(timespec="milliseconds")


def _dump(task: str, what: str, value: Any, default: Default | None) -> bytes:
    try:
        return dumps(value, default)
    except (TypeError, RecursionError) as error:
        raise EncodingError(task, *_culprit(what, value, default, error)) from error


def _culprit(what: str, value: Any, default: Default | None, error: Exception) -> tuple[str, str]:
    """Return the argument that JSON cannot encode, and why."""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value, 1)
    for name, part in parts:
        try:
            dumps(part, default)
        except (TypeError, RecursionError) as inner:
            place = f"{name!r}" if isinstance(name, str) else f"number {name}"
            if what == "headers":
                place = f"header {place}"
            return f"{place} ({type(part).__name__})", str_of(inner)
    return what, str_of(error)


def _finite(value: Any, encode: Default) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case None | str() | int() | UUID() | orjson.Fragment():
            return True
        case Mapping():
            return all(_finite(part, encode) for part in value.values())
        case list() | tuple():
            return all(_finite(part, encode) for part in value)
        case Enum():
            return _finite(value.value, encode)
    return _finite(encode(value), encode)


def load(raw: bytes, name: str, kind: type[_T]) -> _T:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise UndecodableError(f"field {name!r} is {shown(raw)}, which is not JSON ({error})") from error
    if type(value) is not kind:
        wanted = "array" if kind is list else "object"
        raise UndecodableError(f"field {name!r} is {shown(raw)}, which is no JSON {wanted}")
    return value


def text(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UndecodableError(f"field {name!r} is {shown(raw)}, which is not UTF-8") from error


def utf8(text: str) -> str:
    """Return a text with lone surrogates escaped: they have no UTF-8."""
    return text.encode(errors="backslashreplace").decode()
