"""The pool of processes of one worker: its size, what it takes, how processes are replaced, and what they tell."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator

import anyio
import psutil
import pytest

from streamq import RedisBroker, Worker
from streamq.errors import ConfigurationError
from streamq.logs import JsonFormatter, TaskFields, TextFormatter
from tests.at_work import burst, dead, watched_loop, working
from tests.consumer.process_tasks import (
    batch_pid,
    dies,
    fails,
    floods,
    follows,
    has_sibling,
    in_loop,
    is_process_of_handlers,
    knows,
    leaks,
    leaves_threads,
    logs_what_has_no_text,
    pid,
    prepare,
    reports_badly,
    shows_prepared,
    tells,
    too_long,
)  # fmt: skip

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.paired, pytest.mark.timeout(90)]


async def pids(handles) -> list[int]:
    return [await handle.result(timeout=20) for handle in handles]


# --- how many, and where ----------------------------------------------------------------------------------


@pytest.mark.parametrize("also", [(), (in_loop,)], ids=["alone", "with others"])
async def test_two_workers_share_what_their_processes_can_run(real_server, also):
    """A worker took as many as it has slots, a hundred: the other one had nothing to do."""
    async with (
        RedisBroker(real_server.url) as broker,
        working(broker, pid, *also, processes=2) as first,
        working(broker, pid, *also, processes=2),
    ):
        await pids([await broker.enqueue(pid) for _ in range(8)])  # they have started
        handles = await broker.enqueue_many([pid.call(0.6) for _ in range(12)])
        begun = time.monotonic()
        most = 0
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, first.health.running + first.health.waiting)
                    await anyio.sleep(0.01)

            group.start_soon(watch)
            ran = await pids(handles)
            group.cancel_scope.cancel()
        taken = time.monotonic() - begun
    assert most <= 2
    assert len(set(ran)) == 4
    assert all(2 <= ran.count(one) <= 4 for one in set(ran)), ran
    assert taken < 12 * 0.6 / 2  # one alone would take that


async def test_tasks_of_the_loop_do_not_wait_for_processes(real_server):
    """Fifty tasks wait for the one process; what came after them runs meanwhile."""
    async with (
        RedisBroker(real_server.url) as broker,
        working(broker, pid, in_loop, processes=1, grace_period=0.1) as worker,
    ):
        await (await broker.enqueue(pid)).result(timeout=20)
        await broker.enqueue_many([pid.call(5.0) for _ in range(50)])
        handles = await broker.enqueue_many([in_loop.call() for _ in range(20)])
        with anyio.fail_after(4.5):
            await pids(handles)
        assert worker.health.running == 1


async def test_all_of_a_surplus_is_run_in_the_end(real_server):
    """More than the worker reads at a time, each once."""
    async with RedisBroker(real_server.url) as broker, working(broker, pid, in_loop, processes=2, concurrency=5):
        handles = await broker.enqueue_many([(pid if n % 3 else in_loop).call() for n in range(90)])
        await pids(handles)
    assert dead(real_server) == []


async def test_a_backlog_of_process_tasks_stops_neither_itself_nor_another_tier(real_server):
    """More than the worker has slots: it read nothing any more, of no tier, for ever."""
    async with RedisBroker(real_server.url) as broker:
        heavy = await broker.enqueue_many([pid.options(tier="bulk").call(0.1) for _ in range(40)])
        async with working(broker, pid, in_loop, processes=1, concurrency=10):
            for _ in range(4):
                begun = time.monotonic()
                await (await broker.enqueue(in_loop.options(tier="critical"))).result(timeout=20)
                assert time.monotonic() - begun < 2.0
                await anyio.sleep(0.4)
            with anyio.fail_after(30):
                await pids(heavy)


async def test_a_batch_takes_one_process(real_server):
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([batch_pid.call(n) for n in range(20)])
        await burst(broker, batch_pid, processes=2)
        assert await pids(handles) == [10] * 20


# --- replaced --------------------------------------------------------------------------------------------


async def test_a_process_runs_so_many_tasks_and_no_more(real_server):
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([pid.call(0.01) for _ in range(10)])
        await burst(broker, pid, processes=1, max_tasks_per_process=3)
        ran = await pids(handles)
    assert [ran.count(one) for one in dict.fromkeys(ran)] == [3, 3, 3, 1]


async def test_a_process_that_grew_is_replaced_by_one_that_is_ready(real_server):
    """Its next run finds another one that has started; nothing is lost."""
    bound = 160 << 20
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([leaks.call(5) for _ in range(60)])
        await burst(broker, leaks, processes=1, max_rss=bound)
        found = [await handle.result(timeout=20) for handle in handles]
    assert len({one for one, _ in found}) >= 3
    assert max(memory for _, memory in found) < bound + (8 << 20)
    assert dead(real_server) == []


async def test_replacements_do_not_add_up(real_server):
    """Each run is the last of its process: there is one beside the next one, and no more."""
    async with RedisBroker(real_server.url) as broker, working(broker, pid, processes=2, max_tasks_per_process=1):
        handles = await broker.enqueue_many([pid.call() for _ in range(16)])
        ran = await pids(handles)
        await anyio.sleep(0.3)
        left = [one for one in psutil.Process().children() if is_process_of_handlers(str(one.pid))]
    assert len(set(ran)) == 16
    assert len(left) <= 4


async def test_a_replacement_starts_before_the_old_one_goes(real_server):
    """With the last run of the old one at the latest, so that no run waits for a start."""
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([has_sibling.call(seconds) for seconds in (0.2, 15.0, 0.2, 15.0)])
        await burst(broker, has_sibling, processes=1, max_tasks_per_process=2)
        found = [await handle.result(timeout=20) for handle in handles]
    assert found[0][1] is False
    assert found[1][1] is found[3][1] is True
    assert len({one for one, _ in found}) == 2


# --- the initializer -------------------------------------------------------------------------------------


async def test_the_initializer_is_called_once_in_each_process(real_server):
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([shows_prepared.call() for _ in range(3)])
        await burst(broker, shows_prepared, processes=1, initializer=prepare)
        first, *others = [await handle.result(timeout=1) for handle in handles]
    assert len(first) == 1
    assert others == [first, first]


async def test_an_initializer_that_fails_fails_the_run_and_says_so(real_server):
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(pid)
        await burst(broker, pid, initializer=fails)
    (letter,) = dead(real_server)
    assert letter["error_type"] == "streamq.errors.ProcessDiedError"
    assert letter["error"].endswith(
        "its initializer, tests.consumer.process_tasks.fails, failed: RuntimeError: no licence"
    )


async def test_what_a_process_cannot_find_is_refused(real_server):
    async with RedisBroker(real_server.url) as broker:
        with pytest.raises(ConfigurationError, match="a process finds it by its name"):
            Worker(broker, [pid], initializer=lambda: None)
        for options in ({"processes": 0}, {"max_tasks_per_process": 0}, {"max_rss": 5}, {"processes": 1.5}):
            with pytest.raises(ConfigurationError, match=next(iter(options))):
                Worker(broker, [pid], **options)


# --- the end ----------------------------------------------------------------------------------------------


async def test_the_timeout_counts_the_run_alone_and_kills_the_process(real_server, tmp_path):
    file = tmp_path / "pid"
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(too_long, str(file))
        await burst(broker, too_long)
    (letter,) = dead(real_server)
    assert letter["error_type"] == "streamq.errors.TaskTimeoutError"
    assert not psutil.pid_exists(int(file.read_text()))


async def test_no_process_is_left_when_the_worker_has_ended(real_server):
    before = set(psutil.Process().children())
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([pid.call() for _ in range(4)])
        await burst(broker, pid, processes=2)
        ran = await pids(handles)
    assert set(psutil.Process().children()) == before
    assert not any(psutil.pid_exists(one) for one in ran)


async def test_a_process_that_is_killed_while_idle_costs_no_attempt(real_server):
    async with RedisBroker(real_server.url) as broker, working(broker, pid, processes=1):
        for _ in range(3):
            ran = await (await broker.enqueue(pid)).result(timeout=20)
            os.kill(ran, signal.SIGKILL)
    assert dead(real_server) == []


async def test_processes_end_as_their_frames_say_whatever_is_done_to_their_signals(real_server):
    """A program that ignores SIGCHLD, so that nobody can wait for its children."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with RedisBroker(real_server.url) as broker:
            handle = await broker.enqueue(pid)
            await broker.enqueue(dies)
            with anyio.fail_after(30):
                await burst(broker, pid, dies, processes=1)
            assert await handle.result(timeout=1)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert [letter["error_type"] for letter in dead(real_server)] == ["streamq.errors.ProcessDiedError"]


