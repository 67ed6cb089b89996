"""What annotations say: typed dicts of any Python, iterables, the items of a list."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, Optional

import pytest
from typing_extensions import TypeAliasType

from streamq.tasks import json_type
from streamq.tasks.annotations import UNTYPED, item_of
from streamq.tasks.json_type import JsonType, UnfitError

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
Days = TypeAliasType("Days", list[date])


@pytest.fixture(params=["pydantic", "core"])
def extra(request, monkeypatch):
    """With the extra, and as if it were not installed."""
    if request.param == "core":
        monkeypatch.setattr(json_type, "find_spec", lambda name: None)
        monkeypatch.setitem(sys.modules, "pydantic", None)
        monkeypatch.setitem(sys.modules, "pydantic_core", None)
    return request.param


class TypingRow(typing.TypedDict):
    id: int
    at: typing.NotRequired[datetime]


class TypingRows(typing.TypedDict):
    rows: list[TypingRow]
    below: TypingRows | None


@dataclasses.dataclass
class OfTypingRow:
    row: TypingRow


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (TypingRow, {"id": 1}), (TypingRow, {"id": 1, "at": NOON, "more": 1}), (OfTypingRow, OfTypingRow({"id": 1})),
        (list[TypingRows], [{"rows": [{"id": 1}], "below": {"rows": [], "below": None}}]),
    ],
    ids=str,
)  # fmt: skip
def test_the_typed_dict_of_typing_is_carried_on_every_python(annotation, value, extra):
    kind = JsonType(annotation)
    assert kind.problem == ""
    assert kind.decode(kind.encode(value)) == value
    with pytest.raises(UnfitError):
        kind.decode(b'{"id": "x", "row": {}}')


@pytest.mark.parametrize("annotation", [Iterator[int], dict[str, Iterator[int]], typing.Generator[int, None, None]])
def test_an_iterator_has_no_way_through_json_and_the_remedy_is_named(annotation):
    assert "annotate Iterable[...] or list[...]" in JsonType(annotation).problem


@pytest.mark.parametrize(
    "annotation",
    [
        list[date], typing.List[date], Sequence[date], Iterable[date], Collection[date], tuple[date, ...], Days,  # noqa: UP006
        Annotated[list[date], "rows"], Optional[list[date]], Annotated[Days, "rows"] | None,  # noqa: UP045
        list[date] | tuple[date, ...],
    ],
    ids=str,
)  # fmt: skip
def test_the_item_of_a_list_is_found_through_what_is_around_it(annotation):
    assert item_of(annotation) is date


@pytest.mark.parametrize("annotation", [list, tuple, Sequence, Any, object, UNTYPED, list | None], ids=str)
def test_a_list_of_anything_has_items_of_no_type(annotation):
    assert item_of(annotation) is UNTYPED


@pytest.mark.parametrize(
    "annotation", [date, str, dict[str, int], set[int], tuple[int, str], Iterator[int], list[int] | int], ids=str
)
def test_what_is_no_list_of_items_is_refused_with_the_remedy(annotation):
    with pytest.raises(TypeError, match=r"is no list of items: annotate list\[\.\.\.\]"):
        item_of(annotation)
