"""What a task costs, exactly: the table of docs/performance.md is what is counted here.

After a change of costs that is meant, STREAMQ_WRITE_COSTS=1 writes the rows of its tables anew:

    STREAMQ_WRITE_COSTS=1 pytest -n 0 tests/benchmarks/test_costs.py

and the diff of the page says what the change gave. (With another Python, anyio or trio than the page names, to
the last number, its figures hold within a tenth.) With `-s` the functions that were called are
printed, the most frequent ones first, and how often the server read.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextvars import copy_context
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import anyio
import anyio.lowlevel
import pytest

from streamq import Priority, RedisBroker, batch_task, task
from streamq.testing.clock import VirtualTime
from tests.benchmarks.counting import EACH, FIRST, Meter, Work, as_it_is, determined, plain, work_off
from tests.docs.pages import ROOT, table_under

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "performance.md"
HEADING = "### What a task costs, counted"
COUNTED = 5000  # tasks, and what is settled with the last of them
ALLOCATED = "### What a task allocates"
# The page's figures are theirs, too; to the last number, for a patch may schedule, or keep, a little otherwise.
VERSIONS = f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in ("anyio", "trio"))
ALLOCATORS = ", ".join(f"{name} {version(name)}" for name in ("hiredis", "orjson", "redis"))  # what is C, or theirs
UPDATE = f"the page says otherwise; if this is meant: STREAMQ_WRITE_COSTS=1 pytest -n 0 {__file__}"


@pytest.fixture
def virtual() -> VirtualTime:
    """The time that a test goes by. A leap of it takes real time, in which what blocks may be answered."""
    return VirtualTime(patience=0.2)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request, virtual):
    return request.param, virtual.options(request.param)


@pytest.fixture
def meter(shared_server):
    """What counts. All that comes after it is determined."""
    meter = Meter(shared_server("valkey"))
    with determined(meter), patch("anyio.to_thread.run_sync", at_once):
        yield meter


def with_result(work: Work) -> Any:
    @task(result_ttl=60)
    async def noop() -> int:
        work.run()
        return 1

    return noop


def with_timeout(work: Work) -> Any:
    @task(timeout=60)
    async def noop() -> None:
        work.run()

    return noop


def with_arguments(work: Work) -> Any:
    @task
    async def noop(number: int, word: str) -> None:
        work.run()

    return noop


def failing(work: Work) -> Any:
    @task(backoff=3600.0)
    async def noop() -> None:
        work.run()
        raise ValueError

    return noop


def in_batches(work: Work) -> Any:
    @batch_task(size=10, wait=1.0)
    async def noop(items: list[int]) -> None:
        for _ in items:
            work.run()

    return noop


def in_thread(work: Work) -> Any:
    @task
    def noop() -> None:
        work.run()

    return noop


async def at_once(function: Any, *arguments: Any, **_: Any) -> Any:
    """Stand in for anyio's threads: when a real one ends is the kernel's choice, and so is what then goes together."""
    await anyio.lowlevel.checkpoint()
    return copy_context().run(function, *arguments)


def in_three_tiers(task: Any, number: int) -> Any:
    return task.options(priority=(Priority.CRITICAL, Priority.NORMAL, Priority.LOW)[number % 3])


RUNS: dict[str, tuple[Any, int, Any, tuple[Any, ...]]] = {  # make, concurrency, how it is sent, arguments
    "a run, concurrency 32": (plain, 32, as_it_is, ()),
    "a run, concurrency 100": (plain, 100, as_it_is, ()),
    "of three tiers": (plain, 100, in_three_tiers, ()),
    "with two arguments": (with_arguments, 100, as_it_is, (7, "seven")),
    "with its result kept": (with_result, 100, as_it_is, ()),
    "with a timeout": (with_timeout, 100, as_it_is, ()),
    "failing, with a retry to come": (failing, 100, as_it_is, ()),
    "in a thread that ends at once": (in_thread, 100, as_it_is, ()),
    "in batches of 10": (in_batches, 100, as_it_is, (7,)),
}


@pytest.mark.parametrize("what", RUNS)
async def test_what_a_run_costs(what, meter, virtual, anyio_backend):
    """A worker over a backlog, from one turn to another."""
    make, concurrency, sent, arguments = RUNS[what]
    work = Work(virtual, meter, each=EACH, first=FIRST, last=FIRST + COUNTED)
    await work_off(meter, work, make(work), concurrency=concurrency, sent=sent, arguments=arguments)
    compare(what, anyio_backend[0], meter)


@pytest.mark.skipif(
    not (VERSIONS in PAGE.read_text() and ALLOCATORS in PAGE.read_text()),
    reason=f"the page was not counted with {VERSIONS}, {ALLOCATORS}",
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_a_run_allocates(backend):
    """Counted in a process of its own: what was specialised and kept for reuse before would show, by a block or so.

    How that process starts is real time's, and now and then it shows as well: once more, then.
    """
    (shown,) = [cells for cells in table_under(PAGE, ALLOCATED) if cells[0] == backend]
    counted = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.weighing", backend], cwd=ROOT, check=True, capture_output=True,
            text=True, timeout=100, env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        counted.append(float(done.stdout))
        if os.environ.get("STREAMQ_WRITE_COSTS"):
            write(shown, [backend, f"{counted[0]:.1f}"])
            return
        if counted[-1] == pytest.approx(float(shown[1]), abs=0.1):
            return
    pytest.fail(f"{backend}: {counted}, and not {shown[1]}: {UPDATE}")


async def one_by_one(broker: RedisBroker, noop: Any) -> None:
    for _ in range(COUNTED):
        await broker.enqueue(noop)


async def by_callers(broker: RedisBroker, noop: Any) -> None:
    async def call() -> None:
        for _ in range(COUNTED // 100):
            await broker.enqueue(noop)

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(call)


async def by_thousands(broker: RedisBroker, noop: Any) -> None:
    for _ in range(COUNTED // 1000):
        await broker.enqueue_many([noop.call() for _ in range(1000)])


SENDS = {
    "an enqueue, one after another": one_by_one,
    "an enqueue, by 100 callers": by_callers,
    "an enqueue, 1,000 by enqueue_many": by_thousands,
}


@pytest.mark.parametrize("what", SENDS)
async def test_what_an_enqueue_costs(what, meter, virtual, anyio_backend):
    """Every command is an XADD; callers at the same time share what is written, and so do those of enqueue_many."""
    noop = plain(Work(virtual, meter, each=0.0, first=0, last=0))
    async with RedisBroker(meter.server.url) as broker:
        await SENDS[what](broker, noop)
        meter.start()
        await SENDS[what](broker, noop)
        meter.stop()
        meter.runs = meter.tasks
    compare(what, anyio_backend[0], meter)


# --- the table ---------------------------------------------------------------------------------------


def compare(what: str, backend: str, meter: Meter) -> None:
    """Assert that a row of the page is what was counted, or write it."""
    cost = meter.cost
    assert cost is not None
    of_server, of_worker = (cost.commands, cost.writes), (cost.calls, cost.scopes, cost.spawned)
    row = [what, backend, *(f"{n / meter.tasks:.4f}" for n in of_server), *(f"{n / meter.runs:.4f}" for n in of_worker)]
    print(f"\n{what}, {backend}: {meter.reads / meter.tasks:.4f} reads of the server\n{meter.table()}")
    (shown,) = [cells for cells in table_under(PAGE, HEADING) if cells[:2] == row[:2]]
    if os.environ.get("STREAMQ_WRITE_COSTS"):
        write(shown, row)
        return
    if VERSIONS in PAGE.read_text():
        assert row == shown, UPDATE
    else:  # others may call, or schedule, a little otherwise
        assert [float(cell) for cell in row[2:]] == pytest.approx(
            [float(cell) for cell in shown[2:]], rel=0.1, abs=0.02
        )


def write(shown: list[str], row: list[str]) -> None:
    """Put a row in the place of another."""
    before, after = (f"\n| {' | '.join(cells)} |\n" for cells in (shown, row))
    PAGE.write_text(PAGE.read_text().replace(before, after))