# --- what it tells ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def logged(formatter: logging.Formatter | None = None) -> Iterator[list]:
    """Gather the lines of the log, as objects; with a formatter, as texts."""
    lines: list = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(self.format(record)) if formatter is None else self.format(record))

    handler, root = Kept(), logging.getLogger()
    handler.setFormatter(formatter or JsonFormatter())
    handler.addFilter(TaskFields())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


async def test_what_a_process_prints_and_logs_comes_with_the_fields_of_its_task(real_server):
    with logged() as lines:
        async with RedisBroker(real_server.url) as broker:
            handle = await broker.enqueue(tells)
            await burst(broker, tells)
    output = [line for line in lines if line.get("event") == "output"]
    printed = {(line["stream"], line["message"]) for line in output}
    assert printed == {
        ("stdout", "from print"),
        ("stdout", "no end of linefrom a program"),  # as in a terminal
        ("stderr", "from stderr"),
        ("stderr", "its error"),
    }
    shop = [line for line in lines if line["logger"] == "shop.cart"]
    assert [line["message"] for line in shop if line["message"] != "from a thread"][:2] == ["bought 3", "lost"]
    assert len(shop) == 4
    bought = shop[0]
    assert (bought["price"], bought["level"], bought["task_id_"]) == (1.5, "info", "forged")
    assert "KeyError: 'basket'" in next(line for line in shop if line["message"] == "lost")["exc"]
    whole = {"task": "tells", "task_id": handle.task_id, "attempt": 1, "tier": "standard"}
    for line in (*output, *shop):
        of_no_task = line["message"] == "from a thread"  # as of a handler in a thread
        assert {name: line[name] for name in whole if name in line} == ({} if of_no_task else whole)


