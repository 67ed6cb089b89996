"""The plain path: so many no-op tasks through one worker, and what they cost. One run, one line of JSON.

python -m tests.benchmarks.plain URL --tasks 20000 --backend asyncio --concurrency 100 --what kept
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from functools import partial

import anyio

from streamq import RedisBroker, Worker, task

_BATCH = 1000


@task
async def nothing(number: int) -> None: ...


@task(result_ttl=60)
async def kept(number: int) -> int:
    return number


@task(timeout=30)
async def timed(number: int) -> None: ...


WHAT = {"nothing": nothing, "kept": kept, "timed": timed}


async def main(url: str, tasks: int, concurrency: int, what: str) -> None:
    run = WHAT[what]
    async with RedisBroker(url) as broker:
        started = time.perf_counter()
        for first in range(0, tasks, _BATCH):
            await broker.enqueue_many([run.call(number) for number in range(first, min(tasks, first + _BATCH))])
        sent = time.perf_counter() - started
        before, cpu, started = await _commands(broker), _cpu(), time.perf_counter()
        await Worker(broker, [run], concurrency=concurrency, burst=True).run()
        took = time.perf_counter() - started
        commands = await _commands(broker) - before
        print(json.dumps({
            "tasks_per_s": tasks / took, "enqueued_per_s": tasks / sent, "commands_per_task": commands / tasks,
            "cpu_us_per_task": (_cpu() - cpu) / tasks * 1e6,
        }))  # fmt: skip


async def _commands(broker: RedisBroker) -> int:
    return int((await broker.client.info("stats"))["total_commands_processed"])


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--what", default="nothing", choices=WHAT)
    given = parser.parse_args()
    anyio.run(partial(main, given.url, given.tasks, given.concurrency, given.what), backend=given.backend)
