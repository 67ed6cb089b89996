"""Reads values back from JSON by their annotations, without pydantic: of the types that orjson writes.

These are dataclasses, enums, dates and times, UUIDs and typed dicts, in lists, tuples, dicts and unions. A reader takes
values of its type, too, as they are: so what is given for an argument is converted as if it had been sent by name.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
)
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time
from typing import Any, Final
from uuid import UUID

from streamq.tasks.difference import difference
from streamq.wire.message import dumps

_JSON_SCALARS: Final = (str, int, float, bool, type(None))
Read = Callable[[Any], Any]


class _Known(dict[Any, Read]):
    """The readers of classes that may hold themselves. `given`: they are for values that were given."""

    def __init__(self, *, given: bool) -> None:
        super().__init__()
        self.given = given


class UnreadableTypeError(TypeError):
    """A type cannot be read back from JSON without pydantic."""

    def __init__(self, annotation: Any) -> None:
        super().__init__(
            f"{annotation!r} cannot be read back from JSON: pip install 'streamq[pydantic]', or use "
            "@task(validate=False), which gives the JSON as it is"
        )


def reader_of(annotation: Any) -> Read:
    """Return what makes a value of this type from parsed JSON. It raises TypeError, ValueError or KeyError.

    Raises UnreadableTypeError for a type that it does not know.
    """
    return _reader(annotation, _Known(given=False))


def fitter_of(annotation: Any) -> Read:
    """Return what makes a value of this type from one that was given: itself, or what its JSON would be read as.

    In a union a value that is of one of the types is left as it is. Raises as `reader_of`, and so does what it returns.
    """
    return _reader(annotation, _Known(given=True))


def typed_dict_fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return the annotation of each key of a TypedDict, and whether it is required.

    With `from __future__ import annotations` the class itself does not know of `NotRequired`.
    """
    found = {}
    for key, hint in typing.get_type_hints(kind, include_extras=True).items():
        required = key in kind.__required_keys__
        while (name := form_name(hint)) in ("Required", "NotRequired", "ReadOnly"):
            required = required if name == "ReadOnly" else name == "Required"
            (hint,) = typing.get_args(hint)  # noqa: PLW2901 - what is wrapped
        found[key] = hint, required
    return found


def form_name(annotation: Any) -> str:
    """Return the name of a special form with arguments, of typing or typing_extensions; of others any text."""
    origin = typing.get_origin(annotation)
    return getattr(origin, "_name", None) or getattr(origin, "__name__", None) or ""


def members_by_json(members: Iterable[Any]) -> dict[bytes, enum.Enum]:
    """Return the enum members among some values by their JSON, without those that share it with another value."""
    found, taken = {}, set()
    for one in members:
        with suppress(TypeError):  # a value that JSON lacks
            if isinstance(one, enum.Enum):
                found[dumps(one.value)] = one
            else:
                taken.add(dumps(one))
    return {key: member for key, member in found.items() if key not in taken}


def member_of(value: Any, table: Mapping[bytes, enum.Enum]) -> Any:
    """Return the enum member that a value from JSON stands for; the value itself if there is none."""
    if isinstance(value, enum.Enum):
        return value
    with suppress(TypeError):
        return table.get(dumps(value), value)
    return value


def needs_table(kind: type[enum.Enum]) -> bool:
    """Has an enum values that JSON does not give back, such as tuples and dates?"""
    members: Mapping[str, Any] = kind.__members__
    return any(type(one.value) not in _JSON_SCALARS for one in members.values())


def _reader(annotation: Any, known: _Known) -> Read:
    if annotation.__hash__ is not None and (simple := _SIMPLE.get(annotation)) is not None:
        return simple
    if isinstance(annotation, typing.NewType):
        return _reader(annotation.__supertype__, known)
    if type(annotation).__name__ == "TypeAliasType":  # `type Name = ...`, from Python 3.12 on
        return _reader(annotation.__value__, known)
    origin, parts = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    generic = _GENERIC.get(origin) if isinstance(origin, Hashable) else None
    return _class(annotation, known) if generic is None else generic(parts, known)


def _class(kind: Any, known: _Known) -> Read:
    """Return the reader of a class that somebody has written. Such classes may hold themselves."""
    if not isinstance(kind, type):
        raise UnreadableTypeError(kind)
    if kind in known:
        return lambda value: known[kind](value)  # noqa: PLW0108 - looked up when it is called
    if issubclass(kind, enum.Enum):
        return _enum(kind) if needs_table(kind) else kind
    if is_dataclass(kind):
        make = _dataclass
    elif hasattr(kind, "__required_keys__"):
        make = _typed_dict
    else:
        raise UnreadableTypeError(kind)
    known[kind] = lambda value: value  # in place while its own fields are read
    known[kind] = make(kind, known)
    return known[kind]


