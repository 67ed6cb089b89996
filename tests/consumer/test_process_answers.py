"""P13: an answer of a process belongs to the run that asked, and nothing of the user's runs in the worker for it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio
import psutil
import pytest

from streamq import RedisBroker, batch_task, task
from streamq.consumer.process_frames import Kind, frame
from streamq.consumer.process_outcome import SentValue, pack_answer
from streamq.errors import TaskFailedError
from streamq.middleware import Context, Idempotency, MiddlewareChain
from tests.at_work import burst, dead, entries, watched_loop, working

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.paired, pytest.mark.timeout(90)]

RUN: dict[str, Any] = {"run_in": "process", "retries": 5, "backoff": 0.01, "result_ttl": 60}


# --- answers ------------------------------------------------------------------------------------------------


def answers_for_another(descriptor: int) -> None:
    """Send what is an answer, but of another call."""
    os.write(descriptor, frame(Kind.ANSWER, 1 << 40, pack_answer(SentValue(b"1"), 0)))


def answers_with_code(descriptor: int) -> None:
    """Send a pickle that would run something."""
    os.write(descriptor, frame(Kind.ANSWER, 2, pickle.dumps(Ends())))


def logs_nothing(descriptor: int) -> None:
    """Send a record that is none."""
    os.write(descriptor, frame(Kind.LOG, 2, b"[]"))


def writes(descriptor: int) -> None:
    """Write what is no frame."""
    os.write(descriptor, b"hello, worker")


def says_ready(descriptor: int) -> None:
    """Send a frame that belongs elsewhere."""
    os.write(descriptor, frame(Kind.READY, 2))


WAYS = {one.__name__: one for one in (answers_for_another, answers_with_code, logs_nothing, writes, says_ready)}


@task(run_in="process", retries=0, name="spoils")
def spoils(way: str) -> None:
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                WAYS[way](descriptor)
    time.sleep(60)


@task(run_in="process", retries=0, result_ttl=60)
def own_pid() -> int:
    return os.getpid()


@pytest.mark.parametrize("way", WAYS)
async def test_a_process_that_answers_with_something_else_is_ended(real_server, way):
    """Its later answers would each go to another run."""
    async with RedisBroker(real_server.url) as broker:
        first = await broker.enqueue(own_pid)
        await broker.enqueue(spoils, way)
        last = await broker.enqueue(own_pid)
        await burst(broker, own_pid, spoils, processes=1)
        assert await first.result(timeout=1) != await last.result(timeout=1)
    (letter,) = dead(real_server)
    assert letter["error_type"] == "streamq.errors.ProcessDiedError"
    assert "it wrote into the socket by which it answers its worker, and was killed" in letter["error"]


# --- signals ------------------------------------------------------------------------------------------------


@task(**RUN)
def echo(number: int, seconds: float) -> str:
    time.sleep(seconds)
    return f"result of {number}"


async def test_ctrl_c_at_any_moment_gives_no_result_to_another_task(real_server):
    """It met a process before it had set signals aside: an answer too many, and tasks were acknowledged unrun."""
    seen: set[int] = set()

    async def interrupt_each() -> None:
        """Once each, for the first few, a little later each time: as they start, between two runs, in a run."""
        while len(seen) < 6:
            for child in psutil.Process().children():
                if child.pid not in seen and "process_child" in " ".join(command_of(child)):
                    seen.add(child.pid)
                    await anyio.sleep(0.06 * len(seen))
                    with contextlib.suppress(psutil.Error):
                        child.send_signal(signal.SIGINT)
            await anyio.sleep(0.005)

    async with RedisBroker(real_server.url) as broker, anyio.create_task_group() as group:
        handles = await broker.enqueue_many([echo.call(number, 0.05) for number in range(24)])
        async with working(broker, echo, concurrency=8):
            group.start_soon(interrupt_each)
            with anyio.fail_after(60):
                results = [await handle.result() for handle in handles]
            group.cancel_scope.cancel()
    assert len(seen) >= 2
    assert results == [f"result of {number}" for number in range(24)]
    assert dead(real_server) == []


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# --- results ------------------------------------------------------------------------------------------------


class Ends:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os._exit, (7,)


class Sleeps:
    """Takes its time where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return time.sleep, (5,)


@task(run_in="process", retries=0)
def gives_ends():
    return Ends()


@task(run_in="process", retries=0, result_ttl=60)
def gives_sleeps():
    return [Sleeps()]


@task(run_in="process", retries=0)
def gives_much():
    return [{"row": number} for number in range(2_000_000)]


async def test_what_a_result_does_when_it_is_unpickled_is_done_nowhere(real_server):
    """A result is written as JSON in the process; one that nobody keeps is no work for the worker."""
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(gives_ends)
        await broker.enqueue(gives_much)
        handle = await broker.enqueue(gives_sleeps)
        async with working(broker, gives_ends, gives_much, gives_sleeps), watched_loop() as longest:
            with pytest.raises(TaskFailedError, match="the task succeeded, its result cannot be sent as JSON"):
                await handle.result(timeout=60)
            while entries(real_server, "queue:standard"):
                await anyio.sleep(0.05)
    assert longest[0] < 3
    assert dead(real_server) == []


async def test_middleware_gets_the_result_of_a_process_by_its_type(real_server):
    seen = []

    async def look(context: Context, call_next: Callable[[Context], Any]) -> Any:
        seen.append(await call_next(context))
        return seen[-1]

    pair = task(run_in="process", result_ttl=60, middleware=[Idempotency("pair")], name="pair")(give_pair)
    async with RedisBroker(real_server.url) as broker:
        handles = [await broker.enqueue(pair) for _ in range(2)]
        await burst(broker, pair, middleware=MiddlewareChain(look), concurrency=1)
        assert [await handle.result(timeout=5) for handle in handles] == [(1, ("a",))] * 2
    assert seen == [(1, ("a",))] * 2


def give_pair() -> tuple[int, tuple[str, ...]]:
    return 1, ("a",)


# --- arguments ----------------------------------------------------------------------------------------------

_DEEP = 950


@batch_task(size=5, wait=0.3, run_in="process", retries=0, result_ttl=60)
def heights(items: list) -> list[int]:
    return [len(items)] * len(items)


async def test_an_item_that_cannot_be_sent_to_a_process_fails_alone(real_server):
    """JSON may be deeper than what can be written again: such an item joined a batch, and all failed."""
    deep = "[" * _DEEP + "]" * _DEEP
    async with RedisBroker(real_server.url) as broker:
        handles = [await broker.enqueue(heights, number) for number in range(4)]
        real_server.command("XADD", "queue:standard", "*", "task", "heights", "args", f"[{deep}]")
        await burst(broker, heights)
        assert [await handle.result(timeout=5) for handle in handles] == [4] * 4
        (letter,) = dead(real_server)
        assert letter["reason"] == "rejected"
        assert "cannot be sent to a process" in letter["error"]


@task(run_in="process", retries=2, backoff=0.01)
def counts(number: int, *rest: int) -> None:
    sys.stdout.write(f"{number}{rest}")


async def test_arguments_are_converted_in_the_process_and_refused_as_ever(real_server):
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue("counts", "five")
        await broker.enqueue("counts")
        await broker.enqueue("counts", "5", "6")
        await burst(broker, counts)
    letters = dead(real_server)
    unfit, missing = sorted(letter["error"] for letter in letters)
    assert unfit.startswith("task 'counts': argument number = 'five': Input should be a valid integer")
    assert missing.startswith("task 'counts': missing a required argument: 'number'; its parameters are (number")
    assert {letter["reason"] for letter in letters} == {"rejected"}
