"""Arguments against signature and annotations."""

from __future__ import annotations

import enum
import sys
import typing
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Union

import pytest
import typing_extensions
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from streamq import RedisBroker, Worker, task
from streamq.errors import ArgumentsError, EncodingError
from streamq.tasks import json_type
from tests import deferred
from tests.at_work import assert_nothing_left, burst, dead
from tests.servers import InProcess


@pytest.fixture
def memory():
    server = InProcess()
    yield server
    server.close()


@pytest.fixture
def without_pydantic(monkeypatch):
    """As if the extra were not installed."""
    monkeypatch.setattr(json_type, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    monkeypatch.setitem(sys.modules, "pydantic_core", None)


class Colour(enum.Enum):
    RED = "red"


class Model(BaseModel):
    n: int
    when: datetime | None = None


@dataclass
class Pair:
    a: int
    b: Decimal


class Typed(TypedDict):
    x: int


async def carried(memory, annotation, value):
    """Enqueue a value for a parameter of this annotation, run it, and return what the handler got."""
    got = []

    async def handler(value):
        got.append(value)

    handler.__annotations__ = {"value": annotation}
    carry = task(name="carry", retries=0)(handler)
    async with RedisBroker(memory.url) as broker:
        await broker.enqueue(carry, value)
        await burst(broker, carry)
    assert dead(memory) == []
    return got[0]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (datetime, datetime(2024, 2, 3, 4, 5, 6, 789, tzinfo=UTC)),
        (date, date(2024, 2, 3)),
        (timedelta, timedelta(days=1, milliseconds=5)),
        (uuid.UUID, uuid.UUID(int=7)),
        (Decimal, Decimal("1.10")),
        (Model, Model(n=1, when=datetime(2024, 1, 1, tzinfo=UTC))),
        (list[Model], [Model(n=1), Model(n=2)]),
        (dict[str, Model], {"a": Model(n=1)}),
        (Pair, Pair(1, Decimal("2.5"))),
        (Colour, Colour.RED),
        (Path, Path("/tmp/x")),
        (tuple[int, str], (1, "a")),
        (set[int], {1, 2}),
        (frozenset[str], frozenset({"a"})),
        (bytes, b"abc"),
        (Typed, {"x": 1}),
        (Literal["a", "b"], "b"),
        (Annotated[int, Field(gt=0)], 5),
        (int | None, None),
        (float, 1.5),
    ],
)
async def test_what_the_annotation_says_comes_back(memory, annotation, value):
    """With pydantic, arguments arrive as the annotations want them: models, Decimal, sets, times."""
    back = await carried(memory, annotation, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        (("x",), {}, "number"),
        ((), {"number": "x"}, "argument number = 'x'"),
        ((1,), {"when": "yesterday"}, "argument when = 'yesterday'"),
        ((1,), {"model": {"n": "x"}}, r"argument model.n = 'x'"),
        ((), {}, "number"),
        ((1, 2, 3, 4, 5), {}, "too many"),
        ((1,), {"other": 1}, "other"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_where_they_are_sent(memory, args, kwargs, says):
    """The error names the argument, and nothing is sent."""

    @task
    async def strict(number: int, when: datetime | None = None, model: Model | None = None) -> None: ...

    async with RedisBroker(memory.url) as broker:
        with pytest.raises(ArgumentsError, match=says) as caught:
            await broker.enqueue(strict, *args, **kwargs)
        assert "'strict'" in str(caught.value)
        with pytest.raises(ArgumentsError):
            await broker.enqueue_many([strict.call(1), strict.call(*args, **kwargs)])
        assert memory.keys() == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"args": '["x"]'}, "argument number = 'x'"),
        ({"kwargs": '{"number":"x"}'}, "argument number = 'x'"),
        ({}, "number"),
        ({"args": "[1,2]"}, "too many positional"),
    ],
)
async def test_arguments_of_a_producer_that_has_only_the_name_are_rejected(memory, fields, says):
    """The worker dead-letters them at once: repeating a wrong call cannot help."""

    @task
    async def strict(number: int) -> None:
        raise AssertionError("it must not run")

    flat = [part for pair in fields.items() for part in pair]
    memory.command("XADD", "queue:standard", "*", "task", "strict", *flat)
    async with RedisBroker(memory.url) as broker:
        await burst(broker, strict)
    (letter,) = dead(memory)
    assert letter["reason"] == "rejected"
    assert letter["error_type"] == "streamq.errors.ArgumentsError"
    assert says in letter["error"]
    assert_nothing_left(memory)


