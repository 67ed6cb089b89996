"""Fixtures for all tests: both backends of anyio, every kind of server."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import Postgres
from tests.servers import KINDS, REAL_KINDS, InProcess, Kind, RealServer, available

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


BACKENDS = ("asyncio", "trio")
SLOWEST = 40  # files that CI names with their times

# Examples take as long as a busy machine makes them take.
settings.register_profile("streamq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("streamq")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep Python's collector off what is collected: half a million objects that stay, in each process.

    It took two fifths of the time of collecting, and a third of a second in each test that calls it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the pairs that are not drawn. Mark the quick tests: what is not slow, each in one variant.

    So a new test is among them unless it says otherwise. The backend and the kind of server are drawn by its name.
    """
    if not os.environ.get("STREAMQ_TEST_EVERY_PAIR"):
        paired = [(item, *_pair(item)) for item in items if item.get_closest_marker("paired")]
        drawn = {name for _, name, is_drawn in paired if is_drawn}
        dropped = {item for item, name, is_drawn in paired if not is_drawn and name in drawn}
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=list(dropped))
    variants: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow") is None:
            variants.setdefault(_without_variant(item), []).append(item)
    for name, alike in variants.items():
        alike[zlib.crc32(name.encode()) % len(alike)].add_marker(pytest.mark.quick)  # the same in every process


def _pair(item: pytest.Item) -> tuple[str, bool]:
    """Return the name of a test without its backend and kind of server, and whether it is one of the drawn pairs.

    One backend has Redis, the other Valkey; which one is drawn by the name. A test with no real server has no pairs.
    `paired("memory")`: one of the two has the server in the process as well.
    """
    place, _, rest = item.nodeid.partition("[")
    parameters = rest.removesuffix("]").split("-")
    backend = next((one for one in parameters if one in BACKENDS), None)
    kind = next((one for one in parameters if one in KINDS), None)
    name = f"{place}[{'-'.join(one for one in parameters if one not in (backend, kind))}]"
    if backend is None:
        return item.nodeid, True
    lot, place_of_backend = zlib.crc32(name.encode()), BACKENDS.index(backend)
    real = ("redis", "valkey") if lot % 2 else ("valkey", "redis")
    in_memory = "memory" in _paired(item).args and lot // 2 % 2 == place_of_backend
    return f"{name} {backend}", kind == real[place_of_backend] or (kind == "memory" and in_memory)


def _paired(item: pytest.Item) -> pytest.Mark:
    mark = item.get_closest_marker("paired")
    assert mark is not None
    return mark


def _without_variant(item: pytest.Item) -> str:
    """Return the id of a test without the backend and the kind of server that it is run with."""
    place, _, rest = item.nodeid.partition("[")
    parameters = rest.removesuffix("]").split("-")
    for names in (BACKENDS, KINDS):
        if found := next((one for one in parameters if one in names), None):
            parameters.remove(found)
    return f"{place}[{'-'.join(parameters)}]"


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    """Put back the level and the handlers of the root logger: a `streamq worker` in this process sets them for good."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs under asyncio and under trio."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Callable[[Kind], RealServer]]:
    """Give out one process per kind of real server, for the whole session; started when first asked for."""
    servers: dict[Kind, RealServer] = {}
    with contextlib.ExitStack() as stack:

        def get(kind: Kind) -> RealServer:
            if kind not in servers:
                servers[kind] = stack.enter_context(contextlib.closing(RealServer(kind)))
            server = servers[kind]
            if not server.running:
                server.restart()  # a test has killed it
            server.flush()
            return server

        yield get


def _require(kind: Kind) -> Kind:
    if not available(kind):
        pytest.skip(f"no {kind}-server on PATH")
    return kind


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the whole session; its tests make tables of their own."""
    with contextlib.closing(Postgres()) as server:
        yield server


@pytest.fixture(params=KINDS)
def server(
    request: pytest.FixtureRequest, shared_server: Callable[[Kind], RealServer]
) -> Iterator[InProcess | RealServer]:
    """An empty server: memory, valkey, redis."""
    kind = _require(request.param)
    if kind == "memory":
        with contextlib.closing(InProcess()) as in_process:
            yield in_process
    else:
        yield shared_server(kind)


@pytest.fixture(params=REAL_KINDS)
def real_server(request: pytest.FixtureRequest, shared_server: Callable[[Kind], RealServer]) -> RealServer:
    """An empty server that is a process: valkey, redis."""
    return shared_server(_require(request.param))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say under CI where the time goes: the files that took longest, in all processes together."""
    if not os.environ.get("CI"):
        return
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                seconds[file] = seconds.get(file, 0.0) + report.duration
    terminalreporter.section("the slowest files")
    for file, duration in sorted(seconds.items(), key=lambda item: -item[1])[:SLOWEST]:
        terminalreporter.write_line(f"{duration:8.1f} s  {file}")
