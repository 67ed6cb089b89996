"""What an annotation says: the item of a list, the parameters of `Unpack`, and the form in which pydantic carries it.

Holds no values, and knows nothing of JSON but how enums are read from it.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import suppress
from typing import Any, Final

from streamq.diagnostics.safe_text import str_of
from streamq.tasks.json_reader import form_name, member_of, members_by_json, needs_table, typed_dict_fields

UNIONS: Final = (typing.Union, types.UnionType)
UNTYPED: Final = inspect.Parameter.empty  # there is no annotation
_ONE_PASS: Final = (Iterator, Generator)
_READ_AS_LIST: Final = (Iterable, Collection)
_LISTS: Final = (list, Sequence, MutableSequence, *_READ_AS_LIST)
_REBUILT: Final = ("builtins", "collections", "collections.abc")


def return_annotation(hints: Mapping[str, Any]) -> Any:
    """Return what a function gives once it has run: of an awaitable, what that gives."""
    annotation = hints.get("return", UNTYPED)
    if any(annotation is one for one in (Any, object, typing.NoReturn, typing.Never)):
        return UNTYPED
    with suppress(TypeError):
        origin = typing.get_origin(annotation)
        if isinstance(origin, type) and issubclass(origin, typing.Awaitable):
            return (typing.get_args(annotation) or (UNTYPED,))[-1]
    return annotation


def members_of(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, also of one with a name or metadata; of another annotation itself."""
    bare = _bare(annotation)
    if typing.get_origin(bare) not in UNIONS:
        return (annotation,)
    return tuple(found for one in typing.get_args(bare) for found in members_of(one))


def item_of(annotation: Any) -> Any:
    """Return the type of the items of a list, UNTYPED if it says none. None may be in the place of the list.

    Raises TypeError for an annotation that is no list.
    """
    if annotation is UNTYPED or annotation is Any or annotation is object:
        return UNTYPED
    found: list[Any] = []
    for one in map(_bare, members_of(annotation)):
        origin, parts = typing.get_origin(one) or one, typing.get_args(one)
        if one is None or one is type(None):
            continue
        if origin not in _LISTS and not (origin is tuple and parts[1:] in ((), (...,))):
            raise TypeError(f"{name_of_type(annotation)} is no list of items: annotate list[...]")
        found.append(parts[0] if parts else UNTYPED)
    if not found or UNTYPED in found:
        return UNTYPED
    return typing.Union[tuple(found)]  # noqa: UP007 - of types that are known at run time


def is_read_as_list(annotation: Any) -> bool:
    """Is a `list`, or an `Iterable`, which arrives as one, among the types of an annotation, and no tuple?"""
    found = [typing.get_origin(one) or one for one in map(_bare, members_of(annotation))]
    return tuple not in found and any(one is list or one in _READ_AS_LIST for one in found)


def name_of_type(annotation: Any) -> str:
    """Return an annotation as somebody would write it."""
    return (
        annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str_of(annotation)
    )


def unpacked_fields(annotation: Any) -> dict[str, tuple[Any, bool]] | None:
    """Return the annotation of each key of `Unpack[...]`, and whether it is required. None for other annotations."""
    if form_name(annotation) != "Unpack":  # of typing or of typing_extensions
        return None
    (kind,) = typing.get_args(annotation)
    kind = _bare(kind)
    kind = typing.get_origin(kind) or kind
    return typed_dict_fields(kind)


