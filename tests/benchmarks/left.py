"""What finished tasks leave in the server's memory, and what it consists of.

    python -m tests.benchmarks.left --server redis --tasks 2500 10000 40000

Nothing is left of a task. What stays after a run is the same after one task as after a million: the bodies
of the scripts, the keys of the queue itself, and above all the histograms of latencies that the server
keeps of each kind of command or subcommand from its first use on, for as long as it runs (some 24 KiB
each; Redis 7 and Valkey, unless `latency-tracking no`). Parts of it are told apart by what frees them.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from itertools import pairwise

import anyio

from streamq import RedisBroker, Worker, task
from tests.servers import Kind, RealServer

_BATCH = 5000
_PATIENCE = 10.0  # seconds for the server to notice that all others have left


@dataclass(frozen=True)
class Left:
    """Bytes of the server's memory (`used_memory`) that are there after a run and were not before it.

    `kinds` are the kinds of commands that were used; a count, no bytes.
    """

    total: int
    histograms: int
    scripts: int
    keys: int
    rest: int
    kinds: int


@task
async def nothing() -> None: ...


async def left(kind: Kind, tasks: int) -> Left:
    """Run so many tasks on a new server, and weigh what they leave."""
    # What is slow would be noted in its log of what is slow, and that depends on the machine.
    with closing(RealServer(kind, "--slowlog-log-slower-than", "-1")) as server:
        scales = _Scales(server)
        await _work(server.url, tasks)
        return scales.left()


async def _work(url: str, tasks: int) -> None:
    async with RedisBroker(url) as broker:
        for first in range(0, tasks, _BATCH):
            await broker.enqueue_many([nothing.call() for _ in range(first, min(tasks, first + _BATCH))])
        await Worker(broker, [nothing], concurrency=32, burst=True).run()


class _Scales:
    """Weighs what is left by all that happens between its making and `left`."""

    def __init__(self, server: RealServer) -> None:
        self._server = server
        server.command("CONFIG", "SET", "latency-tracking", "no")  # an error before Redis 7, which keeps none
        server.command("CONFIG", "RESETSTAT")
        self._before = self._used()
        server.command("CONFIG", "SET", "latency-tracking", "yes")

    def left(self) -> Left:
        """Take away, one after the other, what may have been left, and return how much each was."""
        kinds = self._server.command("INFO", "commandstats").count(b"cmdstat_")
        self._server.command("CONFIG", "SET", "latency-tracking", "no")  # or what follows would leave some
        weights = [self._used()]
        for command in ("CONFIG RESETSTAT", "SCRIPT FLUSH", "FLUSHALL"):
            self._server.command(*command.split())
            weights.append(self._used())
        histograms, scripts, keys = (before - after for before, after in pairwise(weights))
        total = weights[0] - self._before
        return Left(total, histograms, scripts, keys, total - histograms - scripts - keys, kinds)

    def _used(self) -> int:
        """Return the server's memory, once nobody but the one who asks is connected."""
        end = time.monotonic() + _PATIENCE
        while True:
            lines = self._server.command("INFO", "everything").decode().splitlines()
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
            if int(facts["connected_clients"]) == 1:
                return int(facts["used_memory"])
            if time.monotonic() > end:
                raise TimeoutError(f"{facts['connected_clients']} clients are still connected")
            time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="redis", choices=("valkey", "redis"))
    parser.add_argument("--tasks", type=int, nargs="+", default=[2500, 10_000, 40_000])
    given = parser.parse_args()
    print(f"{'tasks':>10}", *(f"{field.name:>12}" for field in fields(Left)))
    for tasks in given.tasks:
        found = anyio.run(left, given.server, tasks)
        print(f"{tasks:10}", *(f"{weight:12}" for weight in astuple(found)))


if __name__ == "__main__":
    main()