async def test_in_text_a_line_of_a_process_names_its_task_and_its_process(real_server):
    with logged(TextFormatter()) as lines:
        async with RedisBroker(real_server.url) as broker:
            handle = await broker.enqueue(tells)
            await burst(broker, tells)
    (line,) = [line for line in lines if "from print" in line]
    assert line.endswith(f"from print [tells {handle.task_id}, attempt 1]")
    assert f"streamq.output[{os.getpid()}]" not in line


async def test_a_value_without_a_text_loses_no_line(real_server):
    with logged() as lines:
        async with RedisBroker(real_server.url) as broker:
            await broker.enqueue(logs_what_has_no_text)
            await burst(broker, logs_what_has_no_text)
    assert [line for line in lines if line.get("event") == "output"] == []
    (line,) = [line for line in lines if line["logger"] == "shop"]
    assert line["message"].startswith("row %s (cannot be formatted with ")
    assert line["row"] == "<no text: its __repr__ raised RuntimeError>"
    assert line["deep"] == {"row": line["row"]}


async def test_a_log_that_raises_harms_neither_the_run_nor_the_worker(real_server):
    """What handlers of `logging` raise, whatever it is, for lines that a process logs and prints."""

    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name in {"shop.cart", "streamq.output"}:
                raise SystemExit("no log")

    handler, root = Raises(), logging.getLogger()
    root.addHandler(handler)
    try:
        async with RedisBroker(real_server.url) as broker:
            await broker.enqueue(tells)
            handle = await broker.enqueue(pid)
            await burst(broker, tells, pid, processes=1)
            assert await handle.result(timeout=1)
    finally:
        root.removeHandler(handler)
    assert dead(real_server) == []


async def test_what_a_run_left_writes_into_no_other_run(real_server):
    """Neither its log lines nor its progress: a thread, with the context of its run or with none."""
    with logged() as lines:
        async with RedisBroker(real_server.url) as broker:
            _, second = await broker.enqueue_many([leaves_threads.call(), follows.call()])
            await burst(broker, leaves_threads, follows, processes=1)
            assert await second.progress() is None
    found = {line["message"]: line.get("task_id") for line in lines if line["logger"] == "shop"}
    assert found == {"late, with its context": None, "late, with none": None, "its own": second.task_id}


async def test_where_such_lines_are_not_logged_they_are_printed(tmp_path, anyio_backend_name):
    """As from the event loop, and from threads."""
    script = tmp_path / "prints.py"
    script.write_text(PRINTS.replace("BACKEND", anyio_backend_name))
    ended = await anyio.run_process([sys.executable, str(script)])
    assert ended.stdout == b"to stdout\n"
    assert ended.stderr == b"to stderr\n"


PRINTS = """
import logging, sys
import anyio
from streamq import RedisBroker, Worker, task

@task(run_in="process")
def prints():
    print("to stdout")
    print("to stderr", file=sys.stderr)

async def main():
    async with RedisBroker("memory://") as broker:
        await broker.enqueue(prints)
        await Worker(broker, [prints], burst=True).run()

if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    anyio.run(main, backend="BACKEND")
"""


async def test_a_process_knows_its_delivery_and_reports_progress(real_server):
    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(knows)
        await burst(broker, knows)
        found = await handle.result(timeout=1)
        progress = await handle.progress()
    assert (found["id"], found["attempt"], found["tier"]) == (handle.task_id, 1, "standard")
    assert progress is not None
    assert (progress.done, progress.total, progress.note, progress.data) == (999, 1000, "going", {"n": 999})


async def test_a_report_that_cannot_be_made_fails_its_run_there(real_server):
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(reports_badly)
        await burst(broker, reports_badly)
    (letter,) = dead(real_server)
    assert letter["error_type"] == "streamq.errors.ConfigurationError"


async def test_much_output_stops_neither_the_run_nor_the_loop(real_server):
    async with RedisBroker(real_server.url) as broker, working(broker, floods, in_loop):
        handle = await broker.enqueue(floods, 20_000)
        async with watched_loop() as longest:
            assert await handle.result(timeout=30) == 20_000
    assert longest[0] < 3.0


# --- cancelled anywhere -----------------------------------------------------------------------------------


async def test_a_run_may_be_cancelled_at_any_moment(real_server):
    """As it starts, as it is sent, as it runs: the process ends, and the next run gets another one."""
    async with RedisBroker(real_server.url) as broker, working(broker, pid, processes=2):
        for step in range(12):
            handle = await broker.enqueue(pid, 5.0)
            await anyio.sleep(0.02 * step)
            await handle.cancel()
        last = await broker.enqueue(pid)
        assert await last.result(timeout=20)
    with contextlib.suppress(psutil.Error):
        assert not [one for one in psutil.Process().children() if "process_child" in " ".join(one.cmdline())]
