"""Enqueues in one loop of one thread: `SyncBroker.enqueue` beside an awaited `RedisBroker.enqueue`, by turns.

    python -m tests.benchmarks.sync_callers --tasks 10000 --rounds 5 --server redis

Prints the median of the enqueues per second for both, and their ratio: machines are noisy, the ratio is less so. The
server is started here, on a unix socket; `--tcp` puts it behind a port of this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from statistics import median

import anyio

from streamq import RedisBroker, SyncBroker, task
from tests.client.conftest import Process


@task
def nothing(number: int) -> None: ...


def sync_calls(url: str, tasks: int) -> float:
    """Return the enqueues per second of a SyncBroker."""
    with SyncBroker(url) as broker:
        broker.enqueue(nothing, 0)
        begun = time.perf_counter()
        for number in range(tasks):
            broker.enqueue(nothing, number)
        return tasks / (time.perf_counter() - begun)


async def awaited_calls(url: str, tasks: int) -> float:
    """Return the enqueues per second of a RedisBroker whose every call is awaited."""
    async with RedisBroker(url) as broker:
        await broker.enqueue(nothing, 0)
        begun = time.perf_counter()
        for number in range(tasks):
            await broker.enqueue(nothing, number)
        return tasks / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", default="redis", choices=("redis", "valkey"))
    parser.add_argument("--tcp", action="store_true")
    given = parser.parse_args()
    with contextlib.closing(Process(given.server)) as server:
        url = server.tcp if given.tcp else server.unix
        rounds = [
            (sync_calls(url, given.tasks), anyio.run(awaited_calls, url, given.tasks)) for _ in range(given.rounds)
        ]
    sync, awaited = (median(one) for one in zip(*rounds, strict=True))
    ratio = median(one / other for one, other in rounds)
    print(f"SyncBroker {sync:,.0f}/s, awaited RedisBroker {awaited:,.0f}/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
