"""P11, P13: what the handler of a process starts, prints, reads or forks is no reply to the worker."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import pickle
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import anyio
import pytest

from streamq import (
    RedisBroker,
    Task,
    Worker,
    batch_task,
    current_batch,
    current_cancellation,
    current_delivery,
    report_progress_sync,
    task,
)
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import ProcessDiedError
from streamq.handlers.context import current_store
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
def uses_the_first_streams() -> str:
    for stream in (sys.__stdout__, sys.__stderr__):
        stream.write("RETURN 2\nxx")  # type: ignore[union-attr]
        faulthandler.dump_traceback(stream)  # type: ignore[arg-type]
    return sys.__stdin__.read()  # type: ignore[union-attr]


@task(run_in="process", retries=0, timeout=TIMEOUT)
def spoils_its_pipe() -> None:
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"no answer\n")


@task(run_in="process", result_ttl=60, retries=0, timeout=TIMEOUT)
def reads() -> str:
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


async def test_the_streams_that_python_began_with_are_empty_too(real_server):
    """They were the pipes to the worker: what was written there was taken for an answer, and a read never returned."""
    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(uses_the_first_streams)
        await burst(broker, uses_the_first_streams)
        assert await handle.result(timeout=1) == ""


async def test_a_process_that_spoils_its_pipe_is_named_as_that(real_server):
    """It was said to have been killed for want of memory: the worker had killed it."""
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(spoils_its_pipe)
        await burst(broker, spoils_its_pipe)
    (letter,) = dead(real_server)
    assert letter["error"] == (
        "the process of task 'spoils_its_pipe' ended before its run did: it wrote into the socket by which it "
        "answers its worker, and was killed"
    )


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
        "the process of task 'dies' ended with signal 9 (SIGKILL: out of memory, or it closed its pipe to the worker?)",
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


@task(run_in="process", retries=0, timeout=5, result_ttl=60)
def takes_two_seconds(number: int) -> int:
    time.sleep(2)
    return number


@batch_task(size=1, wait=0.01, run_in="process", retries=0, timeout=5, result_ttl=60)
def batch_takes_two_seconds(numbers: list[int]) -> list[int]:
    time.sleep(2)
    return numbers


@pytest.mark.parametrize("slow", [takes_two_seconds, batch_takes_two_seconds], ids=["task", "batch"])
async def test_the_wait_for_a_process_is_not_timed(anyio_backend: str, slow: Task[[int], int]) -> None:
    """There are as many as cores: of tasks that came together most were dead without a run."""
    async with RedisBroker(f"memory://turns-{slow.name}-{anyio_backend}") as broker:
        handles = await broker.enqueue_many([slow.call(number) for number in range(4)])
        with anyio.fail_after(60):
            await Worker(broker, [slow], burst=True, processes=1).run()
        assert [await handle.result(timeout=1) for handle in handles] == list(range(4))


@task(run_in="process", retries=0, timeout=20, result_ttl=60)
def doubled(number: int) -> int:
    return 2 * number


@batch_task(size=2, wait=0.01, run_in="process", retries=0, timeout=20, result_ttl=60)
def doubled_batch(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


@pytest.mark.parametrize("named", [doubled, doubled_batch], ids=["task", "batch"])
@pytest.mark.parametrize("limit", [errno.EMFILE, errno.ENOMEM, errno.EAGAIN], ids=["descriptors", "memory", "pids"])
async def test_a_process_that_the_system_does_not_have_is_waited_for(anyio_backend, monkeypatch, caplog, named, limit):
    """The task has not failed: it spends no attempt. Health and log say why."""
    open_process, refused = subprocess.Popen, [4]

    def no_process(*args, **options):
        if refused[0]:
            refused[0] -= 1
            raise OSError(limit, "none is left")
        return open_process(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", no_process)
    async with RedisBroker(f"memory://{named.name}-{limit}-{anyio_backend}") as broker:
        handle = await broker.enqueue(named, 21)
        async with anyio.create_task_group() as group:
            worker = Worker(broker, [named])
            await group.start(worker.run)
            with anyio.fail_after(20):
                while worker.health.trouble is None:
                    await anyio.sleep(0.001)
                assert "no more processes" in worker.health.trouble
                assert await handle.result() == 42
            assert worker.health.trouble is None
            worker.stop()
    assert not refused[0]
    assert len([record for record in caplog.records if "no more processes" in record.message]) == 1


async def test_real_descriptors_that_are_used_up_are_waited_for(anyio_backend):
    """As above, with a limit of the system itself."""
    async with RedisBroker(f"memory://descriptors-{anyio_backend}") as broker, anyio.create_task_group() as group:
        worker = Worker(broker, [doubled])
        await group.start(worker.run)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        handle = await broker.enqueue(doubled, 21)
        resource.setrlimit(resource.RLIMIT_NOFILE, (_highest_descriptor() + 1, hard))
        held = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            with anyio.fail_after(20):
                while worker.health.trouble is None:
                    await anyio.sleep(0.001)
        finally:
            for one in held:
                os.close(one)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with anyio.fail_after(20):
            assert await handle.result() == 42
        worker.stop()


def _highest_descriptor() -> int:
    return max(int(one.name) for one in Path("/proc/self/fd").iterdir())


ASKED = {"batch": current_batch, "cancellation": current_cancellation, "store": current_store}


@task(run_in="process", retries=0, timeout=TIMEOUT)
def asks(what: str) -> None:
    ASKED[what]()


@batch_task(run_in="process", size=1, retries=0, timeout=TIMEOUT)
def batch_asks(items: list[str]) -> None:
    {"delivery": current_delivery, "progress": partial(report_progress_sync, 1), **ASKED}[items[0]]()


async def test_what_a_process_does_not_have_is_said(anyio_backend):
    """The error does not tell to call it inside a handler: it is inside one."""
    for what, ask in ASKED.items():
        with pytest.raises(LookupError) as raised:
            ask()
        assert "process" not in str(raised.value), what
    async with RedisBroker(f"memory://asks-{anyio_backend}") as broker:
        for what in ASKED:
            await broker.enqueue(asks, what)
        for what in (*ASKED, "delivery", "progress"):
            await broker.enqueue(batch_asks, what)
        await burst(broker, asks, batch_asks)
        letters = await DeadLetterQueue(broker=broker).peek()
    assert len(letters) == 2 * len(ASKED) + 2
    for letter in letters:
        assert letter.error_type == "LookupError"
        assert letter.error.startswith('a handler with run_in="process" has no worker, no batch and no request to stop')
        assert "pass what it needs as arguments, or run the task in a thread" in letter.error


UNGUARDED = """
import anyio
from streamq import RedisBroker, Worker, task
from streamq.dead_letter import DeadLetterQueue

@task(run_in="process", retries=0)
def square(number: int) -> int:
    return number * number

async def main() -> None:
    async with RedisBroker("memory://") as broker:
        await broker.enqueue(square, 3)
        await Worker(broker, [square], burst=True).run()
        print(*[letter.error for letter in await DeadLetterQueue(broker=broker).peek()])

anyio.run(main, backend="BACKEND")
"""


def test_a_script_without_a_guard_is_told_so(anyio_backend_name, tmp_path):
    """A process loads the main module again; the program would be run again in it, with its tasks and its worker."""
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED.replace("BACKEND", anyio_backend_name))
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert f"could not load the main module of the program, {script}: streamq.errors.Conf" in ended.stdout
    assert 'guard what the script does with `if __name__ == "__main__":`' in ended.stdout
