"""A task, a broker and a worker in one trio program.

    python examples/quickstart_trio.py

Without a server it runs on the embedded one; for a real one set STREAMQ_URL=redis://localhost:6379.
"""

import os

import trio

from streamq import RedisBroker, Worker, task

URL = os.environ.get("STREAMQ_URL", "memory://")


@task(retries=3, timeout=60, result_ttl=300)
async def send(to: str, n: int = 1) -> dict[str, int]:
    """Pretend to send mail."""
    await trio.sleep(0.01)
    return {to: n}


async def main() -> None:
    async with RedisBroker(URL) as broker, trio.open_nursery() as nursery:
        worker = Worker(broker, tasks=[send])
        await nursery.start(worker.run)  # returns once the worker reads

        handle = await broker.enqueue(send, "a@b.c", n=2)
        print("sent:", await handle.result(timeout=10))

        worker.stop()  # finish what runs, hand back the rest; run() then returns


if __name__ == "__main__":
    trio.run(main)
