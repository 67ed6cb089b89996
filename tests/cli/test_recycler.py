"""The order of a replacement, with processes that do as they are told here: what real ones do too seldom."""

from __future__ import annotations

import logging
from itertools import count
from typing import Any

import anyio
import pytest

from streamq.cli import recycling
from streamq.cli.child_process import WorkerProcess
from streamq.cli.recycling import Recycler
from streamq.cli.server_options import ServerOptions
from streamq.cli.worker_settings import Settings
from streamq.tasks.retry_policy import Backoff
from tests.at_work import until

OUTGROWN = {"rss": 400 << 20, "runs": 7}
_pids = count(1000)


class FakeProcess:
    """A process that ends when it is killed, or by `end`."""

    def __init__(self) -> None:
        self.pid = next(_pids)
        self.returncode: int | None = None

    def kill(self) -> None:
        self.returncode = -9


class FakeStream:
    async def send(self, data: bytes) -> None: ...


def end(child: Any, code: int) -> None:
    child.process.returncode = code
    child.ended.set()


class Place:
    """The supervisor, as a recycler sees it."""

    def __init__(self) -> None:
        settings = Settings(modules=("app",), server=ServerOptions(), max_rss=300 << 20, grace=0.0)
        self.stopped = anyio.Event()
        self.children: list[Any] = []
        self.recycler = Recycler(settings, self.start, self.stopped)
        self.starting: Any = None  # called at each start

    async def start(self, place: int) -> WorkerProcess:
        await anyio.lowlevel.checkpoint()
        if self.starting is not None:
            self.starting()
        child: Any = WorkerProcess(FakeProcess(), FakeStream())  # type: ignore[arg-type]
        self.children.append(child)
        return child  # type: ignore[no-any-return]

    async def child(self, number: int) -> Any:
        """Wait for the start of this child, the last one, and return it."""
        await until(lambda: len(self.children) > number)
        assert len(self.children) == number + 1
        return self.children[number]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(recycling, "EXIT_TIMEOUT", 0.05)
    monkeypatch.setattr(recycling, "_START_TIMEOUT", 0.05)
    monkeypatch.setattr(recycling, "_PAUSES", Backoff(base=0.01, factor=2.0, cap=1.0, jitter=False))


@pytest.fixture
async def place(quick):
    return Place()


async def old_process(place: Place) -> Any:
    return await place.start(0)


async def test_the_old_one_drains_once_the_new_one_reads(place, caplog):
    """Not before. It has ended when `replace` returns."""
    caplog.set_level(logging.INFO)
    old = await old_process(place)
    async with anyio.create_task_group() as group:
        group.start_soon(place.recycler.replace, 0, old, OUTGROWN)
        new = await place.child(1)
        await anyio.wait_all_tasks_blocked()
        assert (old.stop_level, old.replacement, old.replaced.is_set()) == (0, new, False)
        new.note_ready()
        await until(lambda: old.stop_level == 1)
        end(old, 0)
    assert "400 MiB of memory, --max-rss 300 MiB; starting its replacement" in caplog.text
    assert f"pid {old.process.pid} has drained" in caplog.text
    assert {(record.event, record.rss, record.runs) for record in caplog.records if hasattr(record, "rss")} == {
        ("recycle", 400 << 20, 7)
    }


async def test_an_old_one_that_does_not_exit_is_killed(place, caplog):
    """After the grace period, and the time that an exit takes."""
    old = await old_process(place)
    async with anyio.create_task_group() as group:
        group.start_soon(place.recycler.replace, 0, old, OUTGROWN)
        (await place.child(1)).note_ready()
        await until(lambda: old.process.returncode == -9)
        end(old, -9)
    assert {record.event for record in caplog.records} == {"process_killed", "process_ended"}


async def test_one_that_does_not_come_to_read_is_killed_and_the_pauses_grow(place, caplog):
    """The old one is not told anything."""
    old = await old_process(place)
    async with anyio.create_task_group() as group:
        group.start_soon(place.recycler.replace, 0, old, OUTGROWN)
        await until(lambda: len(place.children) == 4)
        assert [child.stop_level for child in place.children] == [0, 3, 3, 0]
        place.stopped.set()
    pauses = [record.getMessage().rpartition("in ")[2] for record in caplog.records]
    assert pauses == ["0.01 s", "0.02 s"]
    assert {record.event for record in caplog.records} == {"recycle_failed"}


async def test_a_system_that_starts_no_process(place, caplog):
    """The next one may do."""
    old = await old_process(place)

    def refuse() -> None:
        place.starting = None
        raise OSError(12, "Cannot allocate memory")

    place.starting = refuse
    async with anyio.create_task_group() as group:
        group.start_soon(place.recycler.replace, 0, old, OUTGROWN)
        await place.child(1)
        place.stopped.set()
    assert "a replacement cannot be started: [Errno 12] Cannot allocate memory" in caplog.text


async def test_one_replacement_starts_at_a_time(place):
    """Of all places."""
    old, other = await place.start(0), await place.start(1)
    async with anyio.create_task_group() as group:
        group.start_soon(place.recycler.replace, 0, old, OUTGROWN)
        group.start_soon(place.recycler.replace, 1, other, OUTGROWN)
        first = await place.child(2)
        await anyio.wait_all_tasks_blocked()
        assert len(place.children) == 3
        first.note_ready()
        await place.child(3)
        place.stopped.set()
        end(old, 0)
        end(other, 0)


async def test_a_place_has_two_processes_at_most(place, monkeypatch):
    """The next replacement waits until the one before has drained."""
    monkeypatch.setattr(recycling, "EXIT_TIMEOUT", 5.0)
    old = await old_process(place)
    async with anyio.create_task_group() as group:
        group.start_soon(place.recycler.replace, 0, old, OUTGROWN)
        new = await place.child(1)
        new.note_ready()
        group.start_soon(place.recycler.replace, 0, new, OUTGROWN)
        await anyio.sleep(3 * new.start_took + 0.05)
        assert len(place.children) == 2
        end(old, 0)
        await place.child(2)
        place.stopped.set()


async def test_a_process_works_for_as_long_as_its_start_took(place, caplog):
    """However low the limit is. The log says so the first time, the second, the fourth."""
    async with anyio.create_task_group() as group:
        for number in range(5):
            old = await place.start(number)
            old.note_ready()
            old.started -= 0.2
            old.start_took = 0.2
            group.start_soon(place.recycler.replace, number, old, OUTGROWN)
        await anyio.sleep(0.1)
        assert len(place.children) == 5
        await place.child(5)
        place.stopped.set()
    assert sum("give a higher limit" in record.getMessage() for record in caplog.records) == 3


async def test_one_that_was_started_for_a_process_that_has_ended_is_stopped(place):
    """The supervisor has started another one already."""
    old = await old_process(place)
    place.starting = lambda: end(old, -9)
    await place.recycler.replace(0, old, OUTGROWN)
    assert [child.stop_level for child in place.children] == [0, 1]
    assert old.replacement is None


async def test_nothing_is_tried_for_a_process_that_is_to_stop(place):
    """Of a signal, or of a changed source file."""
    old = await old_process(place)
    await old.send_stop(1)
    await place.recycler.replace(0, old, OUTGROWN)
    assert len(place.children) == 1
