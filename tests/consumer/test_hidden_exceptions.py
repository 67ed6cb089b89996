"""An exception that answers for itself what it is, and raises as it is asked: that run has failed, and nothing else."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from streamq import RedisBroker, batch_task, task
from streamq.errors import UnreadableExceptionError
from streamq.errors.readable import readable
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, MiddlewareChain
from tests.at_work import entries, until, working


class OwnError(BaseException):
    """No Exception."""


class Itself(Exception):  # noqa: N818
    @property
    def __class__(self) -> Any:
        raise Itself

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class ItselfAsBase(BaseException):
    def __getattribute__(self, name: str) -> Any:
        raise ItselfAsBase


class Own(Exception):  # noqa: N818
    def __getattribute__(self, name: str) -> Any:
        raise OwnError


class Exits(Exception):  # noqa: N818
    @property
    def __class__(self) -> Any:
        raise SystemExit(3)

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class Lies(Exception):  # noqa: N818
    @property
    def __class__(self) -> Any:
        return KeyboardInterrupt

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class LiesAsGenerator(BaseException):
    @property
    def __class__(self) -> Any:
        return GeneratorExit

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class Members(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise OwnError


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("at the bottom")
    for _ in range(depth):
        error = ExceptionGroup("g", [error])
    return error


HIDDEN = {
    "itself": lambda: Itself("why"),
    "itself, as base": lambda: ItselfAsBase("why"),
    "an error of its own": lambda: Own("why"),
    "an exit": lambda: Exits("why"),
    "Ctrl-C": lambda: Lies("why"),
    "the end of a generator": lambda: LiesAsGenerator("why"),
    "members": lambda: Members("why", [ValueError("x")]),
    "in a group": lambda: ExceptionGroup("g", [ExceptionGroup("h", [ValueError("y"), Itself("why")])]),
    "a deep group": lambda: nested(3000),
}
ran: list[int] = []


def made(way: str) -> BaseException:
    return HIDDEN[way]()


async def passes(context: Any, call_next: Any) -> Any:
    with anyio.CancelScope():
        return await call_next(context)


async def raise_it(way: str) -> None:
    await anyio.lowlevel.checkpoint()
    raise made(way)


def raise_it_in_a_thread(way: str) -> None:
    raise made(way)


async def raise_for_all(ways: list[str]) -> None:
    raise made(ways[0])


async def one_by_one(ways: list[str]) -> Any:
    return [made(way) for way in ways]


PLACES = {
    "loop": task(retries=1, backoff=0, name="t")(raise_it),
    "timed": task(retries=1, backoff=0, name="t", timeout=60)(raise_it),
    "thread": task(retries=1, backoff=0, name="t")(raise_it_in_a_thread),
    "timed thread": task(retries=1, backoff=0, name="t", timeout=60)(raise_it_in_a_thread),
    "middleware": task(
        retries=1, backoff=0, name="t", timeout=60, middleware=[passes, ConcurrencyLimit(3), CircuitBreaker(1000)]
    )(raise_it),
    "batch": batch_task(retries=1, backoff=0, name="t", size=2, wait=0.01)(raise_for_all),
    "item of a batch": batch_task(retries=1, backoff=0, name="t", size=2, wait=0.01)(one_by_one),
}


@task
async def after(number: int) -> None:
    ran.append(number)


FEW = ("itself, as base", "an error of its own", "members", "a deep group")


@pytest.mark.parametrize(
    ("place", "way"), [(place, way) for place in PLACES for way in (HIDDEN if place == "loop" else FEW)]
)
async def test_that_run_fails_and_nothing_else(shared_server, place, way):
    """It is retried, then dead; each runner goes on."""
    server = shared_server("valkey")
    ran.clear()
    one = PLACES[place]
    async with RedisBroker(server.url) as broker, working(broker, one, after, concurrency=2):
        for _ in range(3):
            await broker.enqueue(one, way)
        await until(lambda: server.command("XLEN", "queue:dead") == 3)
        for number in range(3):
            await broker.enqueue(after, number)
        await until(lambda: len(ran) == 3)
    for letter in entries(server, "queue:dead"):
        assert (letter["reason"], letter["attempts"]) == ("retries_exhausted", "2")
        is_group = way in ("members", "in a group", "a deep group")
        assert is_group or letter["error_type"] == "streamq.errors.UnreadableExceptionError"


class Loop:
    """A middleware whose loop raises."""

    def __init__(self, way: str) -> None:
        self.way, self.starts = way, 0

    async def __call__(self, context: Any, call_next: Any) -> Any:
        return await call_next(context)

    async def live(self, store: Any) -> None:
        self.starts += 1
        raise made(self.way)


@pytest.mark.parametrize("way", HIDDEN)
async def test_what_the_worker_calls_beside_runs(shared_server, way):
    """The loop of a middleware, `on_exhausted`, a listener."""
    server = shared_server("redis")
    ran.clear()
    called: list[str] = []

    async def last_words(dead: Any) -> None:
        called.append("on_exhausted")
        raise made(way)

    def listen(event: Any) -> None:
        called.append("listener")
        raise made(way)

    @task(retries=0, on_exhausted=last_words)
    async def fails() -> None:
        raise ValueError

    loop = Loop(way)
    options = {"middleware": MiddlewareChain(loop), "listeners": [listen], "concurrency": 2}
    async with RedisBroker(server.url) as broker, working(broker, fails, after, **options):
        await broker.enqueue(fails)
        await until(lambda: loop.starts > 1 and {*called} == {"on_exhausted", "listener"})
        await broker.enqueue(after, 1)
        await until(lambda: ran)


def test_what_is_put_in_its_place():
    """The exception itself where it can be looked at; else one with its name, its text and its frames."""
    plain, group = ValueError("x"), ExceptionGroup("g", [ValueError("x"), BaseExceptionGroup("h", [KeyError("y")])])
    assert readable(plain) is plain
    assert readable(group) is group
    try:
        raise_it_in_a_thread("itself")
    except Exception as error:  # noqa: BLE001 - `pytest.raises` would look at it
        shown = readable(error)
    assert isinstance(shown, UnreadableExceptionError)
    assert (shown.error_type, shown.error) == (f"{__name__}.Itself", "why")
    assert shown.__traceback__ is not None
    mixed = readable(made("in a group"))
    assert isinstance(mixed, ExceptionGroup)
    assert [type(one) for one in mixed.exceptions] == [ValueError, UnreadableExceptionError]
    deep = readable(nested(3000))
    assert isinstance(deep, ExceptionGroup)
    assert [str(one) for one in deep.exceptions] == ["at the bottom"]
    assert readable(error := nested(20)) is error


def test_groups_that_share_their_members_are_looked_at_once():
    """Forty of them have 2 to the 40 paths to the one at the bottom: nobody lives to see the end of them."""
    error = bottom = ValueError("at the bottom")
    for _ in range(40):
        error = ExceptionGroup("both", [error, error])
    flat = readable(error)
    assert isinstance(flat, ExceptionGroup)
    assert flat.exceptions == (bottom,)
