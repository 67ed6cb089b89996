"""Any value of any type on its way through JSON: it comes back equal and of its types, or it is refused."""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import uuid
from collections import deque
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr
from typing_extensions import TypedDict

from streamq.tasks.arguments import Arguments
from streamq.tasks.difference import difference
from streamq.tasks.json_type import JsonType, UnfitError
from streamq.wire.message import dumps
from tests.tasks.test_json_type import BERLIN, NAIVE, Color, Day, remove_pydantic


@pytest.fixture(params=["pydantic", "core"])
def extra(request, monkeypatch):
    """With the extra, and as if it were not installed."""
    if request.param == "core":
        remove_pydantic(monkeypatch)
    return request.param


class Word(enum.StrEnum):
    """Its members are equal to their texts, of which some are those of TEXTS."""

    A = "a"
    NONE = ""


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1


class Private(BaseModel):
    a: int = 0
    _p: int = PrivateAttr(5)


def private(a: int, p: int) -> Private:
    made = Private(a=a)
    made._p = p
    return made


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WHOLE = st.integers(-(2**63), 2**63 - 1)
BETWEEN = NAIVE.replace(year=1970), NAIVE.replace(year=2200)
TWICE = datetime(2026, 10, 25, 0, tzinfo=UTC)  # in Berlin, 2:00 to 3:00 comes twice from here on
ZONED = st.integers(-3600, 3 * 3600).map(lambda second: (TWICE + timedelta(seconds=second)).astimezone(BERLIN))
MOMENTS = st.datetimes(*BETWEEN) | st.datetimes(*BETWEEN, timezones=st.just(UTC)) | ZONED
PART_NAMES = st.sampled_from(["part_0", "part_1"]) | TEXTS
LEAVES = [
    (int, WHOLE),
    (str, TEXTS),
    (bool, st.booleans()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (type(None), st.none()),
    (datetime, MOMENTS),
    (date, st.dates()),
    (uuid.UUID, st.uuids()),
    (Color, st.sampled_from(Color)),
    (Word, st.sampled_from(Word)),
    (Level, st.sampled_from(Level)),
    (time, st.times()),
    (Literal["a", 2], st.sampled_from(["a", 2])),
    (dict, st.dictionaries(PART_NAMES, WHOLE, max_size=3)),
]
ONLY_CORE = [(Day, st.sampled_from(Day))]  # pydantic does not read it back where it is a field of a dataclass
ONLY_PYDANTIC = [
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=3)), (timedelta, st.timedeltas()),
    (Private, st.builds(private, st.integers(0, 9), st.sampled_from([5, 5, 5, 6]))),
    (deque[int], st.builds(deque, st.lists(WHOLE, max_size=2), st.sampled_from([None, None, None, 2]))),
    (dict[Word, int], st.dictionaries(st.sampled_from(Word), WHOLE)),
    (set[Level], st.sets(st.sampled_from(Level))), (set[int], st.sets(st.integers(0, 3))),
    (Path, st.sampled_from([Path("/a"), Path("b")])), (Annotated[int, Field(ge=0)], st.integers(0, 9)),
]  # fmt: skip


def typed(leaves, *, unions: bool):
    """Return a strategy of annotations, each with a strategy of its values."""

    def larger(inner):
        pairs = st.lists(inner, min_size=1, max_size=3)
        found = (
            inner.map(lambda one: (list[one[0]], st.lists(one[1], max_size=3)))
            | inner.map(lambda one: (dict[str, one[0]], st.dictionaries(PART_NAMES, one[1], max_size=3)))
            | pairs.map(lambda all_: (tuple[tuple(one[0] for one in all_)], st.tuples(*[one[1] for one in all_])))
            | pairs.map(_dataclass)
        )
        if unions:
            found |= pairs.map(lambda all_: (_union([one[0] for one in all_]), st.one_of([one[1] for one in all_])))
        return found

    found = st.recursive(st.sampled_from(leaves), larger, max_leaves=6)
    return found | st.lists(found, min_size=1, max_size=3).map(_typed_dict)


