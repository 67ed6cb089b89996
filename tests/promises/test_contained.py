"""No message and no outcome ends a worker (P13): what goes wrong with a delivery belongs to that delivery."""

from __future__ import annotations

import json
import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streamq import RedisBroker, Reject, RetryLater, Worker, task
from streamq.consumer import run_result
from streamq.consumer.prefetch_buffer import PrefetchBuffer
from streamq.diagnostics.safe_log import faults
from streamq.errors import TaskFailedError
from streamq.middleware import MiddlewareChain
from streamq.tasks.outcome import Outcome, decide
from streamq.wire.delivery import Delivery
from tests.at_work import assert_nothing_left, burst, dead, pending, until, working
from tests.servers import TestServer

pytestmark = pytest.mark.paired

RAISED = [LookupError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit]
ran: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


@task(retries=0)
async def good(n: int) -> None:
    ran.append(n)


@task(retries=0, result_ttl=60, validate=False)
async def echo(*what: Any) -> Any:
    return what


async def settle_beside_good_tasks(server: TestServer, broker: RedisBroker, *tasks: Any, **options: Any) -> None:
    """Run a worker on what lies there, and good tasks around it: it ends well, and they have run once."""
    await broker.enqueue_many([good.call(n) for n in range(10)])
    await burst(broker, good, *tasks, visibility_timeout=1.0, **options)
    assert sorted(ran) == list(range(10))
    assert_nothing_left(server)


POISON = {
    "a result for ever": ["result_ttl", "1e308"],
    "a timeout for ever": ["timeout", "1e300"],
    "a stage that is a text": ["then", '["x"]'],
    "a stage that is null": ["then", "[null]"],
    "a step into another namespace": ["then", '[{"send":"other:bulk","fields":["task","echo","id","x"]}]'],
    "a step onto a key": ["then", '[{"send":"queue:bulk:delayed","fields":["task","echo","id","x"]}]'],
    "a step in a million years": ["then", '[{"send":"queue:bulk","fields":["task","echo","id","x"],"delay":1e300}]'],
    "an attempt that cannot be added to": ["attempt", str(2**63 - 1)],
    "starts that cannot be added to": ["starts", str(2**63 - 1)],
    "retries beyond counting": ["retries", str(2**63 - 1)],
    "a time of another kind of digits": ["expires", "\u0661\u0662\u0663"],
    "a time with a plus": ["enqueued_at", "+5"],
    "a number with a blank": ["retries", " 1"],
    "a bomb": ["then", json.dumps([
        {"group": [[{"send": "queue:bulk", "fields": ["task", "echo", "id", f"m{n}"]}] for n in range(1000)]},
        {"send": "queue:bulk", "fields": ["task", "echo", "id", "end", "args", json.dumps(["x" * 60_000])]},
    ])],
}  # fmt: skip


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_a_message_outside_its_bounds_is_a_dead_letter(anyio_backend, server):
    """Reason `undecodable`; the field is named; nothing of it was carried out."""
    for fields in POISON.values():
        server.command("XADD", "queue:standard", "*", "task", "echo", "id", "poison", *fields)
    async with RedisBroker(server.url) as broker:
        await settle_beside_good_tasks(server, broker, echo)
    letters = dead(server)
    assert [letter["reason"] for letter in letters] == ["undecodable"] * len(POISON)
    for letter, fields in zip(letters, POISON.values(), strict=True):
        assert fields[0] in letter["error"]
    assert server.command("EXISTS", "other:bulk") == 0


RUBBISH = [float("nan"), float("inf"), -float("inf"), 1.79e306, 10**400, "5", None, True, [1], object()]


@task(retries=0)
async def asks(at: int) -> None:
    raise RetryLater("later", after=RUBBISH[at])  # type: ignore[arg-type]


@task(retries=1, backoff=lambda attempt, error: RUBBISH[int(str(error))])  # type: ignore[arg-type, return-value]
async def backs_off(at: int) -> None:
    raise ValueError(at)


class Headers:
    def keys(self) -> Any:
        raise LookupError("no keys")


