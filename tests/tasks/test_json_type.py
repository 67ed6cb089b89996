"""Values of declared types on their way through JSON, with pydantic and without it: they come back, or are refused."""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
import uuid
from collections import deque
from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeVar
from zoneinfo import ZoneInfo

import orjson
import pytest
from freezegun import freeze_time
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    SecretStr,
    computed_field,
    field_serializer,
)
from typing_extensions import TypedDict

from streamq.tasks import json_type
from streamq.tasks.arguments import Arguments
from streamq.tasks.difference import difference
from streamq.tasks.json_type import JsonType, UnfitError
from streamq.wire.message import dumps

T = TypeVar("T")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(params=["pydantic", "core"])
def extra(request, monkeypatch):
    """With the extra, and as if it were not installed."""
    if request.param == "core":
        remove_pydantic(monkeypatch)
    return request.param


def remove_pydantic(monkeypatch) -> None:
    monkeypatch.setattr(json_type, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    monkeypatch.setitem(sys.modules, "pydantic_core", None)


class Color(enum.Enum):
    RED = "red"
    BLUE = 7


@dataclasses.dataclass
class Point:
    x: int
    at: datetime
    next: Point | None = None


class Pair(NamedTuple):
    name: str
    when: date


class Row(TypedDict, total=False):
    key: str
    made: datetime


class Day(enum.Enum):
    """Values that JSON does not give back."""

    FIRST = date(2026, 1, 1)
    PAIR = (1, "a")


class Base(TypedDict):
    id: int


class Plain:
    def __init__(self, n: int) -> None:
        self.n = n


UserId = NewType("UserId", int)

# --- what both carry -----------------------------------------------------------------------------------

BOTH = [
    (int, 5), (float, 1.5), (str, "a\0b"), (bool, True), (None, None), (int | None, None), (UserId, 5),
    (datetime, NOON), (datetime, NAIVE), (date, date(2026, 1, 31)), (time, time(1, 2, 3)),
    (uuid.UUID, uuid.UUID(int=7)), (Color, Color.BLUE), (Point, Point(1, NOON, Point(2, NOON))),
    (Row, {"made": NOON}), (Literal["a", 1], 1), (list[datetime], [NOON]),
    (tuple[int, datetime], (1, NOON)), (tuple[date, ...], (date(2026, 1, 1),)), (dict[str, Color], {"a": Color.RED}),
    (datetime | int, 5), (Point | None, Point(1, NOON)), (Annotated[int, "unit"], 5), (Any, {"a": [1, None]}),
    (dict[str, list[tuple[int, Color]]], {"a": [(1, Color.RED)]}), (dict, {"a": 1}), (list, [1, "a"]),
    (time, time(1, 2, tzinfo=UTC)),
    (time, time(1, 2, tzinfo=timezone(timedelta(hours=-3)))), (Day, Day.FIRST), (dict[str, Day], {"a": Day.PAIR}),
    (Literal[Color.RED, "b"], Color.RED), (Literal[Day.PAIR], Day.PAIR), (list[Base], [{"id": 1, "total": 99}]),
    (Base | None, {"id": 1, "more": {"a": [1]}}), (Iterable[int], [1, 2]), (Iterable, [1, "a"]),
    (dict[str, Annotated[Iterable[date], "days"]], {"a": [date(2026, 1, 1)]}), (Collection[date], [date(2026, 1, 1)]),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), BOTH, ids=str)
def test_a_value_comes_back_equal_and_of_its_type(annotation, value, extra):
    kind = JsonType(annotation)
    back = kind.decode(kind.encode(value))
    assert back == value
    assert difference(value, back) is None


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (float, math.nan), (list[float], [math.inf]), (int, 2**70), (str, "\ud800"), (int, "x"), (Color, "green"),
        (list[int], ["x"]), (tuple[int, int], (1, 2, 3)), (Point, {"x": 1}), (Row, {"made": "soon"}),
        (Literal["a"], "b"), (Any, NOON), (Any, (1, 2)), (Any, {1}), (dict[str, Any], {"a": NOON}), (date, 5.5),
        (int | None, "x"), (float, 2**53 + 1), (list[float], [2**53 + 1]), (time, time(1, tzinfo=BERLIN)),
        (datetime, datetime(1850, 1, 1, tzinfo=BERLIN)), (Literal[Color.RED], "blue"), (Day, [1, "b"]),
        (Base, {"id": 1, "at": NOON}), (Base, {"total": 1}),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_cannot_make_the_trip_is_refused(annotation, value, extra):
    with pytest.raises(TypeError):  # UnfitError is one
        JsonType(annotation).encode(value)


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [(int, b'"x"'), (Point, b"5"), (Color, b'"green"'), (tuple[int, int], b"[1]"), (Row, b"[]"), (datetime, b'"soon"')],
    ids=str,
)
def test_what_is_none_of_the_type_is_no_value(annotation, payload, extra):
    with pytest.raises(UnfitError):
        JsonType(annotation).decode(payload)


