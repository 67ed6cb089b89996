"""P11, P13: what the handler of a process starts, prints, reads or forks is no reply to the worker."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from pathlib import Path

import anyio
import pytest

from streamq import RedisBroker, Worker, batch_task, task
from streamq.consumer.process_run import processes
from streamq.errors import ProcessDiedError
from tests.at_work import burst, dead

pytestmark = [pytest.mark.slow, pytest.mark.paired]

TIMEOUT = 20.0


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@task(run_in="process", result_ttl=60, retries=0, timeout=TIMEOUT)
def shows(path: str) -> int:
    return subprocess.run(["/bin/cat", path], check=False).returncode


@task(run_in="process", result_ttl=60, retries=0, timeout=TIMEOUT)
def prints() -> str:
    os.write(1, b"RETURN 2\nxx")
    print("hello")
    subprocess.run(["/bin/sh", "-c", "echo hello; echo trouble >&2"], check=True)
    return "printed"


@task(run_in="process", result_ttl=60, retries=0, timeout=TIMEOUT)
def reads() -> bytes | str:
    return subprocess.run(["/bin/cat"], check=True, capture_output=True, text=True).stdout + os.read(0, 9).decode()


@task(run_in="process", result_ttl=60, retries=0, timeout=TIMEOUT)
def forks(how: str) -> str:
    child = os.fork()
    if child == 0:
        if how == "raises":
            raise ValueError(how)
        return "the child"
    os.waitpid(child, 0)
    return "the parent"


@task(run_in="process", result_ttl=60, retries=0, timeout=TIMEOUT)
def doubles(n: int) -> int:
    return 2 * n


@task(run_in="process", retries=1, backoff=0.0, timeout=TIMEOUT)
def dies(how: str, number: int) -> None:
    if how == "exit":
        os._exit(number)
    os.kill(os.getpid(), number)


@batch_task(run_in="process", size=1, retries=0, timeout=TIMEOUT)
def batch_dies(items: list[int]) -> None:
    os._exit(items[0])


async def test_the_error_of_a_process_that_ended_says_how(real_server):
    """It names the task, and the signal or the exit code. It spends attempts, and is no crash of the worker."""
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(dies, "exit", 3)
        await broker.enqueue(dies, "signal", 9)
        await broker.enqueue(dies, "signal", 11)
        await broker.enqueue(batch_dies, 4)
        await burst(broker, dies, batch_dies, concurrency=1)
    letters = dead(real_server)
    assert {letter["error"] for letter in letters} == {
        "the process of task 'dies' ended with exit code 3",
        "the process of task 'dies' ended with signal 9 (SIGKILL: out of memory?)",
        "the process of task 'dies' ended with signal 11 (SIGSEGV)",
        "the process of task 'batch_dies' ended with exit code 4",
    }
    assert {(one["reason"], one["error_type"]) for one in letters} == {
        ("retries_exhausted", "streamq.errors.ProcessDiedError")
    }
    assert {(one["task"], one["attempts"]) for one in letters} == {("dies", "2"), ("batch_dies", "1")}


def test_the_error_crosses_processes_with_its_data():
    """And where it is not known how the process ended, it says why it is thought to be gone."""
    error = ProcessDiedError("t", -9)
    assert (error.signal, error.exit_code, ProcessDiedError("t", 0).exit_code) == (9, None, 0)
    assert pickle.loads(pickle.dumps(error)).signal == 9
    assert str(ProcessDiedError("t", -99)) == "the process of task 't' ended with signal 99 (of no name)"
    assert str(ProcessDiedError("t", None, "odd")) == "the process of task 't' ended before its run did: odd"


async def test_what_a_process_handler_starts_is_no_reply(real_server, tmp_path):
    """A program has the handler's output, and a file that somebody uploaded looks like a reply: it is not unpickled."""
    body = pickle.dumps(Evil(str(tmp_path / "unpickled")), 4)
    (tmp_path / "upload").write_bytes(b"RETURN %d\n" % len(body) + body)
    wanted = [
        (shows.call(str(tmp_path / "upload")), 0),
        (doubles.call(1), 2),
        (prints.call(), "printed"),
        (doubles.call(2), 4),
        (reads.call(), ""),
        (doubles.call(3), 6),
        (forks.call("returns"), "the parent"),
        (forks.call("raises"), "the parent"),
        *((doubles.call(n), 2 * n) for n in range(4, 7)),
    ]
    async with RedisBroker(real_server.url) as broker:
        handles = await broker.enqueue_many([call for call, _ in wanted])
        await burst(broker, shows, doubles, prints, reads, forks, concurrency=1)
        assert dead(real_server) == []
        assert [await handle.result(timeout=1) for handle in handles] == [result for _, result in wanted]
    assert not (tmp_path / "unpickled").exists()


@task(run_in="process", retries=0, timeout=8, result_ttl=60)
def takes_three_seconds(number: int) -> int:
    time.sleep(3)
    return number


async def test_the_wait_for_a_process_is_not_timed(anyio_backend: str) -> None:
    """There are as many as cores: of tasks that came together most were dead without a run."""
    async with RedisBroker(f"memory://turns-{anyio_backend}") as broker:
        handles = await broker.enqueue_many([takes_three_seconds.call(number) for number in range(4)])
        processes().total_tokens = 1
        with anyio.fail_after(60):
            await Worker(broker, [takes_three_seconds], burst=True).run()
        assert [await handle.result(timeout=1) for handle in handles] == list(range(4))
