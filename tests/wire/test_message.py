"""The wire format: what a message and a dead letter look like in Redis."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.errors import EncodingError, PayloadTooLargeError, UndecodableError
from streamq.wire.dead_letter_fields import Failure, dead_letter_fields
from streamq.wire.delivery import Delivery
from streamq.wire.message import (
    MOST_FIELDS,
    TRACEBACK_TAIL,
    Message,
    as_text,
    dumps,
    iso,
    milliseconds,
    pack_flat,
)
from streamq.wire.names import NAME

text = st.text(st.characters(exclude_categories=["Cs"]))
name = st.from_regex(NAME.pattern, fullmatch=True)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
seconds = st.floats(0, 1e9)
moments = st.floats(0, 4e9)


def on_the_wire(flat):
    """Return the flat fields as the server gives them back."""
    return [part if isinstance(part, bytes) else str(part).encode() for part in flat]


def an_entry(entry=b"1700000000000-0", **fields):
    """Return a delivery of an entry that somebody wrote by hand."""
    flat = [part if isinstance(part, bytes) else str(part).encode() for pair in fields.items() for part in pair]
    return Delivery(1, "standard", entry, flat)


@pytest.mark.slow
@given(
    st.builds(
        Message,
        task=name,
        task_id=name,
        args=st.lists(values, max_size=4),
        kwargs=st.dictionaries(text, values, max_size=4),
        priority=st.none() | st.integers(-(2**31), 2**31),
        retries=st.none() | st.integers(0, 10**9),
        timeout=st.none() | seconds,
        result_ttl=st.none() | seconds,
        expires=st.none() | moments,
        enqueued_at=st.none() | moments,
        headers=st.none() | st.dictionaries(text, values, max_size=3),
    )
)
def test_every_field_comes_back_as_it_was_sent(message):
    """Encoded, carried and decoded, a message is the same; times to the millisecond."""
    delivery = Delivery(1, "standard", b"1-1", on_the_wire(message.fields()))
    delivery.check()
    assert delivery.task == message.task
    assert delivery.task_id == message.task_id
    assert delivery.args == list(message.args)
    assert delivery.kwargs == message.kwargs
    assert delivery.priority == message.priority
    assert delivery.retries == message.retries
    assert delivery.timeout == message.timeout
    assert delivery.result_ttl == message.result_ttl
    assert delivery.headers == (message.headers or {})
    for mine, theirs in ((delivery.expires, message.expires), (delivery.enqueued_at, message.enqueued_at)):
        if theirs is not None:
            assert milliseconds(mine) == milliseconds(theirs)


@given(st.lists(text, min_size=2, max_size=10))
def test_a_delayed_message_is_a_json_array_of_its_fields(fields):
    """Readable in the hash as it is."""
    assert orjson.loads(pack_flat(as_text(on_the_wire(fields)))) == fields


def test_what_is_the_default_is_not_sent():
    """A message of a bare task is one field; memory per task counts."""
    assert Message(task="send").fields() == ["task", "send"]
    assert Message(task="send", kwargs={"to": "a@b.c"}).fields() == ["task", "send", "kwargs", b'{"to":"a@b.c"}']


def test_an_entry_by_hand_needs_only_a_task():
    """No id: the entry's id is the task's, its time that of the enqueue."""
    delivery = an_entry(task="send")
    delivery.check()
    assert delivery.task_id == "1700000000000-0"
    assert delivery.enqueued_at == 1_700_000_000.0
    assert (delivery.args, delivery.kwargs, delivery.headers) == ([], {}, {})
    assert (delivery.attempt, delivery.starts) == (1, 1)
    assert (delivery.priority, delivery.retries, delivery.timeout, delivery.expires) == (None, None, None, None)


def test_empty_values_are_defaults():
    """`args ''` is as good as no args."""
    delivery = an_entry(task="send", args="", kwargs="", headers="", id="")
    delivery.check()
    assert delivery.args == []
    assert delivery.task_id == "1700000000000-0"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "no field 'task'"),
        ({"task": ""}, "no field 'task'"),
        ({"task": b"\xff"}, "not UTF-8"),
        ({"task": "t", "id": b"\xff"}, "not UTF-8"),
        ({"task": "t", "args": "{"}, "not JSON"),
        ({"task": "t", "args": '{"a":1}'}, "no JSON array"),
        ({"task": "t", "args": "1"}, "no JSON array"),
        ({"task": "t", "args": b"[\xff]"}, "not UTF-8"),
        ({"task": "t", "args": '["\\ud800"]'}, "not JSON"),
        ({"task": "t", "kwargs": "[1]"}, "no JSON object"),
        ({"task": "t", "kwargs": "to=x"}, "not JSON"),
        ({"task": "t", "kwargs": "[" * 100_000}, "not JSON"),
        ({"task": "t", "headers": "null"}, "no JSON object"),
        ({"task": "t", "attempt": "two"}, "no whole number"),
        ({"task": "t", "attempt": "-1"}, "no whole number"),
        ({"task": "t", "attempt": "1" * 5000}, "no whole number"),
        ({"task": "t", "retries": "1.5"}, "no whole number"),
        ({"task": "t", "priority": "high"}, "no whole number"),
        ({"task": "t", "priority": ""}, "no whole number"),
        ({"task": "t", "timeout": "nan"}, "no number of seconds"),
        ({"task": "t", "timeout": "inf"}, "no number of seconds"),
        ({"task": "t", "timeout": "-1"}, "no number of seconds"),
        ({"task": "t", "result_ttl": "x"}, "no number of seconds"),
        ({"task": "t", "expires": "tomorrow"}, "no whole number"),
        ({"task": "t", "enqueued_at": str(2**63)}, "no whole number"),
        ({"task": "t", "starts": "x"}, "no whole number"),
        ({"task": "t", "unknown_since": "x"}, "no whole number"),
        ({"task": "t", "mine": b"\xff"}, "not UTF-8"),
        ({"task": "t", **{f"f{n}": "" for n in range(MOST_FIELDS)}}, "fields"),
    ],
)
def test_what_is_no_message_says_why(fields, says):
    """Each broken field is an UndecodableError that names it and shows a part of its value."""
    with pytest.raises(UndecodableError, match=says) as caught:
        an_entry(**fields).check()
    assert len(str(caught.value)) < 300


def test_a_negative_priority_is_a_priority():
    """Any integer is."""
    assert an_entry(task="t", priority="-7").priority == -7


def test_a_repr_never_fails():
    """Whatever lies in the stream can be shown."""
    assert "\\xff" in repr(an_entry(task=b"\xff"))
    assert repr(Delivery(0, "bulk", b"1-1", [], redelivered=True)) == "<Delivery ? tier=bulk entry=1-1 redelivered>"
    assert repr(an_entry(task="t", id="mail-1")).startswith("<Delivery t mail-1 tier=")


@dataclass
class Point:
    x: float


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_wherever_they_hide(bad):
    """JSON has none, and a null in their place would be a lie."""
    for value in (bad, [1, bad], {"a": {"b": [bad]}}, (bad,), OrderedDict(a=bad), Point(bad), [{"p": Point(bad)}]):
        with pytest.raises(TypeError, match="NaN"):
            dumps(value)
    assert dumps([None, 1.5, Point(2.0), {"a": None}]) == b'[null,1.5,{"x":2.0},{"a":null}]'


def test_what_orjson_has_more_than_json_is_carried_as_text():
    """datetime and UUID go without an extra; next to None too."""
    moment, unique = datetime(2024, 1, 2, tzinfo=UTC), UUID(int=5)
    assert orjson.loads(dumps([None, moment, unique, Point(1.0)])) == [
        None, "2024-01-02T00:00:00+00:00", str(unique), {"x": 1.0},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "argument"),
    [
        ([1, object()], {}, "number 2 (object)"),
        ([{1, 2}], {}, "number 1 (set)"),
        ([], {"a": 1, "b": b"bytes"}, "'b' (bytes)"),
        ([], {"n": float("nan")}, "'n' (float)"),
        ([2**64], {}, "number 1 (int)"),
        ([{1: 2}], {}, "number 1 (dict)"),
        (["\ud800"], {}, "number 1 (str)"),
    ],
)
def test_the_argument_that_cannot_be_sent_is_named(args, kwargs, argument):
    """And so is the task."""
    with pytest.raises(EncodingError) as caught:
        Message(task="send", args=args, kwargs=kwargs).fields()
    assert caught.value.argument == argument
    assert caught.value.task == "send"
    assert "send" in str(caught.value)


def test_an_endless_argument_is_refused_and_named():
    """A list that holds itself has no JSON."""
    endless: list = []
    endless.append(endless)
    with pytest.raises(EncodingError) as caught:
        Message(task="send", kwargs={"e": endless}).fields()
    assert caught.value.argument == "'e' (list)"


def test_headers_that_cannot_be_sent_are_named_as_such():
    """They are no arguments."""
    with pytest.raises(EncodingError, match="header 'h'"):
        Message(task="send", headers={"h": object()}).fields()


def test_a_message_has_a_size_limit():
    """P11: 1 MiB unless the broker says otherwise, counted over all fields."""
    message = Message(task="send", args=["x" * 1000])
    size = sum(map(len, message.fields()))
    assert message.fields(limit=size)
    with pytest.raises(PayloadTooLargeError, match=f"takes {size} bytes and the limit is {size - 1}") as caught:
        message.fields(limit=size - 1)
    assert (caught.value.size, caught.value.limit) == (size, size - 1)
    with pytest.raises(PayloadTooLargeError):
        Message(task="send", args=["x" * (1 << 20)]).fields()


def test_a_retry_keeps_fields_that_streamq_does_not_know():
    """What others wrote into an entry survives every retry."""
    delivery = an_entry(task="send", mine="x", args="[1]", attempt="2", unknown_since="5")
    flat = delivery.resend_fields("workers", attempt="3", unknown_since=None)
    assert dict(zip(flat[::2], flat[1::2], strict=True)) == {
        "task": "send", "mine": "x", "args": "[1]", "attempt": "3", "group": "workers",
        "id": "1700000000000-0", "enqueued_at": "1700000000000",
    }  # fmt: skip


def test_starts_count_crashes_and_postponed_runs_and_attempts_do_not():
    """`attempt` is the retry budget; `starts` is how often it was started."""
    assert an_entry(task="t", attempt="3").starts == 3
    assert an_entry(task="t", attempt="2", starts="6").starts == 7
    crashed = Delivery(0, "bulk", b"1-1", [b"task", b"t", b"attempt", b"2"], crashed_workers=("a", "b"))
    assert (crashed.attempt, crashed.starts) == (2, 4)


def buried(delivery, **changes):
    failure = Failure("ValueError", "no", "Traceback...")
    options = {
        "reason": "rejected",
        "failure": failure,
        "worker": "w",
        "stream": "queue:standard",
        "died_at": 1.7e9,
        "group": "workers",
    }
    flat = on_the_wire(dead_letter_fields(delivery, **(options | changes)))
    return dict(zip(flat[::2], flat[1::2], strict=True))


def test_a_dead_letter_says_everything_in_fields_of_the_contract():
    """SPEC 3: readable by redis-cli, without any tool of ours."""
    delivery = an_entry(
        task="send", id="abc", args="[1]", kwargs='{"a":2}', attempt="2", priority="50", headers='{"h":1}', retries="1"
    )
    assert buried(delivery) == {
        b"task_id": b"abc", b"task": b"send", b"args": b"[1]", b"kwargs": b'{"a":2}', b"tier": b"standard",
        b"reason": b"rejected", b"error_type": b"ValueError", b"error": b"no", b"traceback": b"Traceback...",
        b"attempts": b"2", b"starts": b"2", b"enqueued_at": b"2023-11-14T22:13:20.000+00:00",
        b"died_at": b"2023-11-14T22:13:20.000+00:00", b"worker": b"w", b"group": b"workers", b"origin": b"queue:standard 1700000000000-0",  # noqa: E501
        b"priority": b"50", b"headers": b'{"h":1}', b"retries": b"1",
    }  # fmt: skip


def test_a_dead_letter_keeps_the_tail_of_a_traceback_and_the_workers_that_crashed():
    """The end of a traceback is what people read."""
    delivery = Delivery(0, "bulk", b"1-1", [b"task", b"t"], crashed_workers=("a", "b"))
    letter = buried(delivery, failure=Failure("E", "e\udcff", "x" * 100_000 + "the end\udcff"))
    assert len(letter[b"traceback"]) < TRACEBACK_TAIL + 10
    assert letter[b"traceback"].endswith(b"the end\\udcff")
    assert letter[b"error"] == b"e\\udcff"
    assert letter[b"crashed"] == b"a b"


def test_a_broken_entry_is_kept_byte_for_byte():
    """Each of its fields as `raw.<name>`, so that nothing is lost by being wrong."""
    letter = buried(an_entry(task="t", args=b"\xff{", attempt="many", other=b"\x00\xfe"))
    assert letter[b"raw.args"] == b"\xff{"
    assert letter[b"raw.other"] == b"\x00\xfe"
    assert letter[b"raw.task"] == b"t"
    assert (letter[b"attempts"], letter[b"raw.attempt"]) == (b"0", b"many")
    assert letter[b"task_id"] == b"1700000000000-0"


def test_an_empty_deduplication_key_is_no_key():
    """An empty `id` is the id of the entry; an empty `dedup` names nothing."""
    an_entry(task="t", id="").check()
    with pytest.raises(UndecodableError, match="field 'dedup' is ''"):
        an_entry(task="t", dedup="").check()


@pytest.mark.parametrize("reason", ["expired", "unknown_task", "undecodable", "crash_loop"])
def test_what_never_started_counts_as_no_run(reason):
    """The runs and starts before it count, and those that crashed: this delivery did not start."""

    def counted(**fields):
        flat = [part.encode() for pair in {"task": "t", **fields}.items() for part in pair]
        letter = buried(Delivery(0, "bulk", b"1-1", flat, crashed_workers=("a", "b")), reason=reason)
        return letter[b"attempts"], letter[b"starts"]

    assert counted() == (b"0", b"2")
    assert counted(attempt="3", starts="6") == (b"2", b"8")
    assert counted(attempt="99999999999") == (b"0", b"2")  # a number that is refused is not believed


def test_an_entry_of_too_many_fields_still_makes_a_dead_letter():
    """The scripts can pass on some thousands: what is beyond is cut off."""
    letter = buried(an_entry(task="t", **{f"f{n}": "x" for n in range(20_000)}))
    assert len(letter) < MOST_FIELDS + 50


@pytest.mark.parametrize("entry", [b"18446744073709551615-0", b"0-1", b"1700000000000-0"])
@pytest.mark.parametrize("field", ["enqueued_at", "expires"])
def test_times_beyond_the_calendar_do_no_harm(entry, field):
    """Ids and times by hand may be anything; a dead letter of them can still be written."""
    letter = buried(an_entry(entry, task="t", **{field: str(2**63 - 1)}))
    assert letter[b"task"] == b"t"
    assert iso(1e300) == "9999-12-31T23:59:59.000+00:00"


def test_the_name_of_a_field_is_quoted_once():
    """Also one that is no UTF-8 itself."""
    for name in (b"note", b"\xff"):
        delivery = Delivery(0, "standard", b"1-1", [b"task", b"t", name, b"\xfe"])
        with pytest.raises(UndecodableError) as caught:
            delivery.check()
        shown = name.decode(errors="backslashreplace")
        assert str(caught.value).startswith(f"field {shown!r} is ")
