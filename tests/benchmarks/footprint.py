"""Where a worker's memory is: resident MiB (Linux), step by step, from the interpreter to many tasks later.

    python -m tests.benchmarks.footprint --tasks 50000 --python VENV/bin/python

`--python` is one that has streamq's extras `uvloop` and `trio`, and best nothing else: what is installed
beside them (opentelemetry, for one) redis-py loads, too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from streamq import RedisBroker
from streamq.tasks.task import TaskRef
from tests.servers import RealServer

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).with_name("footprint_worker.py")
BACKENDS = ("asyncio", "uvloop", "trio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--server", default="redis", choices=("valkey", "redis"))
    parser.add_argument("--python", default=sys.executable)
    given = parser.parse_args()
    found = {backend: steps(backend, given.tasks, given.server, given.python) for backend in BACKENDS}
    print(f"{'MiB':32}", *(f"{backend:>16}" for backend in BACKENDS))
    before = dict.fromkeys(BACKENDS, 0.0)
    for step in found[BACKENDS[0]]:
        cells = []
        for backend in BACKENDS:
            size = found[backend][step]
            cells.append(f"{size:9.1f} {size - before[backend]:+6.1f}")
            before[backend] = size
        print(f"{step:32}", *cells)


def steps(backend: str, tasks: int, server: str, python: str) -> dict[str, float]:
    """Return what was resident (MiB) after each step of a worker in a process of its own."""
    with closing(RealServer(server)) as real:
        asyncio.run(_fill(real.url, tasks))
        command = [python, str(WORKER), real.url, backend, str(tasks)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=120)
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return {step: int(kib) / 1024 for step, kib in rows}


async def _fill(url: str, tasks: int) -> None:
    call = TaskRef("nothing").call()
    async with RedisBroker(url) as broker:
        for first in range(0, tasks, 5000):
            await broker.enqueue_many([call] * min(5000, tasks - first))


if __name__ == "__main__":
    main()
