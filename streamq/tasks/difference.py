"""Compares a value with what came back of it: equal, of the same types, and with all of its parts.

Two aware datetimes are the same if they are the same instant. `==` between two zones is False in an hour that comes
twice, and in one that does not come at all (PEP 495).
"""

from __future__ import annotations

import typing
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final

from streamq.diagnostics.safe_text import str_of

_SCALARS: Final = (str, int, float)  # a text of a subclass arrives as a text
_LEAVES: Final = frozenset({str, int, float, bool, bytes, date, timedelta})


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return the path to the first place where `other` is not `one` come back. None if it is, types included.

    An int may have come back as a float that is equal to it: it was sent as a float.
    """
    if one is other:
        return None
    if (same := _same_whole(one, other)) is not None:
        return None if same else path
    parts, others = _parts(one), _parts(other)
    if parts is None or others is None:
        return None if one == other or _same_attributes(one, other) else path
    if parts.keys() != others.keys():
        parts, others = ({_key(name): part for name, part in all_.items()} for all_ in (parts, others))
        if parts.keys() != others.keys():
            return path
    for name, part in parts.items():
        if (found := difference(part, others[name], _below(path, name))) is not None:
            return found
    return None


def lost_part(given: Any, fitted: Any, path: str = "") -> str | None:
    """Return the path to the first part of a value that is missing in what a type has made of it. None if none is.

    A dict may have become a model, a list a set: these are conversions. A key that has no place there is lost.
    """
    if given is fitted:
        return None
    if type(given) is int and type(fitted) is float:
        return None if given == fitted else path
    if isinstance(given, Mapping):
        gone = _gone_keys(given, fitted)
    elif isinstance(given, type(fitted)):
        taken = _field_names(type(fitted))
        gone = [name for name in _field_names(type(given)) if name not in taken]  # those of a subclass
    else:
        gone = []
    if gone:
        return _below(path, gone[0])
    return _first(lost_part, given, fitted, path)


def made_an_object(given: Any, fitted: Any, path: str = "") -> str | None:
    """Return the path to the first dict, list or scalar of which a type has made a model or a dataclass. None if none.

    A part that is no such thing itself may hold one.
    """
    if given is fitted:
        return None
    if _field_names(type(fitted)) and not _field_names(type(given)):
        return path
    return _first(made_an_object, given, fitted, path)


# --- the same ------------------------------------------------------------------------------------------


def _same_whole(one: Any, other: Any) -> bool | None:
    """Return whether two values are the same. None if their parts say so."""
    kind = type(one)
    if kind is not type(other):
        return _in_plain_form(one, other)
    if kind in _LEAVES:
        return bool(one == other)
    if issubclass(kind, datetime | time):
        return _same_time(one, other)
    if isinstance(one, AbstractSet):
        return bool(one == other) or {*map(_key, one)} == {*map(_key, other)}
    return False if isinstance(one, Iterator) else None  # to compare an iterator is to use it up


def _in_plain_form(one: Any, other: Any) -> bool:
    kind = type(other)
    if kind is float and type(one) is int:
        return bool(one == other)
    return kind in _SCALARS and isinstance(one, kind) and bool(one == other)


def _same_time(one: Any, other: Any) -> bool:
    if (one.tzinfo is None) != (other.tzinfo is None):
        return False
    return _instant(one) == _instant(other) if isinstance(one, datetime) else bool(one == other)


def _instant(value: datetime) -> tuple[bool, timedelta]:
    """Return whether a datetime is aware, and the time since the year 1: of one that is aware, by UTC."""
    offset, since = value.utcoffset(), value.replace(tzinfo=None) - datetime.min  # noqa: DTZ901 - both are naive
    return (False, since) if offset is None else (True, since - offset)


def _key(value: Any) -> Hashable:
    """Return what is equal for two elements of a set, or two keys of a dict, that are the same."""
    if isinstance(value, datetime):
        return datetime, _instant(value)
    if isinstance(value, tuple):
        return type(value), *map(_key, value)
    if isinstance(value, frozenset):
        return frozenset(map(_key, value))
    if names := _field_names(type(value)):
        parts = tuple(_key(getattr(value, name, None)) for name in names)
        with suppress(TypeError):  # a hash of its own, over some parts alone
            hash(parts)
            return type(value), parts
    return value  # type: ignore[no-any-return] # an element of a set has a hash


def _same_attributes(one: Any, other: Any) -> bool:
    """Whether two objects that say they are not equal hold the same: their class may compare datetimes of two zones."""
    held, others = getattr(one, "__dict__", None), getattr(other, "__dict__", None)
    return bool(held) and bool(others) and difference(held, others) is None


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Return what a container, a model, a dataclass, or an object without its own equality holds. None for others."""
    kind = type(value)
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple | deque):
        return dict(enumerate(value))
    if is_dataclass(kind):
        return {part.name: getattr(value, part.name, None) for part in fields(kind)}
    if (names := getattr(kind, "__pydantic_fields__", None)) is not None:
        return {name: getattr(value, name, None) for name in names} | (value.__pydantic_extra__ or {})
    if "__eq__" not in {name for one in kind.__mro__[:-1] for name in vars(one)}:
        return dict(getattr(value, "__dict__", {}))
    return None


