"""P13, P14: signals to the process of a handler, forks of it, and what a run leaves to the next one there."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import pytest

from streamq import RedisBroker, task
from streamq.errors import TaskFailedError
from tests.at_work import burst, dead, until, working

pytestmark = [pytest.mark.slow, pytest.mark.paired]

FAST: dict[str, Any] = {"run_in": "process", "retries": 0, "result_ttl": 60, "timeout": 20.0}
ALIVE = 15.0  # seconds that a child of a handler lives


@task(**FAST)
def works(file: str, seconds: float) -> str:
    Path(file).write_text(str(os.getpid()))
    until_then = time.monotonic() + seconds
    while time.monotonic() < until_then:
        time.sleep(0.01)
    return "done"


@task(**FAST)
def codes() -> list[int]:
    """How programs and forks end that get SIGTERM and SIGINT."""
    found = []
    for number in (signal.SIGTERM, signal.SIGINT):
        found.append(subprocess.run(["/bin/sh", "-c", f"kill -{int(number)} $$"], check=False).returncode)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(1)
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found.append(code)
    return found


@task(**FAST)
def forks_and_dies(file: str) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(ALIVE)
        os._exit(0)
    Path(file).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def raises(*_: object) -> None:
    raise SystemExit("left by the run before")


def strikes(frame: Any, *_: object) -> None:
    if frame.f_code.co_name == "finds":
        raise SystemExit("left by the run before")


@task(**FAST)
def leaves(what: str) -> int:
    match what:
        case "alarm":  # its default is to end the process
            signal.alarm(1)
        case "timer":
            signal.signal(signal.SIGALRM, raises)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        case "handlers":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, raises)
        case "mask":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGALRM})
        case "traces":
            sys.settrace(strikes)
            sys.setprofile(strikes)
            threading.settrace(strikes)
            threading.setprofile(strikes)
    return os.getpid()


@task(**FAST)
def finds() -> list[Any]:
    """What a run begins with, after a moment in which timers would strike."""
    before = time.monotonic()
    time.sleep(1.2)
    subprocess.run(["/bin/true"], check=True)
    os.kill(os.getpid(), signal.SIGTERM)
    traces = [sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()]
    assert traces == [None] * 4
    assert time.monotonic() - before > 1.2
    return [os.getpid(), sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))]


class Odd:
    """What no stream is like: whatever it is asked, it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


held: list[Any] = []


def nothing() -> int:
    return os.open(os.devnull, os.O_RDWR)


def in_a_cycle() -> None:
    wrapper = os.fdopen(sys.stdout.fileno(), "w", buffering=1)
    sys.stdout = wrapper
    held.append(wrapper)