async def test_annotations_that_are_strings_are_read(memory):
    """`from __future__ import annotations`, models and unions included."""
    async with RedisBroker(memory.url) as broker:
        handle = await broker.enqueue(deferred.book.options(result_ttl=60), deferred.Order(number=7, lines=["a"]))
        with pytest.raises(ArgumentsError, match="order.number"):  # noqa: RUF043
            await broker.enqueue(deferred.book, {"number": "x"})  # type: ignore[arg-type]
        await burst(broker, deferred.book)
        assert await handle.result(timeout=5) == 7


async def test_an_annotation_that_cannot_be_read_says_so_and_names_the_way_out(memory):
    """What is imported under TYPE_CHECKING only is not there at run time."""
    async with RedisBroker(memory.url) as broker:
        with pytest.raises(ArgumentsError, match=r"'Decimal'.*validate=False"):
            await broker.enqueue(deferred.unreadable, Decimal(1))
        with pytest.raises(ArgumentsError, match="'Decimal'"):
            await Worker(broker, [deferred.unreadable]).run()
        await broker.enqueue(deferred.unchecked, "1")  # type: ignore[arg-type]
        await burst(broker, deferred.unchecked)
    assert dead(memory) == []


async def test_annotations_that_pydantic_cannot_check_say_so(memory):
    """At the enqueue and at the start of a worker, with the way out; not as a foreign error."""

    async def handler(value): ...

    handler.__annotations__ = {"value": Annotated[str, Field(discriminator="x")]}
    odd = task(name="odd")(handler)
    async with RedisBroker(memory.url) as broker:
        with pytest.raises(ArgumentsError, match="validate=False"):
            await broker.enqueue(odd, "x")


async def test_validation_can_be_switched_off(memory):
    """Then only the signature counts, and only JSON goes through."""

    @task(validate=False)
    async def loose(number: int) -> None: ...

    async with RedisBroker(memory.url) as broker:
        await broker.enqueue(loose, "x")  # type: ignore[arg-type]
        with pytest.raises(ArgumentsError):
            await broker.enqueue(loose)  # type: ignore[call-arg]
        with pytest.raises(EncodingError, match=r"number 1 \(Decimal\)"):
            await broker.enqueue(loose, Decimal(1))  # type: ignore[arg-type]


