"""What the size of a stream's nodes does to a server: bytes per waiting task, and CPU per task that is worked off.

    python -m tests.benchmarks.nodes --server redis --tasks 100000

XDEL walks through the node that an entry is in; smaller nodes are shorter walks, and more of them in memory.
Each line is a server of its own; the first size is measured again at the end.
"""

from __future__ import annotations

import argparse
import re
from contextlib import closing
from functools import partial

import anyio

from streamq import RedisBroker, Worker, task
from tests.servers import RealServer

SIZES = (100, 50, 30, 20, 10, 100)  # entries; the server's default is 100


@task
async def noop(number: int) -> None:
    """Do nothing."""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="redis", choices=("valkey", "redis"))
    parser.add_argument("--tasks", type=int, default=100_000)
    given = parser.parse_args()
    print(f"{'node, entries':>16}{'waiting, B':>16}{'CPU, us':>16}{'of it XDEL':>16}")
    for size in SIZES:
        with closing(RealServer(given.server)) as server:
            server.command("CONFIG", "SET", "stream-node-max-entries", size)
            figures = anyio.run(partial(measure, server, given.tasks), backend_options={"use_uvloop": True})
        print(f"{size:16}", *(f"{figure:15.2f}" for figure in figures))


async def measure(server: RealServer, tasks: int) -> tuple[float, float, float]:
    """Return bytes per waiting task, and the server's CPU and that of XDEL in microseconds per task."""
    async with RedisBroker(server.url) as broker:
        before = _found(server, "memory", r"used_memory:(\d+)")
        for at in range(0, tasks, 1000):
            await broker.enqueue_many([noop.call(number) for number in range(at, at + 1000)])
        waiting = (_found(server, "memory", r"used_memory:(\d+)") - before) / tasks
        server.command("CONFIG", "RESETSTAT")
        used = _cpu(server)
        await Worker(broker, [noop], concurrency=100, burst=True).run()
        used = _cpu(server) - used
    return waiting, used / tasks * 1e6, _found(server, "commandstats", r"cmdstat_xdel:calls=\d+,usec=(\d+)") / tasks


def _cpu(server: RealServer) -> float:
    return sum(_found(server, "cpu", rf"used_cpu_{kind}:([\d.]+)") for kind in ("user", "sys"))


def _found(server: RealServer, section: str, pattern: str) -> float:
    found = re.search(pattern, server.command("INFO", section).decode())
    assert found is not None, pattern
    return float(found[1])


if __name__ == "__main__":
    main()
