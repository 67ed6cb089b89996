"""One worker of the growth benchmark, in a process of its own: it works a queue off and says what that took.

Opens the queue, prints a line, waits for a line, works until the queue is empty, and prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio

from streamq import RedisBroker, Tier, Worker, task

BATCH = 1000  # tasks that are sent in one round trip


@task
async def nothing() -> None: ...


def tiers_of(count: int) -> list[Tier]:
    """Return so many tiers of one weight; a priority of 0 is the last's."""
    return [Tier(f"t{number}", threshold=count - 1 - number or None) for number in range(count)]


def broker_of(url: str, tiers: int) -> RedisBroker:
    """Return a broker of a queue with so many tiers."""
    return RedisBroker(url, tiers=tiers_of(tiers))


async def send(url: str, count: int, *, tiers: int = 1, delay: float | None = None) -> None:
    """Send so many tasks, to one tier after the other; all are due `delay` seconds later."""
    async with broker_of(url, tiers) as broker:
        kinds = [nothing.options(priority=number, delay=delay).call() for number in range(tiers)]
        for first in range(0, count, BATCH):
            await broker.enqueue_many([kinds[number % tiers] for number in range(first, min(count, first + BATCH))])


async def work_off(url: str, *, concurrency: int, tiers: int) -> None:
    """Run what is due, in this process, until the queue is empty."""
    async with broker_of(url, tiers) as broker:
        await Worker(broker, [nothing], concurrency=concurrency, burst=True).run()


def _resident() -> float:
    """Return the resident memory of this process in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--tiers", type=int, required=True)
    given = parser.parse_args(arguments)
    print("ready", flush=True)
    sys.stdin.readline()
    cpu, started = _cpu(), time.monotonic()
    run = partial(work_off, given.url, concurrency=given.concurrency, tiers=given.tiers)
    anyio.run(run, backend_options={"use_uvloop": True})
    print(json.dumps({"cpu": _cpu() - cpu, "seconds": time.monotonic() - started, "resident": _resident()}))


if __name__ == "__main__":
    main(sys.argv[1:])