async def test_without_pydantic_what_orjson_writes_is_checked_and_converted(memory, without_pydantic):
    """The core alone carries what orjson can. An annotation that it cannot read is left unchecked."""
    got = []

    @task
    async def typed(when: datetime, n: int = 1, price: Decimal | None = None) -> None:
        got.append((when, n, price))

    moment = datetime(2024, 1, 1, tzinfo=UTC)
    async with RedisBroker(memory.url) as broker:
        await broker.enqueue(typed, moment, n=2, price=[1])  # type: ignore[arg-type]
        with pytest.raises(ArgumentsError, match="argument n = 'x': it is of type str, not int"):
            await broker.enqueue(typed, moment, n="x")  # type: ignore[arg-type]
        with pytest.raises(ArgumentsError, match="too many positional"):
            await broker.enqueue(typed, moment, 2, None, 3)  # type: ignore[call-arg]
        with pytest.raises(EncodingError, match=r"'price' \(Decimal\)"):
            await broker.enqueue(typed, moment, price=Decimal(1))
        await broker.enqueue("typed", "soon")
        await burst(broker, typed)
    assert got == [(moment, 2, [1])]
    assert [letter["reason"] for letter in dead(memory)] == ["rejected"]


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("args", "kwargs", "fits"),
    [
        ((1, 2), {"c": 3}, True),
        ((1,), {"b": 2, "c": 3}, True),
        ((1, 2, 9, 9), {"c": 3, "z": 4}, True),
        ((1,), {"c": 3}, True),
        ((), {"a": 1, "c": 3}, False),
        ((1, 2), {}, False),
        ((), {"c": 3}, False),
    ],
)
async def test_every_kind_of_parameter(memory, args, kwargs, fits, validate):
    """Positional-only, defaults, *rest, keyword-only and **more."""
    got = []

    @task(validate=validate)
    async def kinds(a: int, /, b: int = 0, *rest: int, c: int, **more: int) -> None:
        got.append((a, b, rest, c, more))

    async with RedisBroker(memory.url) as broker:
        if not fits:
            with pytest.raises(ArgumentsError):
                await broker.enqueue(kinds, *args, **kwargs)  # type: ignore[arg-type, call-arg, misc]
            return
        await broker.enqueue(kinds, *args, **kwargs)  # type: ignore[arg-type, call-arg, misc]
        await burst(broker, kinds)
    assert dead(memory) == []
    assert got == [
        (args[0], args[1] if len(args) > 1 else kwargs.get("b", 0), args[2:], 3, {"z": 4} if "z" in kwargs else {})
    ]


class Options(typing.TypedDict):
    number: int
    when: typing.NotRequired[date]
    priority: typing.NotRequired[str]


@pytest.mark.parametrize("unpack", [typing.Unpack, typing_extensions.Unpack])
@pytest.mark.parametrize("validate", [True, False])
async def test_the_keys_of_unpacked_options_are_parameters(memory, unpack, validate):
    """Missing and unknown keys are refused, others converted. One that is called as an option of `enqueue` is a key."""
    got = []

    async def handler(first, **options):
        got.append((first, options))

    handler.__annotations__ = {"first": int, "options": unpack[Options]}
    keyed = task(name="keyed", validate=validate, retries=0)(handler)
    async with RedisBroker(memory.url) as broker:
        await broker.enqueue(keyed, 1, number=2, priority="low")  # type: ignore[call-arg]
        for wrong, says in (({}, "number"), ({"number": 1, "other": 1}, "other"), ({"number": "x"}, "number = 'x'")):
            if validate or "=" not in says:
                with pytest.raises(ArgumentsError, match=says):
                    await broker.enqueue(keyed, 1, **wrong)  # type: ignore[arg-type]
        await broker.enqueue("keyed", 1, kwargs_of_a_stranger=1)
        if validate:
            await broker.enqueue(keyed, 2, number=2, when=date(2026, 1, 1))  # type: ignore[call-arg]
        await burst(broker, keyed)
    assert [letter["reason"] for letter in dead(memory)] == ["rejected"]
    assert got == [(1, {"number": 2, "priority": "low"}), *[(2, {"number": 2, "when": date(2026, 1, 1)})] * validate]
    assert str(keyed.arguments.signature).startswith("(first: int, *, number: int, when: datetime.date = ...")


async def test_a_key_of_unpacked_options_that_is_no_name_of_a_parameter_is_converted(memory):
    """It can be given as `**{"from": ...}`."""
    got = []

    async def handler(**options):
        got.append(options)

    mail = typing.TypedDict("Mail", {"from": date, "to": str})  # type: ignore[misc]
    handler.__annotations__ = {"options": typing.Unpack[mail]}
    sending = task(name="sending", retries=0)(handler)
    async with RedisBroker(memory.url) as broker:
        await broker.enqueue(sending, **{"from": date(2026, 1, 1), "to": "b"})  # type: ignore[arg-type]
        with pytest.raises(ArgumentsError, match="argument from = 'soon'"):
            await broker.enqueue(sending, **{"from": "soon"})  # type: ignore[arg-type]
        await burst(broker, sending)
    assert got == [{"from": date(2026, 1, 1), "to": "b"}]