def _bare(annotation: Any) -> Any:
    """Return an annotation without `Annotated`, and without a name that was given to it."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


# --- the form that pydantic gets -----------------------------------------------------------------------


def for_pydantic(annotation: Any) -> Any:
    """Return an annotation as pydantic carries its values whole.

    A TypedDict keeps keys that it does not declare, as a subtype may have them, and may be that of `typing` on any
    Python. An `Iterable` is a list, which is checked when it arrives. Enum members are found by their JSON; in a union
    only those that arrive, as what is given may be a value of another of its types.
    Raises TypeError for an `Iterator`, which can be read once. Models and dataclasses are left as they are.
    """
    return _form(annotation, ())


def _form(annotation: Any, within: tuple[Any, ...]) -> Any:
    """Return the form of an annotation: itself if nothing in it is another. `within` are those that it is a part of."""
    origin = typing.get_origin(annotation)
    kind = annotation if origin is None else origin
    if kind in _ONE_PASS:
        raise TypeError(f"{name_of_type(annotation)} can be read only once: annotate Iterable[...] or list[...]")
    if kind in _READ_AS_LIST:
        return types.GenericAlias(list, tuple(_form(one, within) for one in typing.get_args(annotation) or (Any,)))
    if any(annotation is one for one in within):
        return annotation
    return _form_of_name(annotation, within) if origin is None else _form_of_generic(annotation, origin, within)


def _form_of_name(annotation: Any, within: tuple[Any, ...]) -> Any:
    """Return the form of a class, or of `type Name = ...`."""
    within = (*within, annotation)
    if type(annotation).__name__ == "TypeAliasType":
        form = _form(annotation.__value__, within)
        return annotation if form is annotation.__value__ else form
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum) and needs_table(annotation):
        return _read_by_table(annotation, members_by_json(annotation), within)
    is_typed_dict = isinstance(annotation, type) and hasattr(annotation, "__required_keys__")
    return _typed_dict(annotation, within) if is_typed_dict else annotation


def _form_of_generic(annotation: Any, origin: Any, within: tuple[Any, ...]) -> Any:
    parts = typing.get_args(annotation)
    if origin is typing.Literal:
        return _read_by_table(annotation, members_by_json(parts), within)
    annotated, union = origin is typing.Annotated, origin in UNIONS
    if union:
        within = (*within, annotation)
    if not annotated and not union and not _is_container(origin):
        return annotation
    forms = (_form(parts[0], within), *parts[1:]) if annotated else tuple(_form(one, within) for one in parts)
    if all(one is part for one, part in zip(forms, parts, strict=True)):
        return annotation
    return (typing.Annotated if annotated else typing.Union if union else origin)[forms]


def _is_container(origin: Any) -> bool:
    return isinstance(origin, type) and origin.__module__ in _REBUILT and origin not in (type, Callable)


def _typed_dict(kind: Any, within: tuple[Any, ...]) -> Any:
    """Return a TypedDict that keeps further keys. One that says itself what becomes of them is left as it is."""
    if _has_config(kind) or getattr(kind, "__closed__", None):
        return kind
    from typing_extensions import TypedDict  # noqa: PLC0415 - pydantic has brought it

    fields = {key: (_form(hint, within), required) for key, (hint, required) in typed_dict_fields(kind).items()}
    make: Any = TypedDict  # a call with fields that are known at run time
    made = make(
        kind.__name__, {key: hint if required else typing.NotRequired[hint] for key, (hint, required) in fields.items()}
    )
    made.__pydantic_config__ = {"extra": "allow"}
    return made


def _has_config(kind: Any) -> bool:
    return hasattr(kind, "__pydantic_config__") or any(map(_has_config, getattr(kind, "__orig_bases__", ())))


def _read_by_table(annotation: Any, table: Mapping[bytes, Any], within: tuple[Any, ...]) -> Any:
    """Return an annotation whose values are looked up by their JSON, where pydantic does not find them."""
    if not table:
        return annotation
    from pydantic import BeforeValidator, ValidationInfo  # noqa: PLC0415 - slow to import

    kept = _kept(within)

    def member(value: Any, info: ValidationInfo) -> Any:
        return value if info.mode == "python" and isinstance(value, kept) else member_of(value, table)

    member.__annotations__.clear()  # texts, of which pydantic would not find the names
    return typing.Annotated[annotation, BeforeValidator(member)]


def _kept(within: tuple[Any, ...]) -> tuple[type, ...]:
    """Return the types of given values that are no member by their JSON: they may be of another type of a union."""
    unions = [members_of(one) for one in within if typing.get_origin(one) in UNIONS]
    if any(len([one for one in members if one is not type(None)]) > 1 for members in unions):
        return (object,)
    return (type(None),) if unions else ()