@task(retries=0)
async def asks_with_headers(what: str) -> None:
    found: dict[str, Any] = {
        "no JSON": {"a": object()}, "hostile": Headers(), "large": {"a": "x" * (2 << 20)}, "keys": {1: 2},
    }  # fmt: skip
    raise RetryLater("later", after=0, headers=found[what])


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_a_time_that_is_none_is_a_failed_attempt(anyio_backend, server, caplog):
    """`RetryLater(after=float(header))` with what a broken server sent."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([asks.call(at) for at in range(len(RUBBISH))])
        await broker.enqueue_many([asks_with_headers.call(what) for what in ("no JSON", "hostile", "large", "keys")])
        await settle_beside_good_tasks(server, broker, asks, asks_with_headers)
    letters = dead(server)
    assert [letter["reason"] for letter in letters] == ["retries_exhausted"] * (len(RUBBISH) + 4)
    assert all(letter["error_type"].endswith("Error") for letter in letters)
    assert sum("RetryLater(after=" in letter["error"] for letter in letters) == len(RUBBISH)
    assert caplog.text.count("and has failed: streamq.errors.ConfigurationError: RetryLater(after=") == len(RUBBISH)


async def test_a_backoff_that_returns_rubbish_is_replaced(anyio_backend):
    """And logged; the task is retried as by default."""
    policy = backs_off.policy
    for at in range(len(RUBBISH)):
        delay = policy.delay(1, ValueError(at), _Middle())
        assert delay == 0.5, RUBBISH[at]


class _Middle:
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class HostileError(Exception):
    """Every text of it raises; so does what a debugger, or a class test, asks of it."""

    kind: type[BaseException] = LookupError

    def _raise(self, *_: Any) -> Any:
        raise self.kind("hostile")

    __str__ = __repr__ = __format__ = _raise
    __notes__ = __cause__ = __context__ = property(_raise)  # type: ignore[assignment]


@task(retries=1, backoff=lambda attempt, error: 0.01)
async def fails_hostile(kind: int) -> None:
    error = HostileError()
    error.kind = RAISED[kind]
    raise error


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_an_exception_whose_texts_raise_fails_its_task_alone(anyio_backend, server):
    """SystemExit from `__str__` too."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([fails_hostile.call(kind) for kind in range(len(RAISED))])
        await settle_beside_good_tasks(server, broker, fails_hostile)
    letters = dead(server)
    assert [letter["reason"] for letter in letters] == ["retries_exhausted"] * len(RAISED)
    assert all("HostileError" in letter["error_type"] for letter in letters)


class Undecided(type):
    """A class that decides by code of its own what is an instance of it."""

    def __instancecheck__(cls, _: Any) -> bool:
        raise SystemExit("undecided")


class UndecidedError(Exception, metaclass=Undecided):
    pass


@task(retries=3, give_up_on=UndecidedError)
async def cannot_be_decided() -> None:
    raise ValueError


class Unprintable:
    def __repr__(self) -> str:
        raise SystemExit("no")

    def items(self) -> Any:
        raise SystemExit("no")


@task(retries=0, result_ttl=60)
async def returns_rubbish() -> Any:
    return {"a": [None, Unprintable()]}


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_what_cannot_be_decided_is_convicted(anyio_backend, server):
    """A dead letter with the reason `internal_error`: code that decides on a failure failed itself."""
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(cannot_be_decided)
        handle = await broker.enqueue(returns_rubbish)
        await settle_beside_good_tasks(server, broker, cannot_be_decided, returns_rubbish)
        with pytest.raises(Exception, match="not JSON"):
            await handle.result(1)
    (letter,) = dead(server)
    assert (letter["task"], letter["reason"]) == ("cannot_be_decided", "internal_error")


@task(retries=0, result_ttl=60)
async def raises_deeply() -> None:
    error: Exception = ValueError("deep")
    for _ in range(3000):
        error = ExceptionGroup("nested", [error])
    raise error


