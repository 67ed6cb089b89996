"""A type whose values go through JSON and come back equal, or are refused.

With the extra `pydantic` it is any annotation that pydantic knows. Without it, `json_reader` reads what orjson writes.
"""

from __future__ import annotations

import datetime as dt
import enum
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any, Final, NamedTuple, get_args, get_origin

import orjson

from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.tasks.annotations import UNIONS, UNTYPED, for_pydantic, is_read_as_list, name_of_type
from streamq.tasks.conversion import ROUNDED, lost_member, lost_part, made_a_member, made_objects
from streamq.tasks.difference import Change, classes_in, difference, first_change
from streamq.tasks.json_reader import UnreadableTypeError, fitter_of, reader_of
from streamq.wire.bounds import shown
from streamq.wire.message import dumps

_EXACT: Final = frozenset({int, str, bool, float, type(None)})  # JSON gives back what it was given
_SHOWN: Final = 5  # problems of one value
_LOOKED_AT: Final = 8  # objects that were made of parts of one value; each takes a look at the whole
_CUT: Final = 80  # characters of a value
_CHANGED: Final = (
    "it would arrive changed: JSON does not carry it as {} writes it (a secret, an excluded field, another type than "
    "the annotated one)"
)
_OTHER: Final = "it would arrive changed: {} reads it as another of its types (a dict as a model)"
_PLAIN: Final = "it would arrive changed: {} reads it as a plain value, not as the member of the enum"
_MEMBER: Final = "it would arrive changed: {} reads it as a member of an enum"


class Problem(NamedTuple):
    """What is wrong with a part of a value (empty: the whole). `shown` is that part, empty if it may be a secret."""

    place: str
    why: str
    shown: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.why}" if self.place else self.why


