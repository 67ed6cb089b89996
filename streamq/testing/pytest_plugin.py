"""The pytest plugin: fixtures for the tests of programs that use streamq. docs/testing-your-tasks.md shows them.

pytest loads this module at the start of every run in whose environment streamq is installed. So it imports nothing of
streamq but its clock, and no event loop; what a fixture needs is imported when a test asks for it.

The fixtures are `broker`, `worker` and `run_tasks`, and the same with the prefix `streamq_`. A fixture of the user with
one of the short names takes its place; `worker` and `run_tasks` then use that `broker`.
"""

from __future__ import annotations

from datetime import datetime
from importlib import import_module
from inspect import iscoroutinefunction
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import streamq.clock  # noqa: F401 - now: a test may freeze the functions that it takes from `time`

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamq.tasks.task import Task
    from streamq.testing.suite import Suite
    from streamq.worker import Worker

_MARK = (
    "streamq(url='memory://', tasks=[...], eager=False, now=None): for the fixtures of streamq: the server, tasks or "
    "names of modules that the workers know, whether each task runs as it is sent, when the clock of the server begins"
)
_OPTIONS = {"url", "tasks", "eager", "now"}
_MEMORY = "memory://"
_OF_EACH_TEST = ("streamq_broker", "_streamq_suite")
_suite_of = pytest.StashKey[bool]()  # of a test for which a suite was made
_TAKEN_FROM_TRIO = (
    "pytest-asyncio takes this test from pytest-trio: in its auto mode it takes each async test; set "
    "asyncio_mode = strict, or mark the test by @pytest.mark.anyio in place of @pytest.mark.trio"
)
_RUNNERS = {"asyncio": "pytest_asyncio", "trio": "pytest_trio"}  # plugins, and their modules


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--streamq-url`, and the options of the configuration file."""
    parser.addini("streamq_url", "the server of streamq's fixtures; the default is memory://", default=_MEMORY)
    parser.addini("streamq_tasks", "modules whose tasks the workers of streamq's fixtures know", type="linelist")
    parser.getgroup("streamq").addoption(
        "--streamq-url", metavar="URL", help="the server of streamq's fixtures, in place of that of the configuration"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark, and the async fixtures of those plugins that are there."""
    config.addinivalue_line("markers", _MARK)
    runners: Any = import_module("streamq.testing.pytest_runners")
    config.pluginmanager.register(runners.for_anyio(), "streamq-anyio")
    for name in _RUNNERS:
        if _has(config, name):
            config.pluginmanager.register(getattr(runners, f"for_{name}")(), f"streamq-{name}")


def _has(config: pytest.Config, name: str) -> bool:
    """Return whether the plugin `asyncio` or `trio` is there, however it was named."""
    module = _RUNNERS[name]
    return any(config.pluginmanager.has_plugin(one) for one in (name, module, f"{module}.plugin"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Refuse a test that got fixtures of streamq which were made for an earlier one: with its server, say."""
    yield
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    used = [known[name][-1].func for name in _OF_EACH_TEST if known.get(name)]  # perhaps of the user
    if any(getattr(one, "__module__", "") == __name__ for one in used) and _suite_of not in item.stash:
        pytest.fail(
            "the fixtures of streamq are those of an earlier test, whose tear-down was cut short: by SystemExit or "
            "KeyboardInterrupt in a fixture. Mend that one first",
            pytrace=False,
        )


# --- what a test may set ------------------------------------------------------------------------


@pytest.fixture
def streamq_broker_options() -> dict[str, Any]:
    """Options of `RedisBroker` for the fixture `broker`. Define a fixture of this name to set some."""
    return {}


@pytest.fixture
def streamq_worker_options() -> dict[str, Any]:
    """Options of `Worker` for the fixtures `worker` and `run_tasks`. Define a fixture of this name to set some."""
    return {}


@pytest.fixture
def _streamq_suite(
    request: pytest.FixtureRequest, streamq_broker_options: dict[str, Any], streamq_worker_options: dict[str, Any]
) -> Suite:
    suite: Any = import_module("streamq.testing.suite")
    request.node.stash[_suite_of] = True
    if _belongs_to_anyio(request):
        import_module("streamq.testing.pytest_runners").give_to_anyio(request.node)
    wanted = _wanted(request.node)
    modules: list[str] = request.config.getini("streamq_tasks")
    given = [*wanted.get("tasks", ()), request.module, *modules]
    url = wanted.get("url") or request.config.getoption("--streamq-url") or request.config.getini("streamq_url")
    now = wanted.get("now")
    return suite.Suite(  # type: ignore[no-any-return]
        url, bool(wanted.get("eager")), now.timestamp() if isinstance(now, datetime) else now, tuple(_tasks(given)),
        streamq_broker_options, streamq_worker_options,
    )  # fmt: skip


def _wanted(node: Any) -> dict[str, Any]:
    """Return what the marks of a test say; the closest has the last word. Raises UsageError for anything else."""
    wanted: dict[str, Any] = {}
    for mark in reversed([*node.iter_markers("streamq")]):
        if mark.args or not _OPTIONS.issuperset(mark.kwargs):
            given = ", ".join([*map(repr, mark.args), *mark.kwargs])
            raise pytest.UsageError(f"@pytest.mark.streamq({given}): it takes {', '.join(sorted(_OPTIONS))} by name")
        wanted |= mark.kwargs
    return wanted


def _tasks(given: Iterable[Any]) -> Iterator[Task[Any, Any]]:
    """Yield tasks, and those in the namespaces of modules, which may be named, and of the modules that these import."""
    task: Any = import_module("streamq.tasks.task").Task
    for one in given:
        if isinstance(one, task):
            yield one
            continue
        values = [*vars(import_module(one) if isinstance(one, str) else one).values()]
        values += [value for other in values if isinstance(other, ModuleType) for value in [*vars(other).values()]]
        yield from (value for value in values if isinstance(value, task))


# --- the fixtures of sync tests: those of async ones are in `pytest_runners` ----------------------


@pytest.fixture
def _opened_broker_sync(_streamq_suite: Suite) -> Iterator[Any]:
    with import_module("streamq.testing.suite_sync").open_sync_broker(_streamq_suite) as opened:
        yield opened


@pytest.fixture
def _worker_of_broker_sync(_streamq_suite: Suite, broker: Any) -> Iterator[Worker]:
    with import_module("streamq.testing.suite_sync").run_worker_in_thread(_streamq_suite, broker) as running:
        yield running


@pytest.fixture
def _worker_of_streamq_broker_sync(_streamq_suite: Suite, streamq_broker: Any) -> Iterator[Worker]:
    with import_module("streamq.testing.suite_sync").run_worker_in_thread(_streamq_suite, streamq_broker) as running:
        yield running


# --- the fixtures ---------------------------------------------------------------------------------


@pytest.fixture
def streamq_broker(request: pytest.FixtureRequest) -> Any:
    """An open `RedisBroker`, in a sync test a `SyncBroker`, on a server or in a namespace that this test alone has."""
    return request.getfixturevalue(f"_opened_broker_{_runner(request)}")


@pytest.fixture
def broker(streamq_broker: Any) -> Any:
    """An open `RedisBroker`, in a sync test a `SyncBroker`, on a server or in a namespace that this test alone has."""
    return streamq_broker


@pytest.fixture
def streamq_worker(request: pytest.FixtureRequest) -> Worker:
    """A worker that runs in the background, of `streamq_broker`."""
    return request.getfixturevalue(f"_worker_of_streamq_broker_{_runner(request)}")  # type: ignore[no-any-return]


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> Worker:
    """A worker that runs in the background, of the fixture `broker`."""
    return request.getfixturevalue(f"_worker_of_broker_{_runner(request)}")  # type: ignore[no-any-return]


@pytest.fixture
def streamq_run_tasks(_streamq_suite: Suite, streamq_broker: Any) -> Any:
    """Runs what waits until nothing is left: `await streamq_run_tasks()`. See `RunTasks`."""
    return _streamq_suite.run_tasks(streamq_broker)


@pytest.fixture
def run_tasks(_streamq_suite: Suite, broker: Any) -> Any:
    """Runs what waits in the queue of `broker` until nothing is left: `await run_tasks()`. See `RunTasks`."""
    return _streamq_suite.run_tasks(broker)


def _runner(request: pytest.FixtureRequest) -> str:
    """Return which plugin runs the test: the end of the names of the fixtures that are for it."""
    item: Any = request.node
    function = getattr(getattr(item.obj, "hypothesis", None), "inner_test", item.obj)
    # anyio's plugin leaves a sync function in a test of hypothesis that it has run on one backend.
    if not iscoroutinefunction(getattr(function, "_anyio_original_func", function)):
        return "sync"
    mark = item.get_closest_marker("asyncio") if _has(request.config, "asyncio") else None
    if item.get_closest_marker("trio") is not None and _has(request.config, "trio"):
        return "trio" if mark is None else pytest.fail(_TAKEN_FROM_TRIO, pytrace=False)
    if mark is not None and not _belongs_to_anyio(request):
        scope = mark.kwargs.get("loop_scope") or mark.kwargs.get("scope")
        return f"asyncio_{scope or request.config.getini('asyncio_default_test_loop_scope')}"
    if "anyio_backend" in request.fixturenames:
        return "anyio"
    return pytest.fail(
        "no plugin runs this async test: mark it by @pytest.mark.anyio, or by @pytest.mark.asyncio of pytest-asyncio, "
        "or by @pytest.mark.trio of pytest-trio",
        pytrace=False,
    )


def _belongs_to_anyio(request: pytest.FixtureRequest) -> bool:
    """Return whether pytest-asyncio takes the test, and anyio's plugin sets up its async fixtures.

    In its auto mode pytest-asyncio takes each async test, those with the mark of anyio too. Both plugins wrap the
    set-up of fixtures, and the outer one has them: the one that was loaded later. That is by chance, the order of files
    in a folder. If it is anyio's, `pytest_runners` has the test run by it.
    """
    item: Any = request.node
    if "anyio_backend" not in request.fixturenames or item.get_closest_marker("asyncio") is None:
        return False
    wrapped = [one.function.__module__ for one in request.config.hook.pytest_fixture_setup.get_hookimpls()]
    both = [one for one in wrapped if one in {"anyio.pytest_plugin", "pytest_asyncio.plugin"}]
    return both == ["pytest_asyncio.plugin", "anyio.pytest_plugin"]