def _enum(kind: type[enum.Enum]) -> Read:
    table = members_by_json(kind)

    def read(value: Any) -> Any:
        found = member_of(value, table)
        return found if isinstance(found, kind) else kind(value)

    return read


def _dataclass(kind: Any, known: _Known) -> Read:
    hints = typing.get_type_hints(kind, include_extras=True)
    readers = {one.name: _reader(hints[one.name], known) for one in fields(kind) if one.init}

    def read(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        found = _instance(value, dict)
        return kind(**{name: reader(found[name]) for name, reader in readers.items() if name in found})

    return read


def _typed_dict(kind: Any, known: _Known) -> Read:
    declared = typed_dict_fields(kind)
    readers = {name: _reader(hint, known) for name, (hint, _) in declared.items()}
    needed = {name for name, (_, required) in declared.items() if required}

    def read(value: Any) -> Any:
        found = _instance(value, dict)
        if missing := sorted(needed - found.keys()):
            raise KeyError(f"{kind.__name__} has no {', '.join(missing)}")
        return {name: readers[name](part) if name in readers else part for name, part in found.items()}

    return read


def _list(parts: tuple[Any, ...], known: _Known) -> Read:
    read = _reader(parts[0] if parts else Any, known)
    return lambda value: [read(part) for part in _instance(value, list)]


def _dict(parts: tuple[Any, ...], known: _Known) -> Read:
    key, read = (_reader(part, known) for part in parts or (str, Any))
    return lambda value: {key(name): read(part) for name, part in _instance(value, dict).items()}


def _tuple(parts: tuple[Any, ...], known: _Known) -> Read:
    if not parts or parts[-1] is ...:
        read = _reader(parts[0] if parts else Any, known)
        return lambda value: tuple(read(part) for part in _items(value))
    readers = [_reader(part, known) for part in parts]
    return lambda value: tuple(reader(part) for reader, part in zip(readers, _items(value), strict=True))


def _union(parts: tuple[Any, ...], known: _Known) -> Read:
    readers = [_reader(part, known) for part in parts]
    whole = int in parts

    def read(value: Any) -> Any:
        if whole and type(value) is int:  # float reads it, too
            return value
        found = []
        for one in readers:
            with suppress(TypeError, ValueError, KeyError):
                found.append(one(value))
                if not known.given or difference(value, found[-1]) is None:
                    return found[-1]
        if found:
            return found[0]
        raise TypeError(f"{type(value).__name__} is none of the types of a union")

    return read


def _one_of(parts: tuple[Any, ...], _: _Known) -> Read:
    table = members_by_json(parts)

    def read(value: Any) -> Any:
        for one in parts:
            if one == value and type(one) is type(value):
                return one
        if (member := member_of(value, table)) in table.values():
            return member
        raise TypeError(f"it is none of {', '.join(map(repr, parts))}")

    return read


def _exactly(kind: type) -> Read:
    return lambda value: _instance(value, kind)


def _plain(kind: Any, as_plain: Read) -> Read:
    """Return the reader of a plain type. A value of a subclass, such as a member of a StrEnum, is made a plain one."""

    def read(value: Any) -> Any:
        is_lower = isinstance(value, kind) and type(value) is not kind and type(value) is not bool
        return as_plain(value) if is_lower else _instance(value, kind)

    return read


def _items(value: Any) -> Any:
    return value if type(value) is tuple else _instance(value, list)


def _instance(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"it is of type {type(value).__name__}, not {kind.__name__}")
    return value


def _float(value: Any) -> float:
    if type(value) is not int and not isinstance(value, float):
        raise TypeError(f"it is of type {type(value).__name__}, not float")
    return float(value)


def _from_text(kind: type, parse: Read) -> Read:
    return lambda value: value if isinstance(value, kind) else parse(_instance(value, str))


def _same(value: Any) -> Any:
    return value


_SIMPLE: Final[Mapping[Any, Read]] = {
    Any: _same, object: _same, None: _exactly(type(None)), type(None): _exactly(type(None)),
    str: _plain(str, str.__str__), bool: _exactly(bool), int: _plain(int, int.__int__), float: _float,
    datetime: _from_text(datetime, datetime.fromisoformat), date: _from_text(date, date.fromisoformat),
    time: _from_text(time, time.fromisoformat), UUID: _from_text(UUID, UUID),
}  # fmt: skip
_GENERIC: Final[Mapping[Any, Callable[[tuple[Any, ...], _Known], Read]]] = {
    **dict.fromkeys((list, Sequence, MutableSequence, Iterable, Collection), _list),
    **dict.fromkeys((dict, Mapping, MutableMapping), _dict),
    **dict.fromkeys((typing.Union, types.UnionType), _union), tuple: _tuple, typing.Literal: _one_of,
    typing.Annotated: lambda parts, known: _reader(parts[0], known),
}  # fmt: skip
