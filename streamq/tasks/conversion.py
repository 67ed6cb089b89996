"""What a type has made of a value: which parts of it are lost, and where it became a model or a member of an enum."""

from __future__ import annotations

import copy
import enum
import typing
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeVar

from streamq.diagnostics.safe_text import str_of
from streamq.tasks.difference import below, field_names

Found = TypeVar("Found")
_KeyPath = tuple[Any, ...]  # a key, and where to look in its value
ROUNDED: Final = "it would arrive rounded: a float does not have as many digits"
_NO_KEY: Final = "it would be lost: {} has no such key"
_TWICE: Final = "it would be lost: another key is given for the same field of {}"


class Lost(NamedTuple):
    """A part of a value that a type does not hold: `place` is the path to it. `why` has `{}` for the type's name."""

    place: str
    why: str


def lost_part(given: Any, fitted: Any, path: str = "") -> Lost | None:
    """Return the first part of a value that is missing in what a type has made of it. None if none is.

    A dict may have become a model, a list a set: these are conversions. A key that has no place there is lost.
    """
    if given is fitted:
        return None
    if type(given) is int and type(fitted) is float:
        return None if given == fitted else Lost(path, ROUNDED)
    gone: Mapping[Any, str] = {}
    if isinstance(given, Mapping):
        gone = _gone_keys(given, fitted)
    elif isinstance(given, type(fitted)):
        taken = field_names(type(fitted))
        gone = dict.fromkeys((name for name in field_names(type(given)) if name not in taken), _NO_KEY)  # a subclass
    for name, why in gone.items():
        return Lost(below(path, name), why)
    return _first(lost_part, given, fitted, path)


