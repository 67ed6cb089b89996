"""A task, a broker and a worker in one asyncio program.

    python examples/quickstart_asyncio.py

Without a server it runs on the embedded one; for a real one set STREAMQ_URL=redis://localhost:6379.
"""

import asyncio
import os

from streamq import RedisBroker, Worker, task

URL = os.environ.get("STREAMQ_URL", "memory://")


@task(retries=3, timeout=60, result_ttl=300)
async def send(to: str, n: int = 1) -> dict[str, int]:
    """Pretend to send mail."""
    await asyncio.sleep(0.01)
    return {to: n}


async def main() -> None:
    async with RedisBroker(URL) as broker, asyncio.TaskGroup() as group:
        worker = Worker(broker, tasks=[send])
        group.create_task(worker.run())

        handle = await broker.enqueue(send, "a@b.c", n=2)
        print("sent:", await handle.result(timeout=10))

        worker.stop()  # finish what runs, hand back the rest; run() then returns


if __name__ == "__main__":
    asyncio.run(main())