def test_without_a_type_json_is_what_there_is(extra):
    kind = JsonType()
    assert kind.decode(kind.encode((1, NOON))) == [1, NOON.isoformat()]
    assert kind.sendable(value := object()) is value


def test_plain_values_are_not_looked_at_twice(extra):
    """The common case costs a look at the type of the value."""
    kind = JsonType(str | None)
    assert kind.sendable("a") == "a"
    assert kind.received(None) is None


def test_a_subclass_of_a_plain_type_arrives_as_that_type(extra):
    class Level(enum.IntEnum):
        HIGH = 3

    kind = JsonType(int)
    assert kind.decode(kind.encode(Level.HIGH)) == 3


# --- without pydantic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("annotation", [Decimal, set[int], Plain, bytes, BaseModel, list[Plain], "no type"], ids=str)
def test_without_pydantic_a_type_that_cannot_be_read_says_so(annotation, monkeypatch):
    """The result is kept as JSON; who asks for it is told the remedy."""
    remove_pydantic(monkeypatch)
    kind = JsonType(annotation)
    assert kind.encode([1]) == b"[1]"
    with pytest.raises(UnfitError, match=r"streamq\[pydantic\]"):
        kind.decode(b"[1]")


# --- pydantic ------------------------------------------------------------------------------------------


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    when: datetime
    side: int

    @computed_field
    @property
    def area(self) -> int:
        return self.side**2


class Aliased(BaseModel):
    x: int = Field(0, validation_alias="in_x", serialization_alias="out_x")
    y: int = Field(0, alias="Y")


class Swapped(BaseModel):
    """Each field is called as the other: which one is meant cannot be told."""

    x: int = Field(0, alias="y")
    y: int = Field(0, alias="x")


class Raw(BaseModel):
    data: Json[list[int]]
    blob: bytes = b""
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]
    cats: list[Cat] = []


class Box(BaseModel, Generic[T]):
    item: T


class Secret(BaseModel):
    token: SecretStr


class Revealed(Secret):
    @field_serializer("token")
    def _reveal(self, token: SecretStr) -> str:
        return token.get_secret_value()


class Excluded(BaseModel):
    a: int
    token: str = Field("", exclude=True)


class Derived(Cat):
    lives: int = 9


class Numbers(BaseModel):
    items: Iterable[int]  # pydantic makes it an iterator, which is read once


class Again(BaseModel):
    model_config = ConfigDict(revalidate_instances="always")
    x: int = 0


class AgainMore(Again):
    y: int = 0


