"""P13: an argument of a wrong type is refused by the constructor, and not by what uses it later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from streamq import Backoff, Cron, Delays, Inbox, RedisBroker, Tier, Worker, batch_task, group, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import CircuitOpenError, ConfigurationError, StreamqError, TaskNameError
from streamq.handlers.progress import Report
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, MiddlewareChain, RateLimitMiddleware
from streamq.monitoring import QueueMonitor
from streamq.tasks.options import OPTION_NAMES

WRONG: tuple[Any, ...] = (5, 1.5, object(), [5], b"5")
_NAMED = {"Tier.name": "tier="}  # what the error says for them
ARGUMENTS: dict[str, Callable[[Any], Any]] = {}


@task
async def add(a: int, b: int) -> int:
    return a + b


def _sync() -> None: ...


for _name in ["url", "queue_name", "namespace", "group", "tiers", "dead_letters", "clock", "middleware", "signing"]:
    ARGUMENTS[f"RedisBroker.{_name}"] = lambda value, name=_name: RedisBroker(**{name: value})
for _name in ["broker", "tasks", "middleware", "tiers", "lifespan", "listeners", "name", "burst"]:
    ARGUMENTS[f"Worker.{_name}"] = lambda value, name=_name: Worker(
        **{"broker": RedisBroker("memory://"), "tasks": [add], name: value}
    )
for _name in ["middleware", "validate", "on_exhausted", "cron", "retry_on", "give_up_on", "run_in", "name"]:
    ARGUMENTS[f"task.{_name}"] = lambda value, name=_name: task(**{name: value})(_sync)
for _name in ["name", "stream"]:
    ARGUMENTS[f"Tier.{_name}"] = lambda value, name=_name: RedisBroker(tiers=[Tier(**{"name": "a", name: value})])
ARGUMENTS["DeadLetterQueue.broker"] = lambda value: DeadLetterQueue(broker=value)
ARGUMENTS["QueueMonitor.broker"] = lambda value: QueueMonitor(broker=value)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_value_of_a_wrong_type_is_refused_at_once(name: str):
    """With ConfigurationError (or its like for names), which names the argument."""
    for value in WRONG:
        with pytest.raises(
            (ConfigurationError, TaskNameError), match=_NAMED.get(name, name.partition(".")[2].rstrip("s"))
        ):
            ARGUMENTS[name](value)


class Hostile:
    """A value whose texts raise."""

    def __repr__(self) -> str:
        raise ZeroDivisionError("no text")

    __str__ = __repr__


class HostileText(str):
    """A text whose texts raise."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise ZeroDivisionError("no text")


HOSTILE = Hostile()


async def hostile_default(a: int, b: Any = HOSTILE) -> None: ...


MORE: dict[str, Callable[[Any], Any]] = {
    **{f"task.options.{name}": lambda value, name=name: add.options(**{name: value}) for name in sorted(OPTION_NAMES)},
    "task.options.delay with at": lambda value: add.options(delay=value, at=1e9),
    "task.retries": lambda value: task(retries=value)(_sync),
    "task.retries of a class": lambda value: task(retries={value: 1})(_sync),
    "task.backoff": lambda value: task(backoff=value)(_sync),
    "task.backoff.Delays": Delays,
    "task.backoff.Backoff": lambda value: Backoff(base=value),
    "task of": task,
    "task.middleware of": lambda value: task(middleware=[value])(_sync),
    "chain of": lambda value: MiddlewareChain([value]),
    "Worker.tasks of": lambda value: Worker(RedisBroker("memory://"), tasks=[value]),
    **{f"Cron.{name}": lambda value, name=name: Cron(**{"expression": "* * * * *", name: value})
       for name in ("expression", "tz", "missed", "overlap", "args", "kwargs")},
    **{f"RateLimitMiddleware.{name}": lambda value, name=name: RateLimitMiddleware(**{"max_per_second": 1, name: value})
       for name in ("max_per_second", "key", "scope", "name")},
    **{f"ConcurrencyLimit.{name}": lambda value, name=name: ConcurrencyLimit(**{"max_running": 1, name: value})
       for name in ("max_running", "key", "scope", "name")},
    **{f"CircuitBreaker.{name}": lambda value, name=name: CircuitBreaker(**{name: value})
       for name in ("failure_threshold", "scope", "name")},
    "CircuitBreaker of": CircuitBreaker(),
    "Inbox.table": Inbox,
    "Report.note": lambda value: Report.of(1, 2, value, None, 0.0),
    "Report.data": lambda value: Report.of(1, 2, "", value, 0.0),
    "group of": group,
    "Tier.weight": lambda value: RedisBroker(tiers=[Tier("a", weight=value)]),
    "arguments": lambda value: add.call(value, 1),
    "too many arguments": lambda value: task(hostile_default).call(1, 2, value),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ARGUMENTS, *MORE])