class UnfitError(TypeError):
    """A value does not fit its type, or would not come back from JSON as it was. `problems` are the first few."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


class _Way(NamedTuple):
    """The way of values through JSON and back: what is `fitted` is written, and what is written can be read.

    `is_one` says whether a value is of the type without a conversion.
    """

    fitted: Callable[[Any], Any]
    written: Callable[[Any], bytes]
    read: Callable[[bytes], Any]
    is_one: Callable[[Any], bool]


class JsonType:
    """A type on its way through JSON: that of `annotation`. `default` writes what JSON lacks, where it says nothing.

    It never raises when it is made: `problem` says why an annotation cannot be used. Its values are written as they
    are, and cannot be decoded. `exact` are the types of values that go as they are; None if every value does.
    """

    def __init__(self, annotation: Any = UNTYPED, *, default: Callable[[Any], Any] | None = None) -> None:
        self.annotation = annotation
        self.problem = ""
        self.exact = None if annotation is UNTYPED else _exact_types(annotation)
        self._default = default
        self._way: _Way | None = None
        if self.exact == frozenset():
            try:
                self.prepare()
            except Exception as error:  # noqa: BLE001 - pydantic raises many kinds, and so do classes of users
                self.problem = str_of(error)
                self.exact = None

    def prepare(self) -> _Way | None:
        """Return the way of values that do not go as they are, None if all do. Loads pydantic, if there is one."""
        if self._way is None and self.exact is not None:
            self._way = _way(self.annotation)
        return self._way

    def __repr__(self) -> str:
        return f"<JsonType {name_of_type(self.annotation)}>"

    @classmethod
    def unusable(cls, problem: str, *, default: Callable[[Any], Any] | None = None) -> JsonType:
        """Return the type of an annotation that cannot be read."""
        made = cls(default=default)
        made.problem = problem
        return made

    @property
    def takes_none(self) -> bool:
        """Is None sent as it is?"""
        return self.exact is None or type(None) in self.exact

    def sendable(self, value: Any) -> Any:
        """Return a value as JSON takes it: itself, or a fragment of JSON. Raises what `encode` raises."""
        exact = self.exact
        if exact is None or type(value) in exact or type(value) is orjson.Fragment:
            return value
        return orjson.Fragment(self.encode(value))

    def received(self, value: Any) -> Any:
        """Return what somebody sent of whom this was read, as JSON. Raises UnfitError if it is none of this type."""
        exact = self.exact
        if exact is None or type(value) in exact:
            return value
        try:
            payload = dumps(value)
        except TypeError as error:  # orjson reads lists that are deeper than those it writes
            raise UnfitError(Problem("", str_of(error))) from error
        return self._read(payload)

    def encode(self, value: Any) -> bytes:
        """Return a value as JSON. Raises UnfitError for one that `decode` would not give back.

        Also raises what the encoder raises, for what is no JSON at all.
        """
        exact = self.exact
        if exact is not None and type(value) in exact and type(value) is not float:  # NaN is a float
            return orjson.dumps(value)
        if exact is None or type(value) in exact or (way := self.prepare()) is None:
            return dumps(value, self._default)
        fitted = way.fitted(value)
        payload = way.written(fitted)
        back = way.read(payload)
        if difference(value, back) is not None:
            self._check_conversion(way, value, fitted, back)
        return payload

    def _check_conversion(self, way: _Way, value: Any, fitted: Any, back: Any) -> None:
        """Raise UnfitError unless a value that does not arrive as it is was converted, and nothing of it is lost."""
        name = name_of_type(self.annotation)
        if (changed := first_change(fitted, back)) is not None:
            raise UnfitError(Problem(changed.place, _why_changed(fitted, back, changed, name)))
        if (lost := lost_part(value, fitted)) is not None:
            raise UnfitError(Problem(lost.place, lost.why.format(name)))
        named = frozenset(one for one in classes_in(self.annotation) if isinstance(one, enum.EnumType))
        if (member := lost_member(value, fitted, named)) is not None:
            raise UnfitError(Problem(member, _PLAIN.format(name)))
        # Of the whole as it was given, too: other parts may be conversions, or not.
        for at, (made, otherwise) in enumerate(islice(made_objects(value, fitted), _LOOKED_AT)):
            if way.is_one(otherwise) or (at == 0 and otherwise is not value and way.is_one(value)):
                raise UnfitError(Problem(made, _OTHER.format(name)))

    def decode(self, payload: bytes) -> Any:
        """Return the value that JSON stands for. Raises UnfitError if it is none of this type."""
        if self.problem:
            raise UnfitError(Problem("", self.problem))
        if self.exact == frozenset():
            return self._read(payload)
        value = orjson.loads(payload)
        return value if self.exact is None or type(value) in self.exact else self._read(payload)

    def _read(self, payload: bytes) -> Any:
        way = self.prepare()
        return orjson.loads(payload) if way is None else way.read(payload)


def _why_changed(fitted: Any, back: Any, changed: Change, name: str) -> str:
    """Return why a value of the type of this name does not come back as it is."""
    if changed.why:
        return changed.why
    if (lost := lost_part(fitted, back)) is not None and lost.why == ROUNDED:
        return ROUNDED
    return (_MEMBER if made_a_member(fitted, back) == changed.place else _CHANGED).format(name)


def has_pydantic() -> bool:
    """Is the extra `pydantic` installed?"""
    return find_spec("pydantic") is not None


def _exact_types(annotation: Any) -> frozenset[type]:
    """Return the types of an annotation that JSON gives back as they are. None if there are other types in it."""
    members = get_args(annotation) if get_origin(annotation) in UNIONS else (annotation,)
    found = [type(None) if one is None else one for one in members]
    plain = all(type(one) is type for one in found)  # what else an annotation is may have no hash
    return frozenset(found) if plain and _EXACT.issuperset(found) else frozenset()


# --- the two ways --------------------------------------------------------------------------------------


def _way(annotation: Any) -> _Way:
    if annotation is Any or annotation is object:
        return _Way(_itself, dumps, orjson.loads, _always)
    if annotation is None or not has_pydantic():
        return _way_of_reader(annotation)
    with _real_dates():
        from pydantic import PydanticUserError  # noqa: PLC0415 - slow to import

    try:
        return _way_of_pydantic(annotation)
    except PydanticUserError as error:
        if error.code == "typed-dict-version":  # typing.TypedDict in a class, before Python 3.12
            with suppress(UnreadableTypeError):
                return _way_of_reader(annotation)
        raise


def _itself(value: Any) -> Any:
    return value


def _always(_: Any) -> bool:
    return True


def _way_of_reader(annotation: Any) -> _Way:
    reader, fitter = reader_of(annotation), fitter_of(annotation)

    def fitted(value: Any) -> Any:
        try:
            return fitter(_as_list(value) if is_read_as_list(annotation) else value)
        except Exception as error:  # the constructor of a dataclass may raise anything
            raise UnfitError(Problem("", str_of(error), repr_of(value, _CUT))) from error

    def read(payload: bytes) -> Any:
        try:
            return reader(orjson.loads(payload))
        except Exception as error:  # the constructor of a dataclass may raise anything
            raise UnfitError(Problem("", str_of(error), shown(payload))) from error

    return _Way(fitted, dumps, read, lambda value: difference(value, fitted(value)) is None)


def _as_list(value: Any) -> Any:
    """Return the items of a generator, a set, a range or a tuple as a list, as pydantic does. Others as they are."""
    whole = isinstance(value, list | str | bytes | bytearray | memoryview | Mapping) or is_dataclass(value)
    return value if whole or not isinstance(value, Iterable) else [*value]


def _adapter_of(annotation: Any) -> Any:
    """Return pydantic's adapter of an annotation. Raises TypeError for what is no type, and what pydantic raises."""
    formed = for_pydantic(annotation)
    with _real_dates():
        from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter  # noqa: PLC0415 - slow to import

        try:
            adapter: Any = TypeAdapter(formed)
        except PydanticSchemaGenerationError:  # a class that pydantic does not know: instances are taken as they are
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".* is not a Python type")  # of such it would take any value
                adapter = TypeAdapter(formed, config=ConfigDict(arbitrary_types_allowed=True))
    if not adapter.pydantic_complete:
        raise TypeError(
            f"a name in {name_of_type(annotation)} is not found: write an alias that holds itself with "
            "typing_extensions.TypeAliasType, or as 'type Name = ...' (Python 3.12)"
        )
    return adapter