def made_objects(given: Any, fitted: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield where a type has made a model or a dataclass of a dict, list or scalar: the path, and the whole without it.

    That is the fitted value with what was given in that one place. A part that is no such thing itself may hold one.
    """
    if given is fitted:
        return
    if field_names(type(fitted)) and not field_names(type(given)):
        yield path, given
        return
    for name, one, other in _common_parts(given, fitted):
        for place, part in made_objects(one, other, below(path, name)):
            yield place, _with_part(fitted, name, part)


def made_a_member(given: Any, fitted: Any, path: str = "") -> str | None:
    """Return the path to the first value of which a type has made an enum member. None if there is none."""
    if given is fitted:
        return None
    if isinstance(fitted, enum.Enum) and not isinstance(given, enum.Enum):
        return path
    return _first(made_a_member, given, fitted, path)


def lost_member(given: Any, fitted: Any, kinds: frozenset[Any], path: str = "") -> str | None:
    """Return the path to the first member of one of these enums of which a type has made a plain value, or None."""
    if given is fitted:
        return None
    if type(given) in kinds:
        return None if isinstance(fitted, enum.Enum) else path
    if isinstance(given, AbstractSet | Mapping) and isinstance(fitted, AbstractSet | Mapping):
        lost = kinds.intersection(map(type, given)).difference(map(type, fitted))
        if lost:
            return path
    return _first(partial(_lost_member, kinds), given, fitted, path)


def _lost_member(kinds: frozenset[Any], given: Any, fitted: Any, path: str) -> str | None:
    return lost_member(given, fitted, kinds, path)


# --- lost ----------------------------------------------------------------------------------------------


def _first(find: Callable[[Any, Any, str], Found | None], given: Any, fitted: Any, path: str) -> Found | None:
    """Return what is found first in the parts which two values have in common."""
    found = (find(one, other, below(path, name)) for name, one, other in _common_parts(given, fitted))
    return next((place for place in found if place is not None), None)


def _common_parts(given: Any, fitted: Any) -> Iterator[tuple[Any, Any, Any]]:
    if isinstance(given, list | tuple) and isinstance(fitted, list | tuple):
        yield from zip(range(len(given)), given, fitted, strict=False)
        return
    parts, others = _named_parts(given), _named_parts(fitted)
    yield from ((name, part, others[name]) for name, part in parts.items() if name in others)


def _with_part(whole: Any, name: Any, part: Any) -> Any:
    """Return a list, tuple or dict with another part in one place, and a copy of an object that holds it."""
    if isinstance(whole, Mapping):
        return {**whole, name: part}
    if isinstance(whole, list | tuple):
        parts = [*whole[:name], part, *whole[name + 1 :]]
        return parts if isinstance(whole, list) else tuple(parts)
    made = copy.copy(whole)
    object.__setattr__(made, name, part)  # also of one that is frozen, or that checks what it is given
    return made


def _named_parts(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    return {name: getattr(value, name, None) for name in field_names(type(value))}


def _gone_keys(given: Mapping[Any, Any], fitted: Any) -> dict[Any, str]:
    """Return the keys of a dict that have no place in what was made of it, each with the reason."""
    if isinstance(fitted, Mapping):
        gone = [key for key in given if key not in fitted] if len(fitted) < len(given) else []  # else converted
        return dict.fromkeys(gone, _NO_KEY)
    kind: Any = type(fitted)
    if (of_fields := _keys_of_fields(kind)) is None:
        return {}
    extra = (getattr(fitted, "__pydantic_extra__", None) or {}).keys() - {*field_names(kind)}
    taken = [found for paths in of_fields if (found := _first_present(paths, given)) is not None]
    others = {path for paths in of_fields for path in paths}
    return {
        ".".join(map(str_of, path)): _TWICE if path in others else _NO_KEY
        for path in _unread(given, taken)
        if path[0] not in extra and not _holds(fitted, path[0], given[path[0]])
    }


def _unread(given: Mapping[Any, Any], paths: list[_KeyPath]) -> Iterator[_KeyPath]:
    """Yield the paths to the keys of a dict from which no field is read."""
    for key, value in given.items():
        below = [path[1:] for path in paths if path[0] == key]
        if not below:
            yield (key,)
        elif () not in below and isinstance(value, Mapping):
            yield from ((key, *rest) for rest in _unread(value, below))


def _first_present(paths: tuple[_KeyPath, ...], given: Mapping[Any, Any]) -> _KeyPath | None:
    """Return which of the keys of a field is there: the one that its value is taken from."""
    return next((path for path in paths if _is_there(path, given)), None)


def _is_there(path: _KeyPath, given: Any) -> bool:
    with suppress(LookupError, TypeError):
        for key in path:
            given = given[key]
        return True
    return False


def _holds(fitted: Any, key: Any, value: Any) -> bool:
    """Has an object made by itself what was given for a field that it does not take, such as one with `init=False`?"""
    if key not in (getattr(type(fitted), "__dataclass_fields__", None) or ()):
        return False
    return _is_made(type(fitted), key) and bool(getattr(fitted, key, None) == value)


@lru_cache(maxsize=256)
def _keys_of_fields(kind: type) -> tuple[tuple[_KeyPath, ...], ...] | None:
    """Return the keys from which each field of a model or a dataclass is read, the first that is there. None if any."""
    names = field_names(kind)
    if not names or _reshapes(kind):
        return None
    aliases = _aliases_of(kind)
    return tuple((*aliases.get(name, ()), (name,)) for name in names if not _is_made(kind, name))


def _is_made(kind: Any, name: str) -> bool:
    """Does a dataclass set a field itself, so that no key gives it: one with `init=False`, or a `ClassVar`?"""
    found = (getattr(kind, "__dataclass_fields__", None) or {}).get(name)
    return found is not None and (not found.init or found._field_type.name == "_FIELD_CLASSVAR")  # noqa: SLF001


def _reshapes(kind: type) -> bool:
    """Whether a validator of a model gets the whole dict before its fields do: what it takes is its own affair."""
    validators = getattr(getattr(kind, "__pydantic_decorators__", None), "model_validators", {})
    return any(one.info.mode != "after" for one in validators.values())


def _aliases_of(kind: Any) -> dict[str, list[_KeyPath]]:
    """Return the keys under which each field is read, besides its name."""
    infos: dict[str, list[Any]] = {
        name: [one] for name, one in (getattr(kind, "__pydantic_fields__", None) or {}).items()
    }
    if not infos:
        infos = {name: [getattr(one, "default", None)] for name, one in kind.__dataclass_fields__.items()}
        with suppress(Exception):  # of names that only pydantic could resolve
            for name, hint in typing.get_type_hints(kind, include_extras=True).items():
                infos[name] += getattr(hint, "__metadata__", ())
    return {name: [key for info in found for key in _aliases(info)] for name, found in infos.items()}


def _aliases(info: Any) -> list[_KeyPath]:
    alias = getattr(info, "validation_alias", None) or getattr(info, "alias", None)
    choices = [one for one in getattr(alias, "choices", (alias,)) if one is not None]
    return [tuple(getattr(one, "path", None) or (one,)) for one in choices]
