"""What comes back of a value is the value, or it is refused: instants, parts that would be lost, members of a union."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    RootModel,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from typing_extensions import TypedDict

from streamq.tasks.difference import difference
from streamq.tasks.json_type import JsonType, UnfitError
from tests.tasks.test_json_type import remove_pydantic

BERLIN = ZoneInfo("Europe/Berlin")
FIRST, SECOND = (datetime(2026, 10, 25, hour, 30, tzinfo=UTC).astimezone(BERLIN) for hour in (0, 1))  # both at 2:30
NEVER = datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)  # the hour that does not come


@pytest.fixture(params=["pydantic", "core"])
def extra(request, monkeypatch):
    """With the extra, and as if it were not installed."""
    if request.param == "core":
        remove_pydantic(monkeypatch)
    return request.param


class Color(enum.Enum):
    RED = "red"


class Tone(enum.Enum):
    """Values that pydantic does not read back, and one that is a plain text."""

    R = "r"
    PAIR = ("g", 1)
    DAY = date(2020, 1, 1)
    NOTHING = None


class Base(TypedDict):
    id: int


class OfTone(TypedDict):
    tone: Tone | str


@dataclasses.dataclass(frozen=True)
class Moment:
    at: datetime


class FrozenMoment(BaseModel):
    model_config = ConfigDict(frozen=True)
    at: datetime


class Clock:
    """Compares by what it holds, as classes of attrs do."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clock) and self.at == other.at

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("at", [FIRST, SECOND, NEVER, FIRST.replace(tzinfo=None), datetime.min.replace(tzinfo=UTC)])
@pytest.mark.parametrize(
    ("annotation", "made"),
    [
        (datetime, lambda at: at), (list[datetime], lambda at: [at]), (set[datetime], lambda at: {at}),
        (dict[datetime, int], lambda at: {at: 1}), (Moment, Moment), (set[Moment], lambda at: {Moment(at)}),
        (frozenset[tuple[datetime, int]], lambda at: frozenset({(at, 1)})), (deque[datetime], lambda at: deque([at])),
        (set[FrozenMoment], lambda at: {FrozenMoment(at=at)}), (datetime | None, lambda at: at),
        (dict[frozenset[datetime], str] | set[frozenset[datetime]], lambda at: {frozenset({at})}),
    ],
)  # fmt: skip
def test_an_instant_of_any_zone_arrives_as_that_instant(annotation, made, at):
    """Also where `==` between two zones is False whatever they hold (PEP 495)."""
    kind = JsonType(annotation)
    assert difference(made(at), kind.decode(kind.encode(made(at)))) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FIRST, SECOND), ({FIRST}, {SECOND.astimezone(UTC)}), ({FIRST: 1}, {SECOND.astimezone(UTC): 1}),
        (Clock(FIRST), Clock(SECOND.astimezone(UTC))), ({Moment(FIRST)}, {Moment(SECOND.astimezone(UTC))}),
        (FIRST, FIRST.time()),
        (FIRST, FIRST.replace(tzinfo=None)), (time(1, tzinfo=BERLIN), time(1)),
        (time(1, tzinfo=UTC), time(2, tzinfo=UTC)), (FIRST, FIRST + timedelta(hours=1)), (1, 2.0), (1, True), (2, "2"),
        (Decimal(1), 1.0), (2**53 + 1, float(2**53)),
        (iter([1]), iter([1])), ({1}, frozenset({1})),
    ],
)  # fmt: skip
def test_what_is_another_value_is_a_difference(one, other):
    assert difference(one, other) == ""


def test_an_object_that_compares_by_what_it_holds_may_hold_an_instant_of_another_zone():
    assert Clock(FIRST) != Clock(FIRST.astimezone(UTC))
    assert difference(Clock(FIRST), Clock(FIRST.astimezone(UTC))) is None


class Patch(BaseModel):
    x: int | None = None
    y: int = Field(0, validation_alias=AliasChoices("Y", AliasPath("deep", "y")))


class Aliased(BaseModel):
    a: int = Field(alias="AA")


class Open(Aliased):
    model_config = ConfigDict(extra="allow")


class Deep(BaseModel):
    x: int = Field(0, validation_alias=AliasPath("deep", "x"))
    y: int = Field(0, validation_alias=AliasPath("deep", "y"))


