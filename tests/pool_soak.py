"""Two workers of two processes each, with tasks that leak, exit, overrun, are cancelled, and processes that are killed.

    python -m tests.pool_soak [--minutes 5] [--server valkey] [--backend trio]

Each task must end as it should, none is lost, and no process has more memory than `max_rss` and what one run takes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import psutil

from streamq import RedisBroker
from streamq.errors import TaskFailedError
from tests.pool_tasks import exits, is_cancelled, leaks, overruns
from tests.servers import fresh_server

ROOT = Path(__file__).parents[1]
BOUND = 200_000_000  # bytes
LARGEST = 12  # MiB that one run keeps
MARGIN = (LARGEST + 4) << 20  # it is measured when a run has ended
PROCESSES = 2


class Soak:
    """The workers, the tasks, and what became of them."""

    def __init__(self, url: str, backend: str, seconds: float) -> None:
        self.url = url
        self.seconds = seconds
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.killed = 0
        self.largest = 0
        self.most = 0
        self.seen: set[int] = set()
        self._sending = True
        self._random = random.Random(7)
        command = [
            sys.executable, "-m", "streamq", "worker", "tests.pool_tasks", "--url", url, "--backend", backend,
            "--task-processes", str(PROCESSES), "--process-max-rss", str(BOUND), "--max-tasks-per-process", "100",
            "--log-level", "error", "--lease", "5s",
        ]  # fmt: skip
        self.workers = [
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
        ]

    async def run(self) -> None:
        """Send tasks for so long, and wait for the end of each."""
        try:
            async with RedisBroker(self.url) as broker, anyio.create_task_group() as group:
                group.start_soon(self._watch)
                async with anyio.create_task_group() as tasks:
                    limit = anyio.CapacityLimiter(30)
                    until_then = time.monotonic() + self.seconds
                    number = 0
                    while time.monotonic() < until_then:
                        async with limit:
                            pass
                        number += 1
                        tasks.start_soon(self._one, broker, number, limit)
                        await anyio.sleep(0.02)
                    self._sending = False
                group.cancel_scope.cancel()
        finally:
            for worker in self.workers:
                worker.terminate()
            codes = [worker.wait(60) for worker in self.workers]
            if codes != [0, 0]:
                self.wrong.append(f"workers ended with {codes}")
            if left := [one for one in self.seen if psutil.pid_exists(one)]:
                self.wrong.append(f"processes were left: {left}")

    async def _one(self, broker: RedisBroker, number: int, limit: anyio.CapacityLimiter) -> None:
        kind = self._random.choices(["leaks", "exits", "overruns", "is_cancelled"], [40, 3, 3, 3])[0]
        task, args = {
            "leaks": (leaks, (number, self._random.randint(1, LARGEST))), "exits": (exits, (3,)),
            "overruns": (overruns, ()), "is_cancelled": (is_cancelled, ()),
        }[kind]  # fmt: skip
        async with limit:
            handle: Any = await broker.enqueue(task, *args)
            if kind == "is_cancelled":
                await anyio.sleep(self._random.uniform(0, 1))
                await handle.cancel()
            try:
                outcome = str(await handle.result(timeout=120) == number)
            except TaskFailedError as error:
                outcome = _how(str(error))
            except TimeoutError:
                outcome = "lost"
        self.outcomes[f"{kind}: {outcome}"] += 1
        wanted = {"leaks": {"True"}, "exits": {"died"}, "overruns": {"timeout", "died"}, "is_cancelled": {"cancelled"}}
        if outcome not in wanted[kind]:
            self.wrong.append(f"{kind} {number}: {outcome}")

    async def _watch(self) -> None:
        """Look at the processes of handlers, and kill one now and then."""
        next_kill = time.monotonic() + 1
        while True:
            children = [child for worker in self.workers for child in _children(worker.pid)]
            self.most = max(self.most, len(children))
            for child in children:
                with suppress(psutil.Error):
                    self.largest = max(self.largest, child.memory_info().rss)
            self.seen |= {child.pid for child in children}
            if self._sending and children and time.monotonic() > next_kill:
                next_kill += self._random.uniform(0.5, 2)
                with suppress(ProcessLookupError):
                    os.kill(self._random.choice(children).pid, signal.SIGKILL)
                    self.killed += 1
            await anyio.sleep(0.02)


def _how(text: str) -> str:
    known = {"timeout": "its timeout", "died": "the process of task", "cancelled": "cancelled"}
    return next((name for name, part in known.items() if part in text), text)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.Error:
        return []


def soak(server: Any, backend: str, seconds: float) -> Soak:
    """Run it against a server."""
    one = Soak(server.url, backend, seconds)
    anyio.run(one.run, backend=backend)
    if one.largest > BOUND + MARGIN:
        one.wrong.append(f"a process had {one.largest:,} bytes")
    return one


def main() -> int:
    """Print what became of the tasks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    chosen = parser.parse_args()
    with fresh_server(chosen.server) as server:
        one = soak(server, chosen.backend, chosen.minutes * 60)
    print(f"{one.outcomes.total():,} tasks: {dict(one.outcomes)}")
    print(
        f"{len(one.seen)} processes, at most {one.most} at a time, {one.killed} killed; "
        f"the largest had {one.largest / 1e6:,.0f} MB of {BOUND / 1e6:,.0f}"
    )
    for wrong in one.wrong:
        print("WRONG:", wrong)
    return int(bool(one.wrong))


if __name__ == "__main__":
    sys.exit(main())