def _union(members):
    return functools.reduce(operator.or_, members)


def _dataclass(members):
    names = [f"part_{at}" for at in range(len(members))]
    made = dataclasses.make_dataclass("Made", [(name, one[0]) for name, one in zip(names, members, strict=True)])
    made.__module__ = __name__
    return made, st.builds(made, **dict(zip(names, [one[1] for one in members], strict=True)))


def _typed_dict(members):
    """Return a TypedDict, and values of subtypes of it: with keys that it does not declare."""
    parts = {f"part_{at}": one for at, one in enumerate(members)}
    made = TypedDict("MadeDict", {name: one[0] for name, one in parts.items()})  # type: ignore[misc]
    declared = st.fixed_dictionaries({name: one[1] for name, one in parts.items()})
    return made, st.builds(lambda more, values: more | values, st.dictionaries(TEXTS, WHOLE, max_size=2), declared)


def comparable(value):
    """Return what is equal for two values that are the same, types included: `==` takes 1, True and 1.0 for equal.

    Aware datetimes are in UTC: those of two zones are not equal in an hour that comes twice.
    """
    kind, found = type(value), value
    if isinstance(value, datetime) and value.tzinfo is not None:
        found = value.astimezone(UTC)
    elif isinstance(value, datetime | time):
        found = value, value.fold
    elif isinstance(value, dict):
        found = {comparable(key): comparable(part) for key, part in value.items()}
    elif isinstance(value, list | tuple | deque):
        found = getattr(value, "maxlen", None), [*map(comparable, value)]
    elif isinstance(value, set):
        found = {*map(comparable, value)}
    elif dataclasses.is_dataclass(value):
        found = {one.name: comparable(getattr(value, one.name)) for one in dataclasses.fields(value)}
    elif isinstance(value, Private):
        found = value.a, value._p
    return kind, found


def has_what_json_lacks(value):
    """Is there anything in a value that no annotation can carry?"""
    if isinstance(value, datetime | time):
        return value.tzinfo is None and value.fold == 1
    if isinstance(value, Private):
        return value._p != 5
    if isinstance(value, deque) and value.maxlen is not None:
        return True
    if dataclasses.is_dataclass(value):
        return any(has_what_json_lacks(getattr(value, one.name)) for one in dataclasses.fields(value))
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(map(has_what_json_lacks, parts))


@pytest.mark.parametrize("unions", [False, True])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_type_makes_the_round_trip(data, extra, unions):
    """Without unions each does. With them, one that would arrive as another member is refused, and none changes.

    What JSON lacks is refused: a private attribute, the fold of a naive time, the maxlen of a deque.
    """
    leaves = LEAVES + (ONLY_CORE if extra == "core" else ONLY_PYDANTIC)
    annotation, values = data.draw(typed(leaves, unions=unions))
    value = data.draw(values)
    kind = JsonType(annotation)
    assert kind.problem == ""
    try:
        payload = kind.encode(value)
    except UnfitError:
        assert unions or has_what_json_lacks(value)
        return
    assert not has_what_json_lacks(value)
    back = kind.decode(payload)
    assert comparable(back) == comparable(value)
    assert difference(value, back) is None
    assert comparable(as_arguments(annotation, value)) == comparable(([value], {"more": value}))


def as_arguments(annotation, value):
    """Return what a handler gets that is called with this value, by place and by name."""

    async def handler(*args, **kwargs): ...

    handler.__annotations__ = {"args": annotation, "kwargs": annotation}
    arguments = Arguments("carry", handler, validate=True)
    args, kwargs = arguments.sendable((value,), {"more": value})
    assert arguments.converter is not None
    got = arguments.converter(*orjson.loads(dumps([args, kwargs])))
    return [*got[0]], {**got[1]}