class Again(BaseModel):
    model_config = ConfigDict(revalidate_instances="always", frozen=True)
    patch: Patch
    either: Patch | dict = {}


class Old(BaseModel):
    x: int

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, value: Any) -> Any:
        return {"x": value["was"]} if isinstance(value, dict) and "was" in value else value


class Holder(BaseModel):
    row: Base


@dataclasses.dataclass
class Part:
    x: int = 0


@dataclasses.dataclass
class Made:
    x: Annotated[int, Field(alias="X")]
    double: int = dataclasses.field(init=False)
    start: dataclasses.InitVar[int] = 0
    unit: typing.ClassVar[str] = "m"

    def __post_init__(self, start: int) -> None:
        self.double = start + 2 * self.x


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Patch, {"x": 1, "z": 2}, "z: it would be lost"), (list[Patch], [{"deep": {"y": 1}, "z": 2}], "0.z: it would"),
        (Part, {"x": 1, "z": 2}, "z: it would be lost"), (Holder, {"row": {"id": 1, "z": 2}}, "row.z: it would be"),
        (dict[int, int], {"1": 1, 1: 2}, "1: it would be lost"), (Patch | dict, {"z": 5}, "z: it would be lost"),
        (Patch | dict, {"x": 1}, "it would arrive changed: .*a dict as a model"), (Part | dict, {"x": 1}, "it would"),
        (list[Patch] | list[dict], [{"x": 1}], "0: it would"), (dict[str, Patch | dict | None], {"a": {"x": 1}}, "a: "),
        (tuple[Decimal, Patch | dict], ("1.5", {"x": 1}), "1: it would"), (Patch | Any, {"x": 1}, "it would"),
        (tuple[Patch, Part | dict], ({"x": 1}, {"x": 1}), "1: it would arrive changed: .*a dict as a model"),
        (dict[str, tuple[Patch, list[Patch | dict]]], {"a": ({"x": 1}, [Patch(), {"x": 1}])}, "a.1.1: it would"),
        (Aliased, {"AA": 1, "a": 2}, "a: it would be lost"),
        (list[Aliased], [{"a": 1, "AA": 1}], "0.a: it would be lost: another key is given for the same field"),
        (Patch, {"Y": 1, "y": 2}, "y: it would be lost"), (Patch, {"Y": 1, "deep": {"y": 2}}, "deep: it would be lost"),
        (Again, Again.model_construct(patch={"x": 1}, either={"x": 1}), "either: it would arrive changed"),
        (Deep, {"deep": {"x": 1, "z": 2}}, "deep.z: it would be lost: Deep has no such key"),
        (Open, {"AA": 1, "a": 2}, "it would "), (Made, {"X": 1, "x": 2}, "x: it would be lost: another key"),
        (Made, {"x": 1, "double": 3}, "double: it would be"), (Made, {"x": 1, "unit": "cm"}, "unit: it would be lost"),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_that_would_be_lost_and_a_dict_that_would_become_a_model_are_refused(annotation, value, says):
    with pytest.raises(UnfitError, match=says):
        JsonType(annotation).encode(value)


