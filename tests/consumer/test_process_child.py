"""P11, P13: what the handler of a process starts, prints, reads or forks is no reply to the worker."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path

import pytest

from streamq import RedisBroker, task
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
