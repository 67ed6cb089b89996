"""The async fixtures of the pytest plugin, once for each plugin that runs async tests.

Each of these plugins has its own way to make an async fixture, and sees only its own. anyio's runs set-up, test and
tear-down in one task, pytest-trio has a task for each fixture, and pytest-asyncio uses several: there broker and worker
have a task of their own (`own_task`), in the event loop of the test.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from inspect import isgeneratorfunction
from types import ModuleType
from typing import Any

import pytest

LOOP_SCOPES = ("function", "class", "module", "package", "session")  # of pytest-asyncio

_own_function = pytest.StashKey[tuple[Any, str, Any]]()  # of a test: who has it, under which name, and itself

AsyncFixture = Callable[..., AsyncGenerator[Any, None]]
Enter = Callable[[AbstractAsyncContextManager[Any]], AbstractAsyncContextManager[Any]]


def for_anyio() -> ModuleType:
    """Return the fixtures for the plugin of anyio."""
    made = ((f"_{name}_anyio", pytest.fixture(one)) for name, one in _fixtures(lambda one: one))
    return _module("anyio", [*made, ("pytest_fixture_setup", _set_up_guarded)])


def for_trio() -> ModuleType:
    """Return the fixtures for pytest-trio."""
    as_fixture = import_module("pytest_trio").trio_fixture
    return _module("trio", ((f"_{name}_trio", as_fixture(one)) for name, one in _fixtures(lambda one: one)))


def for_asyncio() -> ModuleType:
    """Return the fixtures for pytest-asyncio: for each scope of its loops."""
    as_fixture = import_module("pytest_asyncio").fixture
    made = (
        (f"_{name}_asyncio_{scope}", as_fixture(loop_scope=scope)(one))
        for scope in LOOP_SCOPES
        for name, one in _fixtures(_in_own_task)
    )
    return _module("asyncio", [*made, ("pytest_pyfunc_call", _call_as_it_was)])


@pytest.hookimpl(wrapper=True, trylast=True)
def _set_up_guarded(fixturedef: Any) -> Generator[None, Any, Any]:
    """Have the tear-down of a fixture that anyio's plugin sets up fail, where it would raise SystemExit.

    After a SystemExit in the event loop of a test anyio raises it again at each tear-down. pytest then leaves the rest
    of the tear-down out, and keeps the values of its fixtures: all later tests would get those of this one.
    """
    inner = fixturedef.func
    if getattr(inner, "__module__", "") != "anyio.pytest_plugin" or not isgeneratorfunction(inner):
        return (yield)

    def guarded(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        made = inner(*args, **kwargs)
        yield next(made)
        try:
            next(made, None)
        except SystemExit as error:
            pytest.fail(f"the event loop of this test was ended by {error!r}", pytrace=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixturedef, "func", guarded)
        return (yield)


def give_to_anyio(item: Any) -> None:
    """Have anyio's plugin run a test that pytest-asyncio has taken. Call it as the test is set up.

    pytest-asyncio puts a sync function in the place of the test's own, which runs that in its event loop, and under
    asyncio if it is for trio. anyio's plugin, which is asked before, runs each test whose function is async.
    """
    owner, name = (item.obj.hypothesis, "inner_test") if hasattr(item.obj, "hypothesis") else (item, "obj")
    item.stash[_own_function] = (owner, name, getattr(owner, name))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def _call_as_it_was(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Put the function of a test that was given to anyio back, for the call."""
    with pytest.MonkeyPatch.context() as patch:
        if (own := pyfuncitem.stash.get(_own_function, None)) is not None:
            patch.setattr(*own)
        return (yield)


def _module(runner: str, fixtures: Iterable[tuple[str, Any]]) -> ModuleType:
    """Return a module of fixtures and hooks: in an object of another kind pytest finds none."""
    made = ModuleType(f"{__name__}.{runner}")
    for name, one in fixtures:
        setattr(made, name, one)
    return made


def _in_own_task(manager: AbstractAsyncContextManager[Any]) -> AbstractAsyncContextManager[Any]:
    from streamq.testing.own_tasks import own_task  # noqa: PLC0415 - no test of this run may need it

    return own_task(manager)


def _fixtures(enter: Enter) -> Iterator[tuple[str, AsyncFixture]]:
    """Yield the fixtures with their names; functions of their own each time, for the plugins mark them."""

    async def opened_broker(_streamq_suite: Any) -> AsyncGenerator[Any, None]:
        async with enter(_streamq_suite.open_broker()) as broker:
            yield broker

    async def worker_of_broker(_streamq_suite: Any, broker: Any) -> AsyncGenerator[Any, None]:
        async with enter(_streamq_suite.run_worker(broker)) as worker:
            yield worker

    async def worker_of_streamq_broker(_streamq_suite: Any, streamq_broker: Any) -> AsyncGenerator[Any, None]:
        async with enter(_streamq_suite.run_worker(streamq_broker)) as worker:
            yield worker

    for one in (opened_broker, worker_of_broker, worker_of_streamq_broker):
        yield one.__name__, one
