"""P13, bounds: what is outside is refused where it enters, and what is inside can be added up by everything behind."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from functools import partial

import pytest

from streamq import RedisBroker, RetryLater, Worker, task
from streamq.errors import ConfigurationError, UndecodableError
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, Idempotency, RateLimitMiddleware
from streamq.tasks.options import Options
from streamq.wire.bounds import AFTER, LAST_MOMENT, LONGEST, TABLE, Bound
from streamq.wire.dead_letter_fields import DeadLetterBound
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys, is_stream_of
from streamq.wire.tiers import DEFAULT_TIERS, Tier
from streamq.wire.workflow_bounds import workflow_bytes
from streamq.wire.workflow_steps import decode

NAN, INF = float("nan"), float("inf")
RUBBISH = (NAN, INF, -INF, 1e308, -1e300, 2**63, 10**400, -(10**400), True, "5", b"5", 1j, [5], Decimal(5), Fraction(5))


@task
async def send(to: str = "") -> None: ...


@pytest.mark.parametrize("bound", TABLE, ids=lambda bound: bound.name)
def test_a_bound_takes_its_ends_and_nothing_beyond(bound: Bound):
    """The error names the value, the bound, and what to give."""
    assert bound.check(int(bound.lowest) if bound.whole else bound.lowest) == bound.lowest
    assert bound.check(int(bound.highest) if bound.whole else bound.highest) == bound.highest
    step = 1 if bound.whole else abs(bound.highest) / 1000
    for value in (int(bound.highest) + step, int(bound.lowest) - step, *RUBBISH):
        with pytest.raises(ConfigurationError, match="cannot be used: give a") as caught:
            bound.check(value)
        assert len(str(caught.value)) < 500
    if bound.unit == "s":
        with pytest.raises(ConfigurationError):
            bound.check(timedelta.max)
    else:
        with pytest.raises(ConfigurationError):
            bound.check(timedelta(seconds=1))


def test_a_number_of_a_subclass_becomes_a_plain_one():
    """JSON encoders know no others."""

    class Odd(float):
        def __repr__(self):
            raise SystemExit

    class Number(IntEnum):
        ONE = 1

    bound = Bound("x", "s", 0, 10, "")
    assert type(bound.check(Odd(5))) is float
    assert type(bound.check(Number.ONE)) is int
    assert bound.check(timedelta(milliseconds=1500)) == 1.5


NUMBERS = (
    "priority", "delay", "at", "expires", "retries", "timeout", "result_ttl", "dedup_ttl", "dedup_window",
    "dedup_max_delay",
)  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", RUBBISH, ids=lambda value: str(value)[:12])
def test_an_option_is_refused_at_the_enqueue(name, value):
    """Before anything is sent."""
    more = {"dedup_key": "k"} if name.startswith("dedup") else {}
    if name == "dedup_max_delay":
        more["dedup_mode"] = "keep_last"
    with pytest.raises(ConfigurationError, match=name):
        send.options(**more, **{name: value})


@pytest.mark.parametrize("name", ["timeout", "result_ttl", "dedup_ttl", "dedup_window", "dedup_max_delay"])
def test_a_time_may_be_a_timedelta(name):
    """In every option of seconds; it is kept as seconds."""
    mode = {"dedup_mode": "keep_last"} if name == "dedup_max_delay" else {}
    assert getattr(Options(dedup_key="k", **mode, **{name: timedelta(minutes=2)}), name) == 120.0


def test_times_of_a_task_may_be_timedeltas():
    """And those of its backoff."""

    @task(timeout=timedelta(seconds=5), result_ttl=timedelta(hours=1), backoff=[timedelta(seconds=2), 3])
    async def timed() -> None: ...

    assert (timed.timeout, timed.result_ttl) == (5.0, 3600.0)
    assert timed.policy.delay(1, ValueError(), None) == 2.0  # type: ignore[arg-type]
    assert RetryLater(after=timedelta(minutes=1)).after == 60.0


@pytest.mark.parametrize("value", [*RUBBISH, -1, 0])
def test_the_settings_of_a_task_are_checked_where_it_is_declared(value):
    """Each names the task."""
    for name in ("timeout", "result_ttl"):
        with pytest.raises(ConfigurationError, match=f"'bad': {name}"):
            task(name="bad", **{name: value})(lambda: None)  # type: ignore[call-overload]


@pytest.mark.parametrize("value", RUBBISH, ids=lambda value: str(value)[:12])
def test_constructors_check_what_they_are_given(value):
    """Nothing that is no number in its bound is kept for later."""
    broker = RedisBroker("memory://")
    makers = [
        *(lambda name=name: Worker(broker, tasks=[send], **{name: value}) for name in (
            "concurrency", "visibility_timeout", "grace_period", "max_crashes", "unknown_wait", "max_prefetch",
        )),
        *(lambda name=name: RedisBroker("memory://", **{name: value}) for name in (
            "max_payload", "connect_timeout", "reply_timeout",
        )),
        lambda: DeadLetterBound(max_size=value), lambda: DeadLetterBound(max_age=value),
        lambda: ConcurrencyLimit(value), lambda: ConcurrencyLimit(1, lease=value),
        lambda: RateLimitMiddleware(value), lambda: RateLimitMiddleware(1, burst=value),
        *(lambda name=name: CircuitBreaker(**{name: value}) for name in (
            "failure_threshold", "reset_timeout", "failure_rate", "window", "min_calls", "half_open_max",
            "release_rate",
        )),
        *(lambda name=name: Idempotency(**{name: value}) for name in ("ttl", "lease", "wait")),
        lambda: Worker(broker, tasks=[send], tiers={"standard": value}),
    ]  # fmt: skip
    for make in makers:
        with pytest.raises(ConfigurationError):
            make()


def test_a_datetime_at_the_end_of_the_calendar_is_its_last_second():
    """In UTC it may be beyond; before 1970 it is refused."""
    far = datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))
    broker = RedisBroker("memory://")
    builder = broker._builder
    assert builder._expires_at(far) == LAST_MOMENT
    with pytest.raises(ConfigurationError):
        builder._expires_at(datetime(1969, 1, 1, tzinfo=UTC))


def test_whatever_a_request_asks_for_can_be_made():
    """The handler raises it; the bound is checked when its run is decided."""
    for value in (*RUBBISH, None, object()):
        assert str(RetryLater(after=value))  # type: ignore[arg-type]
    assert str(RetryLater(after=2)) == "again in 2 s"
    assert 0 in AFTER


# --- fields -------------------------------------------------------------------------------------------


def entry(**fields):
    flat = [part if isinstance(part, bytes) else str(part).encode() for pair in fields.items() for part in pair]
    return Delivery(1, "standard", b"1700000000000-0", flat)


FORMS = ("+5", " 5", "5 ", "5\n", "1_0", "\u0665", "\u00b2", "0x5", "5.", ".5", "1e5 ", "--5", "", "nan", "inf", "-inf",
         "Infinity", "1e999", "9" * 400, "true", "5,0", "-0.5", str(2**63), str(2**64))  # fmt: skip
WHOLE = ("attempt", "retries", "starts", "priority", "expires", "enqueued_at", "unknown_since")


@pytest.mark.parametrize("name", [*WHOLE, "timeout", "result_ttl"])
@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_a_number_in_a_message_has_one_form(name, form):
    """Digits of ASCII; what int() and float() of Python take beyond them is refused."""
    with pytest.raises(UndecodableError, match=name):
        entry(task="t", **{name: form}).check()


@pytest.mark.parametrize(("name", "form"), [
    ("timeout", "1e-05"), ("timeout", "0.25"), ("timeout", "10000000000.0"), ("result_ttl", "1E+2"),
    ("retries", "0"), ("priority", "-7"), ("expires", "1767225600000"), ("attempt", "0007"),
])  # fmt: skip
def test_numbers_by_hand_are_read(name, form):
    """As a person or another program writes them."""
    entry(task="t", **{name: form}).check()


@pytest.mark.parametrize("at", [b"1-1", b"18446744073709551615-0"])
def test_what_is_sent_again_can_be_read_again(at):
    """Times and counts of our own stay within the bounds that we set."""
    first = Delivery(0, "bulk", at, [b"task", b"t", b"starts", b"8589934592"], crashed_workers=("a", "b"))
    first.check()
    again = [part.encode() for part in first.resend_fields("workers", starts=str(first.starts))]
    Delivery(0, "bulk", b"1-1", again).check()


# --- workflows ----------------------------------------------------------------------------------------


def step(stream="queue:bulk", size=0, **more):
    return {"send": stream, "fields": ["task", "t", "id", "i", "args", "x" * size], **more}


def checked(stages):
    keys = Keys.of("queue", "workers", [*DEFAULT_TIERS, Tier("odd", stream="elsewhere")])
    entry(task="t", then=json.dumps(stages)).check(partial(is_stream_of, keys))


@pytest.mark.parametrize("stream", ["queue:bulk", "queue:critical", "elsewhere", "queue:tier-of-another-broker"])
def test_a_next_step_goes_to_a_tier_of_its_namespace(stream):
    """Also to one that this worker does not serve."""
    checked([step(stream)])
    checked([{"group": [[step(stream)]]}, step()])


@pytest.mark.parametrize("stream", [
    "other:bulk", "queue", "queue:", "queue:dead", "queue:bulk:delayed", "queue:bulk:messages", "queue:result:x",
    "queue:bulk ", "queue:*", "", "QUEUE:bulk", "queue:x:bulk", "queue:wake",
])  # fmt: skip
def test_a_next_step_goes_nowhere_else(stream):
    """Neither into another namespace nor onto a key of streamq."""
    for stages in ([step(stream)], [{"group": [[step()], [step(stream)]]}, step()], [step(), step(stream)]):
        with pytest.raises(UndecodableError, match="no stream of a tier"):
            checked(stages)


@pytest.mark.parametrize("value", [1e300, 1e11, -1, True, "5", [1], 10**400])
@pytest.mark.parametrize("name", ["delay", "at", "expires", "keep"])
def test_times_of_a_next_step_have_bounds(name, value):
    """As those of options."""
    if name == "at" and value == 1e11:
        return
    with pytest.raises(UndecodableError):
        decode(json.dumps([step(**{name: value})]).encode())


def test_a_workflow_has_so_many_steps_and_levels():
    """And no more."""
    checked([step(size=1)] * 1000)
    deep: list = [step()]
    for _ in range(33):
        deep = [{"group": [deep]}, step()]
    with pytest.raises(UndecodableError, match="groups in each other"):
        checked(deep)
    with pytest.raises(UndecodableError, match="at most 10,000"):
        checked([{"group": [[step()]] * 10_001}])
    with pytest.raises(UndecodableError):
        checked([{"member": 1, "of": 10**9}, step()])


def test_a_small_message_does_not_become_gigabytes():
    """Each member of a group carries what comes after the group."""
    with pytest.raises(UndecodableError, match="bytes at a time"):
        checked([{"group": [[step()]] * 2000}, step(size=60_000)])
    nested = {"group": [[{"group": [[step()]] * 40}, step()]] * 40}
    with pytest.raises(UndecodableError, match="bytes at a time"):
        checked([nested, step(size=60_000)])
    checked([{"group": [[step()]] * 100}, step(size=60_000)])


def test_the_size_of_a_workflow_is_about_that_of_its_messages():
    """A chain carries all that is left; a group carries it once for each member."""
    assert 900 < workflow_bytes(decode(json.dumps([step(size=300)] * 3).encode())) < 1500
    stages = decode(json.dumps([{"group": [[step()]] * 10}, step(size=1000)]).encode())
    assert 10_000 < workflow_bytes(stages) < 14_000
    assert LONGEST < LAST_MOMENT