@contextmanager
def _real_dates() -> Iterator[None]:
    """Undo for this block what freezegun does to `datetime`: pydantic would not know the real classes by its own."""
    freezegun: Any = sys.modules.get("freezegun.api")
    dates: Any = dt
    if freezegun is None or dates.date is not freezegun.FakeDate:
        yield
        return
    dates.datetime, dates.date = freezegun.real_datetime, freezegun.real_date
    try:
        yield
    finally:
        dates.datetime, dates.date = freezegun.FakeDatetime, freezegun.FakeDate


def _way_of_pydantic(annotation: Any) -> _Way:
    from pydantic_core import PydanticSerializationError, ValidationError  # noqa: PLC0415

    adapter = _adapter_of(annotation)

    def fitted(value: Any) -> Any:
        try:
            return adapter.validate_python(value, by_alias=True, by_name=True)
        except ValidationError as error:
            raise UnfitError(*_problems(error)) from None

    def written(value: Any) -> bytes:
        # By name: what a field is called for validation and for serialization may differ.
        try:
            return dumps(adapter.dump_python(value, mode="json", round_trip=True, by_alias=False, warnings="error"))
        except PydanticSerializationError as error:
            raise UnfitError(Problem("", str_of(error))) from None

    def read(payload: bytes) -> Any:
        try:
            return adapter.validate_json(payload, by_alias=True, by_name=True)
        except ValidationError as error:
            raise UnfitError(*_problems(error)) from None

    def is_one(value: Any) -> bool:
        try:  # pydantic writes a dict for a model only with a warning
            adapter.dump_python(value, round_trip=True, by_alias=False, warnings="error")
        except Exception:  # noqa: BLE001 - serializers of users, for a value of another type
            return False
        return True

    return _Way(fitted, written, read, is_one)


def _problems(error: Any) -> list[Problem]:
    """Return what a ValidationError of pydantic says."""
    found = error.errors(include_url=False, include_context=False)
    problems = [
        Problem(".".join(map(str, one["loc"])), one["msg"], repr_of(one["input"], _CUT)) for one in found[:_SHOWN]
    ]
    if len(found) > _SHOWN:
        problems.append(Problem("", f"and {len(found) - _SHOWN} more"))
    return problems
