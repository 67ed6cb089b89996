"""A task looks like its function, and every function that a worker can run may be one."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import operator
import pickle
import sys
import time
import typing

import anyio
import anyio.lowlevel
import pytest

from streamq import RedisBroker, Task, batch_task, task
from streamq.errors import ConfigurationError, TaskFailedError, TaskNameError
from streamq.tasks.task import AsyncTask
from tests.at_work import working


@task
async def send(to: str, times: int = 2) -> int:
    """Send it."""
    return times


@task(retries=0)
def sync(to: str, *, times: int = 3) -> int:
    """Send it, in a thread."""
    return times


@batch_task(size=2)
async def rows(items: list[int]) -> None:
    """Insert rows."""


async def unnamed(to: str, times: int = 2) -> int:
    return times


renamed = task(name="of.another.name")(unnamed)
TASKS: list[Task[..., typing.Any]] = [send, sync, rows, renamed]


@pytest.mark.parametrize("one", TASKS, ids=lambda one: one.name)
def test_it_shows_what_its_function_shows(one):
    function, options = one.function, one.options(retries=7)
    for shown in (one, options):
        for name in ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__", "__code__", "__defaults__",
                     "__kwdefaults__"):  # fmt: skip
            assert getattr(shown, name) == getattr(function, name), name
        assert inspect.signature(shown) == inspect.signature(function)
        assert inspect.getdoc(shown) == inspect.getdoc(function)
        assert typing.get_type_hints(shown) == typing.get_type_hints(function)
        assert inspect.unwrap(shown) is function
        assert inspect.iscoroutinefunction(shown) is inspect.iscoroutinefunction(function)
        assert asyncio.iscoroutinefunction(shown) is inspect.iscoroutinefunction(function)


def test_its_class_keeps_its_own():
    assert "workers run" in (Task.__doc__ or "")
    assert AsyncTask.__module__ == "streamq.tasks.task"


@pytest.mark.parametrize("one", [send, sync, rows])
def test_it_is_pickled_by_the_name_of_its_function(one):
    assert pickle.loads(pickle.dumps(one)) is one
    copied = pickle.loads(pickle.dumps(one.options(retries=7)))
    assert (copied.function, copied.send_options.retries, type(copied)) == (one.function, 7, type(one))


def test_one_that_is_not_found_by_name_says_so():
    @task
    async def local() -> None: ...

    for one, where in ((local, "<locals>.local"), (renamed, "test_function.unnamed")):
        with pytest.raises(TypeError, match="cannot be pickled: it is not found as tests.*" + where):
            pickle.dumps(one)
        assert copy.copy(one) is one
        assert copy.deepcopy([one]) == [one]


def test_wraps_around_it():
    @functools.wraps(send)
    async def wrapper(*args: typing.Any, **kwargs: typing.Any) -> int:
        return await send(*args, **kwargs)

    assert inspect.signature(wrapper) == inspect.signature(unnamed)
    assert (wrapper.__name__, wrapper.__doc__, wrapper.__module__) == ("send", "Send it.", __name__)
    assert not {"function", "policy", "name"} & vars(wrapper).keys()


async def test_a_background_task_of_starlette_awaits_it(anyio_backend):
    """It was called in a thread, and its coroutine was dropped."""
    background = pytest.importorskip("starlette.background")
    ran = []

    @task
    async def mail(to: str) -> None:
        await anyio.lowlevel.checkpoint()
        ran.append(to)

    await background.BackgroundTask(mail, "a@b.c")()
    assert ran == ["a@b.c"]


# --- what may be a task -----------------------------------------------------------------------


def logged(function):
    """Wrap a function as decorators do that know nothing of async."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


async def body(number: int, plus: int = 0) -> int:
    await anyio.lowlevel.checkpoint()
    return number + plus


class Adder:
    def __init__(self, plus: int) -> None:
        self.plus = plus

    async def __call__(self, number: int) -> int:
        return await body(number, self.plus)

    async def add(self, number: int) -> int:
        return await body(number, self.plus)

    def add_in_thread(self, number: int) -> int:
        return number + self.plus

    @task(name="static")
    @staticmethod
    async def static(number: int) -> int:
        return await body(number)

    @staticmethod
    @task(name="static.outside")
    async def static_outside(number: int) -> int:
        return await body(number)