async def test_keys_of_unpacked_options_that_are_written_as_text_are_read(memory):
    """`from __future__ import annotations`."""
    async with RedisBroker(memory.url) as broker:
        await broker.enqueue(deferred.keyed, number=7)
        with pytest.raises(ArgumentsError, match=r"missing a required (keyword-only )?argument: 'number'"):
            await broker.enqueue(deferred.keyed)  # type: ignore[call-arg]


async def test_a_task_may_have_parameters_that_are_called_as_options_are(memory):
    """Its own parameter wins; `options` says what cannot collide."""
    got = []

    @task
    async def shipping(priority: str, delay: int = 0, task: str = "", headers: int = 0) -> None:
        got.append((priority, delay, task, headers))

    async with RedisBroker(memory.url) as broker:
        await broker.enqueue(shipping, priority="express", delay=3, task="x")
        await broker.enqueue(shipping.options(priority=100), priority="slow", headers=1)
        assert int(memory.command("XLEN", "queue:critical")) == 1
        await burst(broker, shipping)
    assert sorted(got) == [("express", 3, "x", 0), ("slow", 0, "", 1)]


async def test_an_error_inside_a_handler_is_not_taken_for_wrong_arguments(memory):
    """A TypeError that the handler raises is a failure as any other, and is retried."""

    @task(retries=0)
    async def confused(n: int) -> None:
        len(n)  # type: ignore[arg-type]

    async with RedisBroker(memory.url) as broker:
        await broker.enqueue(confused, 1)
        await burst(broker, confused)
    assert dead(memory)[0]["reason"] == "retries_exhausted"


async def test_bytes_that_are_no_text_are_refused_at_enqueue(memory):
    """pydantic carries bytes as text; what is none is named."""

    @task
    async def blob(data: bytes) -> None: ...

    async with RedisBroker(memory.url) as broker:
        with pytest.raises(EncodingError, match=r"'data' \(bytes\)"):
            await broker.enqueue(blob, b"\xff\xfe")


async def test_nan_inside_a_model_is_refused(memory):
    """As anywhere else: it would arrive as null."""

    class Measured(BaseModel):
        value: float

    async def handler(m): ...

    handler.__annotations__ = {"m": Measured}
    measure = task(name="measure")(handler)
    async with RedisBroker(memory.url) as broker:
        with pytest.raises(EncodingError, match=r"'m' \(Measured\)"):
            await broker.enqueue(measure, Measured(value=float("nan")))


def test_a_repr_shows_the_signature():
    """Arguments are shown as they are declared."""
    assert repr(deferred.power.arguments) == "<Arguments of power(base: 'int', exponent: 'int' = 2) -> 'int'>"


RECURSIVE = Union[None, int, list["RECURSIVE"]]  # noqa: UP007 - as people write it


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        ([str], "is not a Python type"),
        (5, "is not a Python type"),
        (dict[str, [1]], "is not a Python type"),
        ({"a": 1}, "type"),
        ("1 / 0", "an annotation cannot be read: division by zero"),
        ("{}.missing", "an annotation cannot be read"),
        ("raises()", "an annotation cannot be read: what"),
        (list["Missing"], "Missing"),  # type: ignore[name-defined]  # noqa: F821
        (RECURSIVE, "write an alias that holds itself with typing_extensions.TypeAliasType"),
    ],
    ids=str,
)
def test_an_annotation_that_is_no_type_is_refused_by_name(annotation, why, monkeypatch):
    """Where it is read: a worker does not begin, and an enqueue is refused. No bare error of typing or pydantic."""

    def raises():
        raise ZeroDivisionError("what")

    monkeypatch.setitem(globals(), "raises", raises)

    def handler(to):
        pass

    handler.__annotations__["to"] = annotation
    declared = task(handler, name="mail")
    with pytest.raises(ArgumentsError, match=r"task 'mail': .*annotation") as caught:
        declared.arguments.prepare()
    assert why in str(caught.value)