# --- lost ----------------------------------------------------------------------------------------------


def _first(find: Callable[[Any, Any, str], str | None], given: Any, fitted: Any, path: str) -> str | None:
    """Return the first path that is found in the parts which two values have in common."""
    found = (find(one, other, _below(path, name)) for name, one, other in _common_parts(given, fitted))
    return next((place for place in found if place is not None), None)


def _common_parts(given: Any, fitted: Any) -> Iterator[tuple[Any, Any, Any]]:
    if isinstance(given, list | tuple) and isinstance(fitted, list | tuple):
        yield from zip(range(len(given)), given, fitted, strict=False)
        return
    parts, others = _named_parts(given), _named_parts(fitted)
    yield from ((name, part, others[name]) for name, part in parts.items() if name in others)


def _named_parts(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    return {name: getattr(value, name, None) for name in _field_names(type(value))}


def _gone_keys(given: Mapping[Any, Any], fitted: Any) -> list[Any]:
    """Return the keys of a dict that have no place in what was made of it."""
    if isinstance(fitted, Mapping):
        return [key for key in given if key not in fitted] if len(fitted) < len(given) else []  # else converted
    kind: Any = type(fitted)
    known, extra = _known_keys(kind), getattr(fitted, "__pydantic_extra__", None) or {}
    return [] if known is None else [key for key in given if key not in known and key not in extra]


@lru_cache(maxsize=256)
def _known_keys(kind: type) -> frozenset[Any] | None:
    """Return the keys of a dict that a model or a dataclass takes, by name or alias. None if it may take any."""
    names = _field_names(kind)
    if not names or _reshapes(kind):
        return None
    return frozenset({*names, *(name for one in _field_infos(kind) for name in _aliases(one))})


def _field_names(kind: type) -> tuple[str, ...]:
    """Return the names of the fields of a model or a dataclass; none for any other class."""
    return tuple(getattr(kind, "__pydantic_fields__", None) or getattr(kind, "__dataclass_fields__", None) or ())


def _reshapes(kind: type) -> bool:
    """Whether a validator of a model gets the whole dict before its fields do: what it takes is its own affair."""
    validators = getattr(getattr(kind, "__pydantic_decorators__", None), "model_validators", {})
    return any(one.info.mode != "after" for one in validators.values())


def _field_infos(kind: type) -> list[Any]:
    """Return what says how the fields of a model or a dataclass are called."""
    if infos := getattr(kind, "__pydantic_fields__", None):
        return [*infos.values()]
    found = [getattr(one, "default", None) for one in kind.__dataclass_fields__.values()]  # type: ignore[attr-defined]
    with suppress(Exception):  # of names that only pydantic could resolve
        hints = typing.get_type_hints(kind, include_extras=True).values()
        found += [one for hint in hints for one in getattr(hint, "__metadata__", ())]
    return found


def _aliases(info: Any) -> list[Any]:
    """Return the keys under which a field is read, besides its name."""
    given = [getattr(info, name, None) for name in ("alias", "validation_alias")]
    choices = [one for alias in given for one in getattr(alias, "choices", (alias,))]
    return [(getattr(one, "path", None) or (one,))[0] for one in choices if one is not None]


def _below(path: str, name: Any) -> str:
    return f"{path}.{str_of(name)}" if path else str_of(name)
