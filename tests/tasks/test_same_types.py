"""What `==` takes for equal and is not the same: it is refused where it is sent, by its place, and with the remedy."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections import OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from streamq.tasks.difference import difference
from streamq.tasks.json_type import JsonType, UnfitError
from tests.tasks.test_json_type import Color, Day, Point, Row, remove_pydantic

ONCE = datetime.fromisoformat("2026-10-25T02:30")
TWICE = ONCE.replace(fold=1)


@pytest.fixture(params=["pydantic", "core"])
def extra(request, monkeypatch):
    """With the extra, and as if it were not installed."""
    if request.param == "core":
        remove_pydantic(monkeypatch)
    return request.param


class Word(enum.StrEnum):
    A = "a"


class Old(str, enum.Enum):  # noqa: UP042 - as before Python 3.11
    A = "a"


class Level(enum.IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


class Private(BaseModel):
    a: int = 0
    _p: int = PrivateAttr(5)
    _made: str = PrivateAttr("")

    def model_post_init(self, _: Any) -> None:
        self._made = f"of {self.a}"

    @functools.cached_property
    def slow(self) -> int:
        return self.a


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Either(BaseModel):
    word: Word | str
    level: Level | int = 0


@dataclasses.dataclass
class Loose:
    """A dataclass checks nothing: its fields hold what they are given."""

    text: str = ""
    number: int = 0
    share: float = 0.0
    texts: list[str] = dataclasses.field(default_factory=list)
    either: str | Word | None = None
    any: Any = None


@dataclasses.dataclass
class Scaled:
    a: int
    by: dataclasses.InitVar[int] = 3

    def __post_init__(self, by: int) -> None:
        self.scaled = self.a * by

    @functools.cached_property
    def slow(self) -> int:
        return self.scaled


def private(p: int) -> Private:
    made = Private(a=1)
    made._p = p
    return made


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (True, 1), (1, 1.0), (1.0, 1), (Word.A, "a"), ("a", Word.A), (Old.A, Word.A), (Level.ONE, 1),
        (Text("a"), "a"),
        ({1}, {True}), ({1}, {1.0}), ({Word.A}, {"a"}), (frozenset({(1,)}), frozenset({(True,)})), ({1, 2}, {1, 2.0}),
        ({1: 0}, {True: 0}), ({Word.A: 0}, {"a": 0}), ({(1, "a"): 0}, {(1.0, "a"): 0}),
        ({1: 0, "b": 0}, {1.0: 0, "b": 0}),
        (deque([1], maxlen=2), deque([1])), (deque([1]), [1]), (defaultdict(int), defaultdict(list)),
        (defaultdict(int), {}), (OrderedDict(a=1), {"a": 1}), (TWICE, ONCE),
        (time(2, fold=1), time(2)), ({TWICE}, {ONCE}), ({time(2, fold=1): 1}, {time(2): 1}),
        (date(2026, 10, 25), ONCE), (private(5), private(6)), (Open(x=1), Open(x=True)),
        (Scaled(1, 5), Scaled(1)),
    ],
    ids=str,
)  # fmt: skip
def test_what_equality_takes_for_the_same_is_a_difference(one, other):
    assert difference(one, other) is not None
    assert difference([one], [other]) is not None


CHANGED = "it would arrive as {}: JSON does not tell it from {}"


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (str | Word, Word.A, CHANGED.format("str", "Word")),
        (str | Old, Old.A, "it would arrive"), (int | Level, Level.ONE, CHANGED.format("int", "Level")),
        (list[str | Word], ["b", Word.A], "1: " + CHANGED.format("str", "Word")),
        (dict[str, str | Word], {"x": Word.A}, "x: it would arrive"),
        (Any, Word.A, CHANGED.format("str", "Word")), (dict[str, Any], {"x": Level.ONE}, "x: it would arrive as int"),
        (Loose, Loose(either=Word.A), "either: it would arrive"), (Loose, Loose(any=Text("a")), "any: it would arrive"),
        (datetime, TWICE, "its fold=1 would be lost"), (time, time(2, fold=1), "its fold=1 would be lost"),
        (list[datetime | None], [None, TWICE], "1: its fold=1 would be lost"),
        (Scaled, Scaled(1, 5), "scaled: .*InitVar is not kept"),
        (Literal["a"] | Word, Word.A, "it would arrive"), (Literal[1] | Level, Level.ONE, "it would arrive"),
        (list[Literal["a"] | Old], ["a", Old.A], "1: it would"),
        (dict[str, Literal["a"] | Word], {"x": Word.A}, "x: it"),
    ],
    ids=str,
)  # fmt: skip
def test_it_is_refused_with_its_place(annotation, value, says, extra):
    with pytest.raises(UnfitError, match=f"^{says}"):
        JsonType(annotation).encode(value)


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Word | str, Word.A, "it would arrive as str"), (Old | str, Old.A, "it would arrive as str"),
        (Private, private(6), "_p: .*JSON does not carry a private attribute; make it a field"),
        (list[Private], [private(5), private(6)], "1._p: "), (Private | None, private(6), "_p: "),
        (Either, Either(word=Word.A), "word: it would arrive as str"),
        (Either, Either(word="b", level=Level.ONE), "level: it would arrive as int"),
        (deque[int], deque([1], maxlen=2), "its maxlen would be lost"),
        (defaultdict[str, int], defaultdict(None, a=1), "its default_factory would be another one"),
        (dict[Word | str, int], {Word.A: 1}, ""), (set[Word | str], {Word.A}, ""), (set[Level | int], {Level.ONE}, ""),
        (dict[Literal["a"] | Word, int], {Word.A: 1}, ""), (set[Literal["a"] | Word], {Word.A}, ""),
        (Open, Open(x=Word.A), "x: it would arrive as str"), (set[time], {time(2, fold=1)}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_what_pydantic_would_change_is_refused_with_its_place(annotation, value, says):
    with pytest.raises(UnfitError, match=f"^{says}"):
        JsonType(annotation).encode(value)


def slow(value: Any) -> Any:
    assert value.slow == value.slow
    return value


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Word, Word.A), (Word | None, Word.A), (list[Level], [Level.ONE]), (Word | int, Word.A),
        (Private, private(5)), (Private, slow(Private(a=2))), (Scaled, slow(Scaled(1))), (Scaled, Scaled(1, 3)),
        (datetime, TWICE.replace(tzinfo=UTC)), (dict[Word, int], {Word.A: 1}), (set[Level], {Level.ONE}),
        (deque[int], deque([1])), (defaultdict[str, list[int]], defaultdict(list, a=[1])), (Either, Either(word="a")),
        (Private, Private.model_construct(a=3)), (list[float | int], [1, 2.5]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_the_same_arrives(annotation, value):
    kind = JsonType(annotation)
    assert difference(value, kind.decode(kind.encode(value))) is None


@pytest.mark.parametrize(
    ("annotation", "value", "arrives"),
    [
        (str, Word.A, "a"), (str | None, Text("a"), "a"), (int, Level.ONE, 1), (list[str], [Word.A], ["a"]),
        (float, 2, 2.0), (list[float], [1, 2.5], [1.0, 2.5]), (float | None, 3, 3.0), (list[float | int], [1], [1]),
        (Loose, Loose(text=Word.A, number=Level.ONE, share=2, texts=[Text("b")]),
         Loose(text="a", number=1, share=2.0, texts=["b"])),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_a_subclass_arrives_as_the_annotated_plain_type(annotation, value, arrives, extra):
    """Also in a field of a dataclass, which has checked nothing."""
    kind = JsonType(annotation)
    assert difference(arrives, kind.decode(kind.encode(value))) is None


@pytest.mark.parametrize(
    ("annotation", "value", "arrives"),
    [
        (Color, "red", Color.RED), (Color | None, 7, Color.BLUE), (list[Color], ["red"], [Color.RED]),
        (dict[str, Color], {"a": "red"}, {"a": Color.RED}), (tuple[int, Color], [1, "red"], (1, Color.RED)),
        (tuple[Color, ...], ["red"], (Color.RED,)), (Day, [1, "a"], Day.PAIR), (Literal[Color.RED], "red", Color.RED),
        (Point, {"x": 1, "at": ONCE}, Point(1, ONCE)),
        (Point | None, {"x": 1, "at": "2026-10-25T02:30:00"}, Point(1, ONCE)),
        (list[Point], [{"x": 1, "at": ONCE, "next": None}], [Point(1, ONCE)]),
        (Row, {"made": "2026-10-25T02:30:00"}, {"made": ONCE}), (date, "2026-01-01", date(2026, 1, 1)),
        (Loose, {"text": "a", "texts": ["b"]}, Loose("a", texts=["b"])),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_be_converted_if_it_were_sent_by_name_is_converted(annotation, value, arrives, extra):
    """With pydantic and without it: the value of an enum, a dict for a dataclass, a text for a date."""
    kind = JsonType(annotation)
    assert difference(arrives, kind.decode(kind.encode(value))) is None


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Color | str, "red"), (list[Color | str], ["red"]), (Point, {"x": 1, "at": TWICE, "z": 1}), (Color, "green"),
        (Loose | dict, {"text": "a"}), (list[Loose | dict[str, str]], [{"text": "a"}]), (Point, {"x": 1}),
        (date | str, "2026-01-01"), (Color, Day.FIRST), (tuple[int, int], [1]), (Literal[Color.RED], Color.BLUE),
    ],
    ids=str,
)  # fmt: skip
def test_a_conversion_that_would_lose_something_or_is_one_of_two_is_refused(annotation, value, monkeypatch):
    remove_pydantic(monkeypatch)
    with pytest.raises(UnfitError):
        JsonType(annotation).encode(value)
