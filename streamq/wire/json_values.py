"""How values that orjson would look into by itself are written: dates, times and dataclasses, by `json_value`.

orjson ends the process (SIGSEGV) if code of the user's raises in between: a `tzinfo`, a property, a slot that has no
value. In a `default` an exception is one. The texts are those of orjson. No option leaves enums to us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, date, datetime, time
from typing import Any, Final

import orjson

OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS

_SIXTY: Final = 60


def not_frozen(kind: type) -> type:
    """Return the class that a class of freezegun stands for, in tests. Others as they are."""
    return kind.__mro__[1] if kind.__module__ == "freezegun.api" else kind


_DATES: Final = (not_frozen(datetime), not_frozen(date))  # in a tuple: freezegun replaces each name of a class


def json_value(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """Return a value that orjson does not write by itself as one that it does. `default` does so for further types.

    Raises what the user's code raises, and TypeError for a type that JSON lacks.
    """
    kind = not_frozen(type(value))
    if kind is _DATES[0]:
        return _moment(value)
    if kind is _DATES[1] or (kind is time and (value.tzinfo is None or value.utcoffset() is not None)):
        return value.isoformat()
    if "__dataclass_fields__" in kind.__dict__:
        return _attributes(value)
    if default is None:
        raise TypeError(f"{kind.__name__} is not JSON serializable")
    return default(value)


def _moment(value: datetime) -> str:
    """Return a datetime in RFC 3339, its offset rounded to whole minutes."""
    zone = value.tzinfo
    if zone is None or zone is UTC:
        return value.isoformat()
    normalize = getattr(zone, "normalize", None)  # of pytz: its zones have a wrong offset before
    offset = (value if normalize is None else normalize(value)).utcoffset()
    if offset is None:
        offset = UTC.utcoffset(value)
    minutes, rest = divmod(abs(offset.days * 86_400 + offset.seconds), _SIXTY)
    hours, minutes = divmod(minutes + (rest >= _SIXTY // 2), _SIXTY)
    return f"{value.replace(tzinfo=None).isoformat()}{'-' if offset.days < 0 else '+'}{hours:02}:{minutes:02}"


def _attributes(value: Any) -> dict[str, Any]:
    """Return what a dataclass holds, without names that begin with `_`."""
    if "__slots__" in type(value).__dict__:
        return {one.name: getattr(value, one.name) for one in fields(value) if not one.name.startswith("_")}
    return {name: part for name, part in vars(value).items() if not str.startswith(name, "_")}