@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_who_waits_for_a_convicted_task_is_told(anyio_backend, server, monkeypatch):
    """As with every other dead letter; its deduplication key is free again, too."""

    def decided(*args: Any, **options: Any) -> Outcome:
        # Some versions of Python stop at so many levels of groups, others do not.
        if any(isinstance(one, BaseExceptionGroup) for one in (*args, *options.values())):
            raise RecursionError
        return decide(*args, **options)

    monkeypatch.setattr(run_result, "decide", decided)
    send = raises_deeply.options(dedup_key="k", dedup_ttl=60)
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(send)
        await settle_beside_good_tasks(server, broker, raises_deeply)
        with pytest.raises(TaskFailedError, match="RecursionError") as failed:
            await handle.result(1)
        assert failed.value.reason == "internal_error"
        assert server.command("EXISTS", "queue:dedup:k") == 0
    assert [letter["reason"] for letter in dead(server)] == ["internal_error"]


@task(retries=1, backoff=lambda attempt, error: 0.01)
async def fails() -> None:
    raise ValueError("no")


@task
async def rejects() -> None:
    raise Reject("no")


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_logging_that_raises_harms_no_task(anyio_backend, server, kind, capsys):
    """A filter that reads a request id outside of a request; it is reported, and swallowed."""

    def refuse(_: logging.LogRecord) -> bool:
        raise kind("no request")

    logger = logging.getLogger("streamq")
    handler = logging.StreamHandler()
    handler.addFilter(refuse)
    logger.addHandler(handler)
    logger.addFilter(refuse)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    faults.count = 0
    try:
        async with RedisBroker(server.url) as broker:
            await broker.enqueue_many([fails.call(), rejects.call()])
            server.command("XADD", "queue:standard", "*", "task", "nobody-knows-it")
            await settle_beside_good_tasks(server, broker, fails, rejects, unknown_wait=0.1)
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        logger.removeFilter(refuse)
    assert sorted(letter["reason"] for letter in dead(server)) == ["rejected", "retries_exhausted", "unknown_task"]
    assert faults.count
    assert "logging to 'streamq' failed" in capsys.readouterr().err


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("server", ["memory", "redis"], indirect=True)
async def test_a_listener_that_raises_harms_no_task(anyio_backend, server, kind):
    """Whatever it raises, at whatever event; the listeners after it are told."""
    told: list[str] = []

    def refuse(_: Any) -> None:
        raise kind("no")

    async with RedisBroker(server.url) as broker:
        await broker.enqueue(fails)
        await settle_beside_good_tasks(
            server, broker, fails, listeners=[refuse, lambda event: told.append(type(event).__name__)]
        )
    assert told.count("Started") == 12
    assert told.count("Settled") == 12


class Bookkeeping:
    """Middleware whose own loop raises."""

    def __init__(self) -> None:
        self.lives = 0

    async def __call__(self, context: Any, call_next: Any) -> Any:
        return await call_next(context)

    async def live(self, _: Any) -> None:
        self.lives += 1
        raise (LookupError, SystemExit)[self.lives % 2]("bookkeeping")

    def __repr__(self) -> str:
        raise SystemExit("no")


async def test_the_loop_of_a_middleware_that_raises_is_started_again(anyio_backend):
    """It ends no worker."""
    middleware = Bookkeeping()
    async with RedisBroker("memory://") as broker, working(broker, good, middleware=MiddlewareChain(middleware)):
        await until(lambda: middleware.lives >= 3)
        await broker.enqueue(good, 1)
        await until(lambda: ran == [1])


called: list[str] = []


def on_exhausted(_: Any) -> None:
    called.append("called")
    raise RAISED[len(called) % len(RAISED)]("on_exhausted")


async def on_exhausted_async(_: Any) -> None:
    on_exhausted(_)


@task(retries=0, on_exhausted=on_exhausted_async)
async def exhausted() -> None:
    raise ValueError


async def test_on_exhausted_that_raises_harms_no_worker(anyio_backend):
    """SystemExit, KeyboardInterrupt and the like, too."""
    called.clear()
    async with RedisBroker("memory://") as broker, working(broker, good, exhausted):
        await broker.enqueue_many([exhausted.call() for _ in range(12)])
        await until(lambda: len(called) == 12)
        await broker.enqueue(good, 1)
        await until(lambda: ran == [1])