SPOIL: dict[str, Callable[[], object]] = {
    "closed": lambda: os.closerange(0, 3),
    "closed streams": lambda: [stream.close() for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "replaced": lambda: vars(sys).update(dict.fromkeys(("stdin", "stdout", "stderr", "__stdout__"), io.StringIO())),
    "none": lambda: vars(sys).update(stdout=None, stderr=None),
    "deleted": lambda: (vars(sys).pop("stdout"), vars(sys).pop("__stderr__")),
    "odd": lambda: vars(sys).update(stdout=Odd(), stderr=Odd()),
    "elsewhere": lambda: (os.dup2(nothing(), 1), os.dup2(nothing(), 2)),
    "a file in its place": lambda: (os.close(1), held.append(nothing())),
    "a wrapper of the descriptor": lambda: vars(sys).update(stdout=os.fdopen(1, "w", buffering=1)),
    "a wrapper that stays": in_a_cycle,
    "a wrapper of the buffer": lambda: vars(sys).update(stdout=io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")),
    "detached": lambda: vars(sys).update(stdout=io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8")),
    "reconfigured": lambda: sys.stdout.reconfigure(encoding="ascii", errors="strict"),  # type: ignore[union-attr]
}
SPOIL["a limit"] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
SPOIL["a priority"] = lambda: os.nice(1)
PUT_BACK: dict[str, Callable[[], object]] = {
    "nonblocking": lambda: (os.set_blocking(1, False), os.set_blocking(2, False)),
    "directory": lambda: os.chdir("/"),
    "umask": lambda: os.umask(0o777),
}


@task(**FAST)
def spoils(what: str) -> int:
    """Leave a standard stream, or the working directory, as no run finds it."""
    (SPOIL | PUT_BACK)[what]()
    return os.getpid()


@task(**FAST)
def prints(folder: str) -> list[Any]:
    """By itself, and by a program; says what a run begins with."""
    print("from stdout: é")
    print("from stderr", file=sys.stderr)
    subprocess.run(["/bin/sh", "-c", "echo from a program; echo and its errors >&2"], check=True)
    assert sys.stdin.read() == ""
    with (Path(folder) / str(time.monotonic())).open("w") as file:
        number = file.fileno()
    umask = os.umask(0o22)
    os.umask(umask)
    return [number > 2, str(Path.cwd()), *map(os.get_blocking, range(3)), umask, os.getpid()]


@pytest.mark.parametrize("kinds", [SPOIL, PUT_BACK], ids=["streams", "others"])
async def test_the_next_run_has_the_standard_streams_of_the_first_one(real_server, kinds, caplog, tmp_path):
    """As a daemon leaves them, or code that captures output: the next task failed, or printed into its own file."""
    caplog.set_level("INFO", "streamq.output")
    prints_again = prints.call(str(tmp_path))
    calls = [prints_again, *chain.from_iterable((spoils.call(what), prints_again, prints_again) for what in kinds)]
    async with RedisBroker(real_server.url) as broker:
        first, *others = await broker.enqueue_many(calls)
        await burst(broker, spoils, prints, concurrency=1)
        *begun, pid = await first.result(timeout=1)
        for what, (spoiled, *after) in zip(kinds, batched(others, 3), strict=True):
            assert await spoiled.result(timeout=1) == pid, what
            for handle in after:
                *ended, other = await handle.result(timeout=1)
                assert ended == begun, what
                assert (other != pid) == (kinds is SPOIL), what  # the process is replaced
            pid = other
    said = Counter(record.getMessage() for record in caplog.records if record.name == "streamq.output")
    printed = ("from stdout: é", "from stderr", "from a program", "and its errors")
    assert said == dict.fromkeys(printed, 1 + 2 * len(kinds))
    assert caplog.text.count("standard streams of its process") == (len(kinds) if kinds is SPOIL else 0)


def batched(items: list[Any], size: int) -> list[list[Any]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_all_processes_of_the_worker_ends_no_run(real_server, tmp_path, number):
    """Ctrl-C in a terminal, or a stop of systemd: the worker drains, so its processes go on."""
    file = tmp_path / "pid"
    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(works, str(file), 1.0)
        async with working(broker, works):
            pid = int(await until(lambda: file.exists() and file.read_text(), 20))
            os.kill(pid, number)
            assert await handle.result(timeout=20) == "done"
            handle = await broker.enqueue(works, str(file), 0.0)
            assert await handle.result(timeout=20) == "done"
            assert int(file.read_text()) == pid


async def test_what_a_handler_starts_minds_signals_as_before(real_server):
    """Programs, and forks: `Process.terminate()` must end them."""
    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(codes)
        await burst(broker, codes)
        assert await handle.result(timeout=1) == [-signal.SIGTERM, -signal.SIGTERM, -signal.SIGINT, 0]


async def test_a_run_ends_with_its_process_although_a_fork_of_it_lives(real_server, tmp_path):
    """The OOM killer takes the process of a handler that has a pool: the fork does not hold the worker's pipes."""
    file = tmp_path / "child"
    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(forks_and_dies, str(file))
        try:
            async with working(broker, forks_and_dies):
                with anyio.fail_after(ALIVE * 0.8), pytest.raises(TaskFailedError, match="SIGKILL"):
                    await handle.result(timeout=ALIVE)
            os.kill(int(file.read_text()), 0)
        finally:
            if file.exists():
                os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("what", ["alarm", "timer", "handlers", "mask", "traces"])
async def test_the_next_run_in_a_process_begins_as_the_first_one(real_server, what):
    """Timers, handlers of signals, masks, traces: they met the next task."""
    async with RedisBroker(real_server.url) as broker:
        first, second, third = await broker.enqueue_many([finds.call(), leaves.call(what), finds.call()])
        await burst(broker, leaves, finds, concurrency=1)
        begun, ended = await first.result(timeout=1), await third.result(timeout=1)
        assert begun == ended
        if what != "timer":  # it may have met its own run
            assert await second.result(timeout=1) == begun[0]
            assert dead(real_server) == []
