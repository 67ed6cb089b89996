"""What a send of a `SyncBroker` costs its caller.

    python -m tests.benchmarks.sync_sends --server redis

The best of many short batches: it is hardly moved by what else the machine does. To see another queue beside it, send
its plain call in the same way (`best_of`), by turns: on which cores client and server run makes much of the difference.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from streamq import SyncBroker, task
from tests.servers import RealServer

BATCHES, BATCH = 80, 200


class Best(NamedTuple):
    """Of the best batch: calls a second, and microseconds of CPU for each call."""

    per_second: float
    cpu_us: float


@task(name="noop")
async def noop() -> None: ...


def best_of(send: Callable[[], object], batches: int = BATCHES) -> Best:
    """Call a function again and again."""
    wall = cpu = float("inf")
    for _ in range(batches):
        begun, used = time.perf_counter(), time.process_time()
        for _ in range(BATCH):
            send()
        wall, cpu = min(wall, time.perf_counter() - begun), min(cpu, time.process_time() - used)
    return Best(BATCH / wall, cpu / BATCH * 1e6)


def measured(server: RealServer, batches: int = BATCHES) -> Best:
    """Return what a send costs."""
    with SyncBroker(server.url) as broker:
        return best_of(lambda: broker.enqueue(noop), batches)


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    with contextlib.closing(RealServer(parser.parse_args().server)) as server:
        best = measured(server)
    print(f"SyncBroker.enqueue {best.per_second:,.0f} /s, {best.cpu_us:.1f} us of CPU")


if __name__ == "__main__":
    main()
