"""P14: a worker whose log nobody reads any more, a pipe that is full, still ends by its signals in bounded time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import PATIENCE, ROOT
from tests.cli.test_process_handlers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Unread:
    """A worker, and the pipe that it logs to: read until it has started, then filled, and read no more."""

    def __init__(self, app, *options):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMQ_")}
        self.reading, self.writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamq", "worker", "app", *options], cwd=app,
            env=environment | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=self.writing,
            stderr=self.writing,
        )  # fmt: skip

    def fill(self, text: bytes, times: int) -> None:
        """Wait until this was logged so often, and fill the pipe."""
        seen = b""
        os.set_blocking(self.reading, False)

        def logged() -> bool:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(self.reading, 1 << 16)
            return seen.count(text) >= times

        assert wait_for(logged, PATIENCE), seen
        # Opened once more: O_NONBLOCK of the one that the worker has would be the worker's, too.
        mine = os.open(f"/proc/self/fd/{self.writing}", os.O_WRONLY | os.O_NONBLOCK)
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(mine, b"x" * size)
        os.close(mine)

    def signal(self) -> None:
        time.sleep(0.3)
        self.process.send_signal(signal.SIGTERM)

    def ended(self, seconds: float) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def unread(app):
    begun: list[Unread] = []

    def begin(*options: str) -> Unread:
        begun.append(Unread(app, *options))
        return begun[-1]

    yield begin
    for one in begun:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(PATIENCE)
        os.close(one.reading)
        os.close(one.writing)


def test_the_second_signal_ends_it_in_bounded_time(unread, url, anyio_backend):
    """The thread that ends it 10 s later does not wait for the reader either."""
    worker = unread("--url", url, "--backend", anyio_backend)
    worker.fill(b"concurrency", 1)
    for _ in range(2):
        worker.signal()
    assert worker.ended(20) == 1


def test_the_third_signal_ends_it_at_once(unread, url, anyio_backend):
    worker = unread("--url", url, "--backend", anyio_backend)
    worker.fill(b"concurrency", 1)
    for _ in range(3):
        worker.signal()
    assert worker.ended(5) == 128 + signal.SIGTERM


@pytest.mark.parametrize(("signals", "seconds", "code"), [(1, 25, 1), (3, 5, 128 + signal.SIGTERM)])
def test_a_supervisor_hears_its_signals(unread, url, anyio_backend, signals, seconds, code):
    """It logs from a thread: its loop waits for no reader, and it kills the processes that do."""
    worker = unread("--url", url, "--backend", anyio_backend, "-p", "2", "--grace", "1s")
    worker.fill(b"started", 1)
    for _ in range(signals):
        worker.signal()
    assert worker.ended(seconds) == code
