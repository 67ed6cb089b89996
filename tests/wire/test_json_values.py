"""P13: values that orjson would look into by itself have the texts of orjson, and none ends the process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from enum import Enum
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.errors import EncodingError
from streamq.wire.message import Message, dumps

ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Africa/Monrovia", "Pacific/Apia")
offsets = st.integers(-86_399, 86_399).filter(lambda seconds: abs(seconds) % 3600 < 3570)
zones = (
    st.none()
    | st.just(UTC)
    | st.sampled_from(ZONES).map(ZoneInfo)
    | offsets.map(lambda seconds: timezone(timedelta(seconds=seconds)))
)
moments = st.datetimes(timezones=zones, allow_imaginary=True)
times = st.times().filter(lambda one: one.microsecond == 0 or one.microsecond >= 100_000)


@dataclass
class Plain:
    whatever: Any
    other: int = 3
    _hidden: int = 4
    fixed: ClassVar[int] = 5

    def __post_init__(self) -> None:
        self.more = "an attribute that is no field"


@dataclass(slots=True)
class Slotted:
    whatever: Any
    _hidden: int = 4
    fixed: ClassVar[int] = 5
    late: Any = field(default=0)


@given(st.recursive(
    moments | st.dates() | times | st.none(),
    lambda inner: st.lists(inner, max_size=3) | inner.map(Plain) | inner.map(Slotted),
    max_leaves=6,
))  # fmt: skip
def test_the_texts_are_those_of_orjson(value):
    """Offsets are rounded to minutes. Two mistakes of orjson are left out: see the next test."""
    assert dumps(value) == orjson.dumps(value)


def test_what_orjson_writes_wrongly_is_right():
    """It wrote +00:60, which no reader takes, and 0.01 s of a time of day as 0.1 s."""
    assert dumps(time(0, 0, 0, 10_000)) == b'"00:00:00.010000"'
    assert dumps(datetime(2020, 1, 1, tzinfo=timezone(timedelta(minutes=59, seconds=45)))) == (
        b'"2020-01-01T00:00:00+01:00"'
    )


def test_a_time_of_day_with_an_offset_is_written_with_it():
    """orjson refuses it."""
    assert dumps(time(1, 2, tzinfo=UTC)) == b'"01:02:00+00:00"'
    assert dumps([time(1, tzinfo=timezone(timedelta(hours=-3)))]) == b'["01:00:00-03:00"]'


class Pytz(tzinfo):
    """As the zones of pytz: right once it is normalized."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(minutes=53)

    def normalize(self, moment: datetime) -> datetime:
        return moment.replace(tzinfo=timezone(timedelta(hours=1)))


def test_a_zone_of_pytz_is_normalized():
    """As orjson did."""
    moment = datetime(2020, 1, 1, tzinfo=Pytz())
    assert dumps(moment) == orjson.dumps(moment) == b'"2020-01-01T00:00:00+01:00"'


class Broken(tzinfo):
    """A zone whose code raises, returns no offset, or returns another thing."""

    def __init__(self, how: str) -> None:
        self.how = how

    def utcoffset(self, moment: datetime | None) -> Any:
        if self.how == "raises":
            raise ValueError("no such zone")
        if self.how == "ends":
            raise KeyboardInterrupt
        return None if self.how == "none" else "a text"


@dataclass(slots=True)
class Unset:
    value: int = field(init=False)


class Prying:
    """A dataclass for orjson, whose attributes raise."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[Any] = {"value": 5}


HOSTILE = {
    "a zone that raises": lambda: datetime(2020, 1, 1, tzinfo=Broken("raises")),
    "a zone that ends the program": lambda: datetime(2020, 1, 1, tzinfo=Broken("ends")),
    "a zone without an offset of time": lambda: datetime(2020, 1, 1, tzinfo=Broken("text")),
    "a zone without code": lambda: datetime(2020, 1, 1, tzinfo=tzinfo()),
    "a time of day with a zone that raises": lambda: time(1, tzinfo=Broken("raises")),
    "a time of day whose offset depends on the day": lambda: time(1, tzinfo=Broken("none")),
    "a slot without a value": Unset,
    "fields that are none": Prying,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_of_the_user_that_raises_is_an_error_of_the_value(kind):
    """It ended the process (SIGSEGV): that of the producer, or of the worker for a result."""
    for where in (lambda value: value, lambda value: [None, {"a": value}]):
        with pytest.raises(TypeError):
            dumps(where(HOSTILE[kind]()))
    with pytest.raises(EncodingError, match="number 1"):
        Message(task="pay", args=(HOSTILE[kind](),)).fields()


def test_the_error_of_the_user_is_in_the_text():
    """Which zone it was is not to be seen in "datetime"."""
    with pytest.raises(TypeError, match=r"datetime.datetime \(ValueError: no such zone\)"):
        dumps(datetime(2020, 1, 1, tzinfo=Broken("raises")))


def test_a_zone_that_knows_no_offset_is_that_of_utc():
    """As orjson has it."""
    moment = datetime(2020, 1, 1, tzinfo=Broken("none"))
    assert dumps(moment) == orjson.dumps(moment) == b'"2020-01-01T00:00:00+00:00"'


def test_a_converter_of_the_caller_sees_what_it_saw_before():
    """Not dates and dataclasses."""
    seen = []

    def convert(value: Any) -> str:
        seen.append(value)
        return "converted"

    value = [{1}, date(2020, 1, 1), Plain(datetime(2020, 1, 1, tzinfo=UTC)), Slotted(b"x")]
    assert dumps(value, convert) == orjson.dumps(value, convert)
    assert seen[:2] == [{1}, b"x"]


def test_an_enum_is_its_value():
    """Its value may be of these types."""

    class Day(Enum):
        FIRST = date(2020, 1, 1)

    assert dumps([None, Day.FIRST]) == b'[null,"2020-01-01"]'


def test_the_process_lives():
    """What raises here would have ended this test run, so it is tried in a process of its own first."""
    code = (
        "from tests.wire.test_json_values import HOSTILE, dumps\n"
        "for make in HOSTILE.values():\n"
        "    try:\n        dumps(make())\n"
        "    except TypeError:\n        print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["refused"] * len(HOSTILE), done.stderr