class Private(BaseModel):
    a: int
    _cache: int = 0


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Strict, Strict(when=NOON, side=2)), (Aliased, Aliased(in_x=5, Y=6)), (Raw, Raw(data="[1]", blob=b"_w==")),
        (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(kind="dog", cats=[Cat(kind="cat")])),
        (Box[datetime], Box[datetime](item=NOON)), (Revealed, Revealed(token="x")), (Private, Private(a=1)),
        (Decimal, Decimal("1.10")), (set[uuid.UUID], {uuid.UUID(int=1)}), (bytes, b"x"), (complex, 1 + 2j),
        (timedelta, timedelta(seconds=1.5)), (Path, Path("/a")), (dict[date, int], {date(2026, 1, 1): 1}),
        (UserId | str, "5"), (bytes | int, b"x"), (date | datetime, datetime(2026, 1, 1, tzinfo=UTC)),
        (frozenset[tuple[int, str]], frozenset({(1, "a")})), (list[Decimal | float], [Decimal("1.5")]),
        (Pair, Pair("a", date(2026, 1, 31))),
    ],
    ids=str,
)  # fmt: skip
def test_what_pydantic_knows_comes_back(annotation, value):
    kind = JsonType(annotation)
    back = kind.decode(kind.encode(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value", "place"),
    [
        (SecretStr, SecretStr("hunter2"), ""), (list[Secret], [Secret(token="hunter2")], "0.token"),
        (Excluded, Excluded(a=1, token="hunter2"), "token"), (Cat, Derived(kind="cat"), ""),
        (Box, Box(item=Decimal(1)), "item"), (Numbers, Numbers(items=[1]), "items"), (Again, AgainMore(y=5), "y: "),
        (Swapped, Swapped(x=1, y=2), ""), (Decimal, Decimal("NaN"), ""),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_be_lost_is_refused_with_its_place_and_without_its_value(annotation, value, place):
    with pytest.raises(UnfitError) as caught:
        JsonType(annotation).encode(value)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).startswith(place)


def test_an_iterator_is_sent_once_as_a_list():
    kind = JsonType(list[int])
    sent = kind.sendable(n for n in range(3))
    assert kind.sendable(sent) is sent
    assert orjson.dumps(sent) == b"[0,1,2]"


@pytest.mark.parametrize("annotation", [list[int], Iterable[int], Collection[int], Annotated[list[int], "rows"] | None])
@pytest.mark.parametrize("made", [iter, set, frozenset, tuple, deque, list], ids=lambda made: made.__name__)
def test_whatever_has_items_is_sent_as_a_list(annotation, made, extra):
    kind = JsonType(annotation)
    assert kind.decode(kind.encode(made([1, 2]))) == [1, 2]
    assert kind.decode(kind.encode(range(2))) == [0, 1]
    assert kind.decode(kind.encode(n for n in range(2))) == [0, 1]


@pytest.mark.parametrize("value", ["ab", {"a": 1}, b"ab", Point(1, NOON), 5], ids=str)
def test_what_is_no_list_of_items_is_not_sent_as_one(value, extra):
    with pytest.raises(TypeError):
        JsonType(Iterable[str]).encode(value)


def test_a_tuple_stays_one_if_the_annotation_has_tuples(extra):
    kind = JsonType(list[str] | tuple[int, int])
    assert kind.decode(kind.encode((1, 2))) == (1, 2)


def test_a_class_that_pydantic_does_not_know_is_refused_when_it_is_sent():
    with pytest.raises(UnfitError, match="Plain"):
        JsonType(Plain).encode(Plain(1))


# --- bounds and defaults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [200, 300, 900])
def test_a_message_that_is_too_deep_fits_no_annotation_or_arrives(depth, extra):
    deep = orjson.loads(b"[" * depth + b"]" * depth)
    kind = JsonType(list)
    if depth < 254:
        assert kind.received(deep) == deep
    else:
        with pytest.raises(UnfitError):
            kind.received(deep)


def test_any_as_the_whole_annotation_of_a_result_is_no_annotation(extra):
    """-> Any and -> object: a tuple comes back as a list. Inside a type, Any refuses it."""

    def loose() -> Any: ...
    def looser() -> object: ...
    def bare(): ...
    def inside() -> list[Any]: ...

    for function in (loose, looser, bare):
        kind = Arguments("t", function, validate=True).result_type
        assert kind.received(orjson.loads(kind.encode((1, 2)))) == [1, 2]
    with pytest.raises((UnfitError, TypeError)):
        Arguments("t", inside, validate=True).result_type.encode([(1, 2)])


def test_a_model_arrives_with_all_its_fields_set():
    """The message has the defaults, so exclude_unset leaves nothing out in the handler."""

    class Partial(BaseModel):
        name: str
        size: int = 1

    kind = JsonType(Partial)
    arrived = kind.received(orjson.loads(dumps(kind.sendable(Partial(name="a")))))
    assert arrived.model_dump(exclude_unset=True) == {"name": "a", "size": 1}


@pytest.mark.parametrize(
    ("annotation", "made"),
    [
        (datetime, lambda now: now),
        (date, lambda now: now.date()),
        (list[datetime], lambda now: [now]),
        (dict[str, date], lambda now: {"a": now.date()}),
        (datetime | None, lambda now: now),
    ],
)
@pytest.mark.parametrize("with_pydantic", [True, False])
def test_dates_that_freezegun_has_frozen(monkeypatch, annotation, made, with_pydantic):
    """They stand for real ones; and a type that is first read while time is frozen is the same as ever."""
    if not with_pydantic:
        monkeypatch.setattr(json_type, "has_pydantic", lambda: False)
    with freeze_time(NOON):
        frozen = made(datetime.now(UTC))
        first_read = JsonType(annotation)
        payload = first_read.encode(frozen)
        assert first_read.encode(made(NOON)) == payload
    for one in (first_read, JsonType(annotation)):
        assert one.decode(payload) == made(NOON)
        assert one.encode(made(NOON)) == one.encode(frozen)
