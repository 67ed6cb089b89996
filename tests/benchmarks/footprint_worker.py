"""A worker that says, step by step, how much memory it has, and imports nothing before its time (see `footprint`)."""

from __future__ import annotations

import sys

_KIB_OF_A_PAGE = 4


def main(url: str, backend: str, tasks: int) -> None:
    """Print a name and resident KiB for each step, up to so many tasks that have run."""
    said("Python")
    import asyncio  # noqa: F401

    said("asyncio, which redis-py loads")
    import redis.commands  # noqa: F401

    said("redis-py and hiredis")
    import anyio
    import anyio.lowlevel

    if backend == "uvloop":
        import uvloop  # noqa: F401

    options = {"use_uvloop": True} if backend == "uvloop" else {}
    on = "trio" if backend == "trio" else "asyncio"
    anyio.run(anyio.lowlevel.checkpoint, backend=on, backend_options=options)
    said("anyio, and a loop that ran")
    from streamq import RedisBroker, Worker, task

    said("streamq")
    left = tasks

    @task
    async def nothing() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    async def work() -> None:
        nonlocal over
        over = anyio.Event()
        async with RedisBroker(url) as broker, anyio.create_task_group() as group:
            worker = Worker(broker, [nothing], concurrency=32)
            await group.start(worker.run)
            said("a worker that runs")
            await over.wait()
            said(f"{tasks} tasks later")
            worker.stop()

    over: anyio.Event
    anyio.run(work, backend=on, backend_options=options)


def said(step: str) -> None:
    """Print what is resident now."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - pathlib takes memory of its own
        pages = int(file.read().split()[1])
    sys.stdout.write(f"{step}\t{pages * _KIB_OF_A_PAGE}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
