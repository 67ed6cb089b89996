"""Compares a value with what came back of it: equal, of the same types, and with all of its parts.

`==` alone is not enough: it takes `True`, `1` and `1.0` for equal, a member of a StrEnum and its text, two deques of
another `maxlen`, two naive datetimes of another `fold`. What a model compares by `==` counts: its fields, its private
attributes and its extra keys, and not which of them were set, or what a cached property holds.

Two aware datetimes are the same if they are the same instant. `==` between two zones is False in an hour that comes
twice, and in one that does not come at all (PEP 495).
"""

from __future__ import annotations

import typing
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from functools import cached_property, lru_cache, partial
from typing import Any, Final, NamedTuple

from streamq.diagnostics.safe_text import str_of
from streamq.wire.json_values import not_frozen

_FOLD: Final = "its fold=1 would be lost: JSON has none for a naive time; send an aware datetime, or fold=0"
_MAXLEN: Final = "its maxlen would be lost: JSON has none; send a list, or a deque without one"
_FACTORY: Final = "its default_factory would be another one: JSON has none; send a dict"
_PRIVATE: Final = "it would arrive changed: JSON does not carry a private attribute; make it a field"
_INIT_VAR: Final = "it would arrive changed: the value of an InitVar is not kept, so it is not sent; make it a field"
_SCALARS: Final = (str, int, float)
_LEAVES: Final = frozenset({str, int, float, bool, bytes, date, timedelta})
_NONE: Final[frozenset[type]] = frozenset()
_ABSENT: Final = object()  # in the place of an attribute that has no value


class Change(NamedTuple):
    """Where a value has not come back as it was: the path to the place. `why` is empty where no reason is known."""

    place: str
    why: str = ""


def difference(one: Any, other: Any) -> str | None:
    """Return the path to the first place where `other` is not `one` come back. None if it is, types included."""
    found = first_change(one, other)
    return None if found is None else found.place


def first_change(one: Any, other: Any, path: str = "", plain: frozenset[type] = _NONE) -> Change | None:
    """Return the first place where `other` is not `one` come back, and why. None if it is, types included.

    In a field of a dataclass or a model, a value of a subclass may have come back as the annotated str, int or float:
    nothing has checked what was assigned there. `plain` are those types here.
    """
    if one is other:
        return None
    if (same := _same_whole(one, other, plain)) is not None:
        return None if same else Change(path, _why(one, other))
    if why := _lost_setting(one, other):
        return Change(path, why)
    parts, others = _parts(one), _parts(other)
    if parts is None or others is None:
        return None if one == other or _same_attributes(one, other) else Change(path)
    return _first_changed_part(one, parts, others, path, plain)


def _first_changed_part(
    whole: Any, parts: Mapping[Any, Any], others: Mapping[Any, Any], path: str, plain: frozenset[type]
) -> Change | None:
    kind: Any = type(whole)
    key: Callable[[Any], Any] = _itself
    if not _same_hashables(parts.keys(), others.keys()):
        key = partial(_key, plain=plain)
        others = {key(name): other for name, other in others.items()}
        if {*map(key, parts)} != others.keys():
            return Change(path, _INIT_VAR if _has_init_var(kind) else "")
    of_fields = _plain_of_fields(kind) if field_names(kind) else None
    for name, part in parts.items():
        types = plain if of_fields is None else of_fields.get(name, _NONE)
        if (found := first_change(part, others[key(name)], below(path, name), types)) is not None:
            return Change(found.place, found.why or _why_of_part(whole, name))
    return None


def _itself(value: Any) -> Any:
    return value


# --- the same ------------------------------------------------------------------------------------------


def _same_whole(one: Any, other: Any, plain: frozenset[type]) -> bool | None:
    """Return whether two values are the same. None if their parts say so."""
    kind = type(one)
    if kind is not type(other):
        return _in_plain_form(one, other, plain)
    if kind in _LEAVES:
        return bool(one == other)
    if issubclass(kind, datetime | time):
        return _same_time(one, other)
    if isinstance(one, AbstractSet):
        return _same_hashables(one, other) or {_key(part, plain) for part in one} == {
            _key(part, plain) for part in other
        }
    return False if isinstance(one, Iterator) else None  # to compare an iterator is to use it up


def _in_plain_form(one: Any, other: Any, plain: frozenset[type]) -> bool:
    kind = type(other)
    if not_frozen(type(one)) is kind:
        return _same_time(one, other) if issubclass(kind, datetime) else bool(one == other)
    return kind in plain and isinstance(one, (kind, int) if kind is float else kind) and bool(one == other)


def _same_time(one: Any, other: Any) -> bool:
    if (one.tzinfo is None) != (other.tzinfo is None):
        return False
    if one.tzinfo is None and one.fold != other.fold:
        return False
    return _instant(one) == _instant(other) if isinstance(one, datetime) else bool(one == other)


def _instant(value: datetime) -> tuple[bool, timedelta, int]:
    """Return whether a datetime is aware, the time since the year 1, and the fold; of one that is aware, by UTC."""
    offset, since = value.utcoffset(), value.replace(tzinfo=None) - datetime.min  # noqa: DTZ901 - both are naive
    return (False, since, value.fold) if offset is None else (True, since - offset, 0)


def _lost_setting(one: Any, other: Any) -> str:
    """Return why a container of the same type is another one, though `==` compares only what is in it."""
    if isinstance(one, deque):
        return _MAXLEN if one.maxlen != other.maxlen else ""
    return _FACTORY if isinstance(one, defaultdict) and one.default_factory != other.default_factory else ""