@pytest.mark.parametrize(
    ("annotation", "value", "arrives"),
    [
        (Patch, {"x": 1, "Y": 2}, Patch(x=1, Y=2)), (Patch, {"deep": {"y": 1}}, Patch(Y=1)),
        (Old, {"was": 5}, Old(x=5)), (Part, {"x": "5"}, Part(5)), (list[Patch] | None, [{"x": 1}], [Patch(x=1)]),
        (Patch | str, {"x": 1}, Patch(x=1)), (tuple[Patch, set[int]], ({"x": 1}, [1]), (Patch(x=1), {1})),
        (Again, Again.model_construct(patch={"x": 1}), Again(patch=Patch(x=1))),
        (Patch | dict, Patch(x=1), Patch(x=1)), (set[int], [1, 1], {1}),
        (dict[date, int], {"2026-01-01": 1}, {date(2026, 1, 1): 1}), (Iterable[int], (1, 2), [1, 2]),
        (Annotated[str, StringConstraints(strip_whitespace=True)], " a ", "a"), (Json[list[int]], "[1]", [1]),
        (Aliased, {"AA": 1}, Aliased(AA=1)), (Open, {"AA": 1, "b": 2}, Open(AA=1, b=2)), (Made, {"X": 1}, Made(1)),
        (Deep, {"deep": {"x": 1, "y": 2}}, Deep(deep={"x": 1, "y": 2})), (Made, {"x": 1, "start": 0}, Made(1)),
        (Made, {"x": 1, "double": 2, "unit": "m"}, Made(1)), (Tone, ["g", 1], Tone.PAIR), (Tone, "r", Tone.R),
        (Tone | None, ["g", 1], Tone.PAIR), (list[Tone] | None, ["r"], [Tone.R]),
        (Literal[Color.RED, "a"] | None, "red", Color.RED),
        (RootModel[list[int]], [1], RootModel[list[int]]([1])), (Literal[Color.RED], "red", Color.RED),
    ],
    ids=str,
)  # fmt: skip
def test_what_can_be_converted_is(annotation, value, arrives):
    kind = JsonType(annotation)
    back = kind.decode(kind.encode(value))
    assert back == arrives
    assert type(back) is type(arrives)


PLAIN = ["r", "g", ("g", 1), ["g", 1], date(2020, 1, 1), "2020-01-01", None, 1]


@pytest.mark.parametrize("value", [*PLAIN, *Tone], ids=str)
@pytest.mark.parametrize(
    "annotation",
    [
        Tone | str, str | Tone, Tone | list, Tone | tuple[str, int], Tone | date, date | Tone, Tone | int | None,
        Annotated[Tone, "a tone"] | str | None, Tone | Any, Literal[Tone.PAIR, Tone.DAY] | list | date,
        tuple[Tone, int] | tuple[str, int],
    ],
    ids=str,
)  # fmt: skip
def test_a_value_for_a_union_with_an_enum_arrives_as_it_is_or_is_refused(annotation, value, extra):
    """Whatever JSON the members of the enum have in common with values of the other types."""
    value = (value, 1) if typing.get_origin(typing.get_args(annotation)[0]) is tuple else value
    kind = JsonType(annotation)
    assert kind.problem == ""
    try:
        payload = kind.encode(value)
    except TypeError:
        return
    back = kind.decode(payload)
    plain = back == value and type(back) is type(value)
    assert plain or not _is_of_one(annotation, value)


def _is_of_one(annotation: Any, value: Any) -> bool:
    """Is a value of a type of a union as it is? What is of none may be converted."""
    with suppress(ValidationError):
        TypeAdapter(annotation).validate_python(value, strict=True)
        return True
    return False


@pytest.mark.parametrize(
    ("annotation", "value", "place"),
    [
        (Tone | str, "r", ""), (list[Tone | str], ["a", "r"], "1: "), (OfTone, {"tone": "r"}, "tone: "),
        (tuple[Decimal, Tone | str], ("1.5", "r"), "1: "), (Literal[Color.RED] | str, "red", ""),
    ],
    ids=str,
)  # fmt: skip
def test_a_plain_value_that_json_makes_a_member_of_an_enum_is_refused_with_the_reason(annotation, value, place):
    with pytest.raises(UnfitError, match=f"^{place}it would arrive changed: .* reads it as a member of an enum"):
        JsonType(annotation).encode(value)


@pytest.mark.parametrize(("annotation", "value"), [(float, 2**53 + 1), (list[float] | None, [2**53 + 1])], ids=str)
def test_a_whole_number_that_no_float_holds_is_refused_with_that_reason(annotation, value, extra):
    with pytest.raises(UnfitError, match="it would arrive rounded: a float does not have as many digits"):
        JsonType(annotation).encode(value)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([Patch | dict, Part | dict, dict | Patch, list[Patch] | list[dict], Base | dict]),
    st.dictionaries(st.sampled_from(["x", "y", "z", "id"]), st.integers() | st.text(max_size=3), max_size=3),
)
def test_a_dict_for_a_union_with_models_arrives_equal_or_is_refused(annotation, value):
    given_value = [value] if typing.get_origin(typing.get_args(annotation)[0]) is list else value
    kind = JsonType(annotation)
    try:
        payload = kind.encode(given_value)
    except TypeError:
        return
    assert kind.decode(payload) == given_value
