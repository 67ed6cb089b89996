"""What Python's garbage collector costs a worker under load, as it is and frozen (as `streamq worker` has it).

    python -m tests.benchmarks.collector --rounds 5 --tasks 50000

Each run is a process of its own, by turns. Medians: full collections, the longest of them, the collector's
time and the process's CPU time for each task. `--enqueue` measures one `enqueue_many` of all tasks instead.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from statistics import median
from typing import Any

import anyio

from streamq import RedisBroker, Worker, task
from tests.servers import RealServer

_BATCH = 1000
WAYS: dict[str, Callable[[], None]] = {
    "as it is": lambda: None, "frozen": gc.freeze, "10,000 allocations": lambda: gc.set_threshold(10_000, 10, 10),
    "off": gc.disable,
}  # fmt: skip


@contextmanager
def collections(found: dict[str, float], tasks: int) -> Iterator[None]:
    """Note what the collector did in here."""
    pauses: list[list[float]] = [[], [], []]
    began = 0.0

    def look(phase: str, about: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses[about["generation"]].append(time.perf_counter() - began)

    gc.callbacks.append(look)
    cpu = time.process_time()
    yield
    cpu = time.process_time() - cpu
    gc.callbacks.remove(look)
    found["full"] = len(pauses[2])
    found["longest ms"] = max(pauses[2], default=0.0) * 1e3
    found["collector us"] = sum(map(sum, pauses)) / tasks * 1e6
    found["CPU us"] = cpu / tasks * 1e6


async def work(url: str, way: str, tasks: int) -> dict[str, float]:
    """Run so many tasks that wait; what is measured begins with the first of them and ends with the last."""
    found: dict[str, float] = {}
    measured = collections(found, tasks)
    over = anyio.Event()
    done = 0

    @task
    async def nothing() -> None:
        nonlocal done
        done += 1
        if done == 1:
            measured.__enter__()
        elif done == tasks:
            measured.__exit__(None, None, None)
            over.set()

    async with RedisBroker(url) as broker, anyio.create_task_group() as group:
        for _ in range(0, tasks, _BATCH):
            await broker.enqueue_many([nothing.call() for _ in range(_BATCH)])
        worker = Worker(broker, [nothing], concurrency=32)
        gc.collect()
        await group.start(worker.run)
        WAYS[way]()
        await over.wait()
        worker.stop()
    return found


async def enqueue(url: str, way: str, tasks: int) -> dict[str, float]:
    """Send so many tasks in one call."""
    found: dict[str, float] = {}

    @task
    async def nothing() -> None: ...

    async with RedisBroker(url) as broker:
        await broker.enqueue(nothing)
        gc.collect()
        WAYS[way]()
        with collections(found, tasks):
            await broker.enqueue_many([nothing.call() for _ in range(tasks)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--backend", default="uvloop", choices=("asyncio", "uvloop", "trio"))
    parser.add_argument("--enqueue", action="store_true")
    parser.add_argument("--run", nargs=2, metavar=("URL", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        on = "trio" if given.backend == "trio" else "asyncio"
        options = {"use_uvloop": True} if given.backend == "uvloop" else {}
        measure = enqueue if given.enqueue else work
        print(json.dumps(anyio.run(measure, *given.run, given.tasks, backend=on, backend_options=options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with closing(RealServer("redis")) as server:
        for _ in range(given.rounds):
            for way, some in runs.items():
                server.flush()
                command = [sys.executable, "-m", "tests.benchmarks.collector", *sys.argv[1:], "--run", server.url, way]
                done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
                some.append(json.loads(done.stdout))
    figures = list(runs["frozen"][0])
    print(f"{'':20}", *(f"{figure:>14}" for figure in figures))
    for way, some in runs.items():
        print(f"{way:20}", *(f"{median(run[figure] for run in some):14.2f}" for figure in figures))


if __name__ == "__main__":
    main()
