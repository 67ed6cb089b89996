"""Worker processes that tests start, stop, freeze and kill, and what they wrote down."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.servers import RealServer

ROOT = Path(__file__).parents[2]


class Fleet:
    """Processes of `member.py` on one server; all are ended at the end, by their ids."""

    def __init__(
        self, server: RealServer, backend: str, log: Path, *, lease: float, concurrency: int, member: str
    ) -> None:  # fmt: skip
        self._module = f"tests.promises.{member}"
        self.server = server
        self.log = log
        self.lease = lease
        self._arguments = [server.url, backend, str(log), str(lease), str(concurrency)]
        self.members: list[subprocess.Popen[bytes]] = []
        log.touch()

    def start(self) -> subprocess.Popen[bytes]:
        """Start one more worker and return once it reads."""
        process = subprocess.Popen([sys.executable, "-m", self._module, *self._arguments], cwd=ROOT)
        self.members.append(process)
        self.wait(lambda: ("up", 0, process.pid) in self.lines(), 30, "a worker that is up")
        return process

    def lines(self) -> list[tuple[str, int, int]]:
        """What was written down: (word, number, process id)."""
        found = []
        whole, _, _ = self.log.read_text().rpartition("\n")  # the last line may be half written yet
        for line in whole.splitlines():
            word, number, pid = line.split()
            found.append((word, int(number), int(pid)))
        return found

    def effects(self) -> Counter[int]:
        """How often the effect of each task was recorded."""
        return Counter(number for word, number, _ in self.lines() if word == "effect")

    def starts(self) -> Counter[int]:
        """How often each task said that it started."""
        return Counter(number for word, number, _ in self.lines() if word == "start")

    def size(self) -> int:
        """How many bytes were written down: cheap to poll."""
        return self.log.stat().st_size

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait until something holds and return how long it took; fails after `seconds`."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() > start + seconds:
                raise AssertionError(f"no {what} within {seconds} s")
            time.sleep(0.02)
        return time.monotonic() - start

    def settled(self) -> bool:
        """Is nothing left in the streams, and nothing delayed?"""
        tiers = ("critical", "standard", "bulk")
        return not any(
            self.server.command("XLEN", f"queue:{tier}") or self.server.command("ZCARD", f"queue:{tier}:delayed")
            for tier in tiers
        )

    def pending(self) -> int:
        """How many deliveries are not acknowledged."""
        return sum(
            self.server.command("XPENDING", f"queue:{tier}", "workers")[0] for tier in ("critical", "standard", "bulk")
        )

    def end(self) -> None:
        """End every process that still runs."""
        for process in self.members:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.terminate()
        for process in self.members:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@contextlib.contextmanager
def fleet(
    server: RealServer, backend: str, folder: Path, *, lease: float, concurrency: int = 100, member: str = "member"
) -> Iterator[Fleet]:
    """A fleet that is gone when the test is."""
    made = Fleet(server, backend, folder / "effects", lease=lease, concurrency=concurrency, member=member)
    try:
        yield made
    finally:
        made.end()


def leftovers(server: RealServer) -> list[str]:
    """Keys that outlive a queue that is done: none but the documented ones may lack a TTL."""
    lasting = {"queue:critical", "queue:standard", "queue:bulk", "queue:dead"}
    names = server.keys()
    return [key for key in names if key not in lasting and server.command("PTTL", key) < 0]