def test_a_value_without_a_text_is_refused_as_any_other(name: str):
    """Its `repr` may raise anything: the error is streamq's own, and says so."""
    for value in (HOSTILE, HostileText("\n" * 1000)):
        with suppress(StreamqError):
            {**ARGUMENTS, **MORE}[name](value)


async def test_a_value_without_a_text_is_refused_by_the_enqueue(anyio_backend: str):
    """Also as the argument of a task, and as a task."""
    async with RedisBroker("memory://") as broker:
        for wrong in (lambda: broker.enqueue(Hostile()), lambda: broker.enqueue(add, Hostile(), 1),  # type: ignore[call-overload]
                      lambda: broker.start(Hostile()), lambda: broker.schedule("a", "* * * * *", Hostile())):  # type: ignore[arg-type]  # fmt: skip
            with pytest.raises(StreamqError):
                await wrong()


def test_the_failure_of_a_circuit_may_have_no_text():
    """Its last failure is an exception of the user."""

    class FailedError(Exception):
        __repr__ = __str__ = Hostile.__repr__

    assert "ZeroDivisionError" in str(CircuitOpenError("name", after=1.0, last_failure=FailedError()))


def test_the_error_says_what_to_give_and_shows_no_value():
    """A value in the wrong place may be a password."""
    with pytest.raises(ConfigurationError, match=r"^dead_letters is of type str: give a DeadLetterBound$"):
        RedisBroker(dead_letters="hunter2")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"^url is of type list: give the URL of a server, as text$"):
        RedisBroker(["redis://:hunter2@h"])  # type: ignore[arg-type]


def test_task_names_the_options_that_it_has():
    """Already where it is called, and not where it decorates."""
    with pytest.raises(ConfigurationError, match="@task has no option nosuch, what: it has name, retries, "):
        task(nosuch=1, what=2)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="@batch_task has no option max_wait: it has size, wait, name, retr"):
        batch_task(max_wait=1)  # type: ignore[call-arg]


async def test_counts_and_reasons_of_reads_are_checked(anyio_backend: str):
    """A negative count or an unknown reason would find nothing, and look like an empty queue."""
    async with RedisBroker("memory://") as broker:
        dead = DeadLetterQueue(broker=broker)
        for count in (-1, 10**12, 1.5, "3"):
            with pytest.raises(ConfigurationError, match="count="):
                await dead.peek(count)  # type: ignore[arg-type]
        for limit in (0, -1, 10**12, "3"):
            with pytest.raises(ConfigurationError, match="limit="):
                await dead.replay(limit=limit)  # type: ignore[arg-type]
        selecting: tuple[Callable[[], Any], ...] = (
            partial(dead.peek, reason="bla"), partial(dead.replay, reason="bla"), partial(dead.purge, reason="bla"),
        )  # fmt: skip
        for select in selecting:
            with pytest.raises(ConfigurationError, match="reason='bla' is not known: give one of retries_exhausted, "):
                await select()
        for limit in (-1, 10**12, "3"):
            with pytest.raises(ConfigurationError, match="limit="):
                broker.scheduled(limit=limit)  # type: ignore[arg-type]


async def test_a_timeout_may_be_a_timedelta(anyio_backend: str):
    """Also where it ends up in the text of an error."""
    async with RedisBroker("memory://") as broker:
        handle = await broker.enqueue(add.options(result_ttl=60), 1, 2)
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            await handle.result(timeout=timedelta(seconds=0.01))


def test_a_time_before_1970_is_refused_by_the_options():
    """And not only by the enqueue."""
    with pytest.raises(ConfigurationError, match="at of 1960"):
        add.options(at=datetime(1960, 1, 1, tzinfo=UTC))


def test_a_window_of_the_monitor_is_bounded():
    """Counters are kept for 15 minutes."""
    broker = RedisBroker("memory://")
    assert QueueMonitor(broker=broker, window=timedelta(minutes=1)).window == 60.0
    for window in (timedelta(seconds=5), 9.9, 901, "60", float("nan")):
        with pytest.raises(ConfigurationError, match=r"window=.*at least 10 and at most 900"):
            QueueMonitor(broker=broker, window=window)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0.0005, 100_000_001])
def test_timeouts_have_one_bound_in_the_url_and_as_arguments(seconds: float):
    """From 1 ms to three years."""
    with pytest.raises(ConfigurationError):
        RedisBroker(connect_timeout=seconds)
    with pytest.raises(ConfigurationError):
        RedisBroker(f"redis://localhost?socket_timeout={seconds}")