def _why(one: Any, other: Any) -> str:
    """Return why two values that `==` may take for equal are not the same. Empty if nothing more can be said."""
    kind, arrives = type(one), type(other)
    if issubclass(kind, datetime | time) and kind is arrives and one.fold != other.fold:
        return _FOLD if one.replace(fold=0) == other.replace(fold=0) and one.tzinfo is None else ""
    if isinstance(one, _SCALARS) and arrives in _SCALARS and one == other:
        name = kind.__name__
        return f"it would arrive as {arrives.__name__}: JSON does not tell it from {name}; annotate {name} alone"
    return ""


def _why_of_part(whole: Any, name: Any) -> str:
    if name in (getattr(whole, "__pydantic_private__", None) or ()):
        return _PRIVATE
    kind: Any = type(whole)
    return _INIT_VAR if _has_init_var(kind) and name not in {one.name for one in fields(kind)} else ""


def _same_hashables(one: AbstractSet[Any], other: AbstractSet[Any]) -> bool:
    """Whether two sets are the same, if their elements are of one plain type. False if that takes a closer look."""
    kinds = {*map(type, one)}
    return len(kinds) <= 1 and kinds <= _LEAVES and kinds == {*map(type, other)} and one == other


def _key(value: Any, plain: frozenset[type] = _NONE) -> Hashable:
    """Return what is equal for two elements of a set, or two keys of a dict, that are the same."""
    if isinstance(value, datetime):
        return datetime, _instant(value)
    kind = not_frozen(type(value))
    if isinstance(value, time):
        return kind, value, value.fold if value.tzinfo is None else 0
    if isinstance(value, tuple):
        return kind, *(_key(part, plain) for part in value)
    if isinstance(value, frozenset):
        return kind, frozenset(_key(part, plain) for part in value)
    if names := field_names(kind):
        parts = tuple(_key(getattr(value, name, None), plain) for name in names)
        with suppress(TypeError):  # a hash of its own, over some parts alone
            hash(parts)
            return kind, parts
    return next((one for one in _SCALARS if one in plain and isinstance(value, one)), kind), value


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
        held = {part.name: getattr(value, part.name, _ABSENT) for part in fields(kind)}
        return {**_attributes(value), **held} if _has_init_var(kind) else held
    if (names := getattr(kind, "__pydantic_fields__", None)) is not None:
        private = value.__pydantic_private__ or {}
        extra = {
            f"{name} (extra)" if name in names or name in private else name: one
            for name, one in (value.__pydantic_extra__ or {}).items()
        }
        return {name: getattr(value, name, _ABSENT) for name in names} | extra | private
    if "__eq__" not in {name for one in kind.__mro__[:-1] for name in vars(one)}:
        return dict(getattr(value, "__dict__", {}))
    return None


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds besides what is made again when it is asked for."""
    kind = type(value)
    held = getattr(value, "__dict__", {})
    return {name: one for name, one in held.items() if not isinstance(getattr(kind, name, None), cached_property)}


@lru_cache(maxsize=256)
def _has_init_var(kind: Any) -> bool:
    """Has a dataclass an `InitVar`? What it was given is seen only in what it made of it."""
    declared = (getattr(kind, "__dataclass_fields__", None) or {}).values()
    return any(one._field_type.name == "_FIELD_INITVAR" for one in declared)  # noqa: SLF001


@lru_cache(maxsize=256)
def _plain_of_fields(kind: type) -> Mapping[str, frozenset[type]]:
    """Return which of str, int and float each field of a dataclass or a model may hold as a value of a subclass."""
    hints: dict[str, Any] = {}
    with suppress(Exception):  # of names that only pydantic could resolve
        hints |= typing.get_type_hints(kind)
    hints |= {name: one.annotation for name, one in (getattr(kind, "__pydantic_fields__", None) or {}).items()}
    return {name: _plain_of(hint) for name, hint in hints.items()}


def _plain_of(annotation: Any) -> frozenset[type]:
    """Return the types among str, int and float which an annotation names, and of which it names no subclass."""
    named = {*classes_in(annotation)}
    if not named.isdisjoint((object, Any)):
        return _NONE
    lower = {base for one in named for base in one.__mro__[1:]} | ({float} if int in named else set())
    return frozenset(one for one in _SCALARS if one in named and one not in lower)


def classes_in(annotation: Any, within: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield the classes that an annotation names; Any for what is none, such as a TypeVar."""
    if any(annotation is one for one in within):
        return
    within = (*within, annotation)
    further = getattr(annotation, "__supertype__", None) or (
        annotation.__value__ if type(annotation).__name__ == "TypeAliasType" else None
    )
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if further is not None:
        yield from classes_in(further, within)
    elif origin is typing.Literal:
        yield from map(type, parts)
    elif origin is typing.Annotated:
        yield from classes_in(parts[0], within)
    elif origin is not None:
        for part in parts:
            if part is not ...:
                yield from classes_in(part, within)
    else:
        yield annotation if isinstance(annotation, type) else Any


def field_names(kind: type) -> tuple[str, ...]:
    """Return the names of the fields of a model or a dataclass; none for any other class."""
    return tuple(getattr(kind, "__pydantic_fields__", None) or getattr(kind, "__dataclass_fields__", None) or ())


def below(path: str, name: Any) -> str:
    return f"{path}.{str_of(name)}" if path else str_of(name)