FUNCTIONS = {
    "a sync wrapper": logged(body),
    "two sync wrappers": logged(logged(body)),
    "a sync wrapper of a partial": logged(functools.partial(body, plus=0)),
    "a partial": functools.partial(body, plus=0),
    "a partial of a partial": functools.partial(functools.partial(body, plus=1), plus=0),
    "a partial of an object": functools.partial(Adder(0)),
    "an object": Adder(0),
    "a method": Adder(0).add,
    "a sync method": Adder(0).add_in_thread,
    "a static method": staticmethod(body),
    "a lambda": lambda number: body(number, plus=0),
    "a sync lambda": lambda number: number,
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("what", FUNCTIONS)
async def test_every_function_runs(anyio_backend, what, validate):
    """An async function behind a sync one is run by the event loop, whatever is between."""
    one = task(name="one", retries=0, result_ttl=60, validate=validate)(FUNCTIONS[what])
    async with RedisBroker("memory://") as broker, working(broker, one):
        assert await (await broker.enqueue(one, 7)).result(timeout=5) == 7


async def test_those_of_a_class_run(anyio_backend):
    tasks = [Adder.static.options(result_ttl=60), Adder.static_outside.options(result_ttl=60)]
    async with RedisBroker("memory://") as broker, working(broker, *tasks):
        for one in tasks:
            assert await (await broker.enqueue(one, 7)).result(timeout=5) == 7
            assert await one(7) == 7


async def test_a_batch_behind_a_sync_wrapper_runs(anyio_backend):
    async def doubled(numbers: list[int]) -> list[int]:
        await anyio.lowlevel.checkpoint()
        return [2 * number for number in numbers]

    one = batch_task(size=2, wait=0.05, name="one", retries=0, result_ttl=60)(logged(doubled))
    async with RedisBroker("memory://") as broker, working(broker, one):
        handles = await broker.enqueue_many([one.call(number) for number in (1, 2)])
        assert [await handle.result(timeout=5) for handle in handles] == [2, 4]


async def test_the_timeout_and_the_error_of_what_is_behind_count(anyio_backend, server):
    async def sleeps(number: int) -> None:
        await anyio.sleep(number)
        raise LookupError("own")

    one = task(name="one", retries=0, timeout=1.0, result_ttl=60)(logged(sleeps))
    async with RedisBroker(server.url) as broker, working(broker, one):
        late, wrong = await broker.enqueue(one, 60), await broker.enqueue(one, 0)
        for handle, kind in ((late, "TaskTimeoutError"), (wrong, "LookupError")):
            with pytest.raises(TaskFailedError, match=kind):
                await handle.result(timeout=5)


def test_what_can_be_none_is_refused():
    with pytest.raises(ConfigurationError, match="'self', which its worker has not: make it a function or a @static"):

        class _Mailer:
            @task
            async def send(self, to: str) -> None: ...

    with pytest.raises(ConfigurationError, match="not for a @classmethod, its worker has no class"):

        class _Other:
            @task
            @classmethod
            async def send(cls, to: str) -> None: ...

    for wrong in (5, Adder, send, "send"):
        with pytest.raises(ConfigurationError, match="@task is for functions, not for "):
            task(wrong)  # type: ignore[call-overload]
    for nameless in (Adder(0), functools.partial(body), lambda: 5):
        with pytest.raises(TaskNameError, match=r"has no name: give @task\(name=...\)"):
            task(nameless)


UNREADABLE = [
    functools.partial(int, "5"), functools.partial(functools.partial(int), "5"), functools.partial(dict, a=1), max,
    {}.update, functools.partial(body, 1, 2, 3), functools.partial(body, missing=1),
]  # fmt: skip
if sys.version_info < (3, 13):  # from then on these have one
    UNREADABLE += [operator.itemgetter(1), operator.methodcaller("send"), time.sleep]


@pytest.mark.parametrize("function", UNREADABLE, ids=range(len(UNREADABLE)))
@pytest.mark.parametrize("declare", [task, batch_task])
def test_what_has_no_signature_is_refused_where_it_is_declared(function, declare):
    """It was a bare ValueError, in the worker. What is written in C and has a signature may be a task."""
    with pytest.raises(
        ConfigurationError, match=r"task 'five': the parameters of .* cannot be read .*write a function"
    ):
        declare(name="five")(function)


@pytest.mark.parametrize(
    "function", [len, functools.partial(print, sep=""), "".join, functools.lru_cache(logged(body))]
)
def test_what_has_a_signature_and_no_code_may_be_a_task(function):
    assert task(name="five")(function).arguments.names == {*inspect.signature(function).parameters}


@pytest.mark.parametrize("function", [
    functools.partial(len), Adder(0).add_in_thread, lambda number: number
])  # fmt: skip
def test_a_process_must_find_it(function):
    with pytest.raises(ConfigurationError, match=r"a process cannot find .* by its name: define it as a function at"):
        task(name="one", run_in="process")(function)