@task(retries=0, timeout=0.05)
async def exits_when_it_times_out() -> None:
    try:
        await anyio.sleep(5)
    except BaseException:  # noqa: BLE001 - a cancellation
        raise SystemExit(3) from None


async def test_a_handler_that_exits_when_it_times_out_is_a_failed_run(anyio_backend, shared_server):
    """Not the end of the worker."""
    server = shared_server("redis")
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(exits_when_it_times_out)
        await settle_beside_good_tasks(server, broker, exits_when_it_times_out)
    (letter,) = dead(server)
    assert letter["reason"] == "retries_exhausted"


# --- an error of our own ------------------------------------------------------------------------------


@task(retries=0)
async def culprit() -> None:
    ran.append("culprit")


async def test_an_error_of_our_own_about_a_delivery_convicts_it(anyio_backend, shared_server, monkeypatch):
    """Where it is known which delivery it was about: a planted mistake while one is decoded."""
    server = shared_server("redis")
    check = Delivery.check

    def mistaken(self: Delivery, *more: Any) -> None:
        check(self, *more)
        if self.task == "culprit":
            raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(Delivery, "check", mistaken)
    server.command("XADD", "queue:standard", "*", "task", "culprit", "mine", "x")
    async with RedisBroker(server.url) as broker:
        await settle_beside_good_tasks(server, broker, culprit)
    (letter,) = dead(server)
    assert (letter["task"], letter["reason"], letter["error_type"]) == (
        "culprit",
        "internal_error",
        "ZeroDivisionError",
    )


@pytest.mark.slow
async def test_an_error_of_our_own_that_ends_workers_is_a_crash_of_what_they_held(
    anyio_backend, shared_server, monkeypatch
):
    """P5: nothing is handed back, so a crash loop is found and ends; the tasks beside the culprit run."""
    server = shared_server("redis")
    accept = PrefetchBuffer.accept

    def mistaken(self: PrefetchBuffer, tier: int, deliveries: Any) -> Any:
        if any(delivery.fields.get(b"task") == b"culprit" for delivery in deliveries):
            for delivery in deliveries:
                self.held[tier][delivery.entry_id] = delivery
            raise ZeroDivisionError("a mistake of ours")
        return accept(self, tier, deliveries)

    monkeypatch.setattr(PrefetchBuffer, "accept", mistaken)
    deaths = 0
    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([culprit.call(), *(good.call(n) for n in range(5))])
        with anyio.fail_after(50):
            while not dead(server):
                worker = Worker(broker, tasks=[culprit, good], visibility_timeout=0.5)
                with anyio.move_on_after(2.5):
                    try:
                        await worker.run()
                    except ZeroDivisionError:
                        deaths += 1
                        assert pending(server) or dead(server)
        await burst(broker, culprit, good, visibility_timeout=0.5)
    (letter,) = dead(server)
    assert (letter["task"], letter["reason"]) == ("culprit", "crash_loop")
    assert deaths >= 3
    assert sorted(ran) == list(range(5))


def test_the_outcomes_are_still_a_closed_set():
    """So that `match` statements over them stay complete."""
    assert len(Outcome.__args__) == 6


async def a_cancellation() -> BaseException:
    """Return one that nobody means: it is over."""
    kept: BaseException | None = None
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class() as error:
            kept = error
            raise
    assert kept is not None
    return kept


@pytest.mark.parametrize("how", ["its class", "its members"])
async def test_an_exception_that_raises_a_cancellation_when_it_is_looked_at(real_server, how):
    """P13: it belongs to its delivery. Its task ran for ever: a worker held it that had no run of it."""
    cancellation = await a_cancellation()

    class LookedError(Exception):
        @property
        def __class__(self):
            raise cancellation

    class Split(ExceptionGroup):
        def split(self, *_):
            raise cancellation

        subgroup = derive = split

    @task(retries=0, result_ttl=60)
    async def odd() -> None:
        raise LookedError if how == "its class" else Split("odd", [ValueError("x")])

    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(odd)
        await settle_beside_good_tasks(real_server, broker, odd)
        with pytest.raises(TaskFailedError) as failed:
            await handle.result(timeout=1)
    assert failed.value.reason == ("retries_exhausted" if how == "its class" else "internal_error")
