"""A worker that notes what it opens and imports once it runs: `python -m tests.promises.without_disk URL BACKEND`.

It says "up" when it runs. After SIGTERM it drains, and prints what it has opened and imported since then as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from decimal import Decimal
from typing import Any

import anyio
import anyio.from_thread

from streamq import RedisBroker, Worker, batch_task, once, report_progress, report_progress_sync, task
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, Idempotency, MiddlewareChain, RateLimitMiddleware

_FILES = (".lua", ".pyc", ".so", ".json", "tzdata")
NOTED: list[str] = []
_LIMITS = MiddlewareChain(
    RateLimitMiddleware(1000.0, scope="fleet"), ConcurrencyLimit(5), CircuitBreaker(scope="fleet"), Idempotency()
)


async def on_exhausted(exhausted: Any) -> None:
    """Do nothing."""


@task(retries=1, backoff=0.01, on_exhausted=on_exhausted, result_ttl=60)
async def fails(amount: Decimal) -> None:
    raise ValueError(amount)


@task(result_ttl=60)
async def prices(amount: Decimal) -> Decimal:
    await report_progress(1, 2)
    return amount


@task(timeout=0.05, retries=0)
async def late(number: int) -> None:
    await anyio.sleep(60)


@task(result_ttl=60)
def in_thread(number: int) -> int:
    report_progress_sync(1)
    anyio.from_thread.run(anyio.sleep, 0)
    return number


@task(run_in="process", retries=0, result_ttl=60)
def in_process(number: int) -> int:
    return number // (number - 1)


@batch_task(size=5, wait=0.01)
async def batched(numbers: list[int]) -> None:
    """Do nothing."""


@task(middleware=_LIMITS)
async def limited(number: int) -> None:
    async with once(f"once:{number}", ttl=60) as effect:
        effect.record(number)


@task(retries=0)
async def hogs(seconds: float) -> None:
    held = []
    try:
        while True:
            held.append(os.dup(1))
    except OSError:
        await anyio.sleep(seconds)
    for one in held:
        os.close(one)


TASKS = (hogs, fails, prices, late, in_thread, in_process, batched, limited)


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Note an import of what is not loaded yet, and a file. Tracebacks show lines of source if these can be read."""
    if event == "import" or (event == "open" and str(arguments[0]).endswith(_FILES)):
        NOTED.append(f"{event} {arguments[0]}")


async def main(url: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    async with RedisBroker(url) as broker:
        worker = Worker(broker, TASKS, visibility_timeout=1.0)
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async with anyio.create_task_group() as group:
                await group.start(worker.run)
                sys.addaudithook(note)
                os.write(1, b"up\n")
                async for _ in signals:
                    break
                worker.stop()
        noted = list(NOTED)
    os.write(1, json.dumps(noted).encode())


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
