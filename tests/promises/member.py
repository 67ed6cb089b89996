"""One worker process of the promise tests: `python -m tests.promises.member URL BACKEND LOG LEASE [CONCURRENCY]`.

Every effect is one short line appended to LOG (outside Redis, by O_APPEND, so that what a
process wrote before it died stays written).
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.abc

from streamq import Backoff, RedisBroker, Task, Worker, task

LOG = -1


def note(word: str, number: int) -> None:
    os.write(LOG, f"{word} {number} {os.getpid()}\n".encode())


@task(retries=5, backoff=Backoff(base=0.05))
async def effect(number: int) -> None:
    """Do it, and say so; every hundredth takes a moment."""
    if number % 100 == 0:
        await anyio.sleep(0.01)
    note("effect", number)


@task
async def slow(number: int, seconds: float) -> None:
    """Say that it starts, take long, say that it ended."""
    note("start", number)
    await anyio.sleep(seconds)
    note("effect", number)


@task
async def deadly(number: int) -> None:
    """Take the worker down."""
    note("start", number)
    os.kill(os.getpid(), signal.SIGKILL)
    await anyio.sleep(60)


@task
async def stuck(number: int, seconds: float) -> None:
    """Block the event loop."""
    note("start", number)
    time.sleep(seconds)  # noqa: ASYNC251 - that is the fault
    note("effect", number)


async def main(url: str, lease: float, concurrency: int, tasks: Sequence[Task[Any, Any]]) -> None:
    async with RedisBroker(url, connect_timeout=2, reply_timeout=2) as broker:
        worker = Worker(
            broker,
            tasks=tasks,
            concurrency=concurrency,
            visibility_timeout=lease,
            grace_period=3,
        )
        async with anyio.create_task_group() as group:
            group.start_soon(drain_when_told, worker)
            await group.start(run, worker, group.cancel_scope)


async def run(
    worker: Worker, scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Run the worker, and end the program with it."""
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        note("up", 0)
        task_status.started()
    scope.cancel()


async def drain_when_told(worker: Worker) -> None:
    """SIGTERM drains, a second one hurries."""
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            worker.stop()


def main_with(tasks: Sequence[Task[Any, Any]]) -> None:
    """Run a worker with these tasks, as the command line says."""
    global LOG  # noqa: PLW0603 - one process, one log
    LOG = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    concurrency = int(sys.argv[5]) if len(sys.argv) > 5 else 100
    anyio.run(main, sys.argv[1], float(sys.argv[4]), concurrency, tasks, backend=sys.argv[2])


if __name__ == "__main__":
    main_with([effect, slow, deadly, stuck])
