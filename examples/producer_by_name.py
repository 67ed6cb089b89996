"""A producer that has only the names of tasks: their code lives in the workers.

python examples/producer_by_name.py
BACKEND=trio python examples/producer_by_name.py
"""

import os
from datetime import UTC, datetime, timedelta

import anyio

from streamq import Priority, RedisBroker, TaskRef
from streamq.monitoring import QueueMonitor

URL = os.environ.get("STREAMQ_URL", "memory://")


async def main() -> None:
    async with RedisBroker(URL) as broker:
        await broker.enqueue("send", "a@b.c", n=2)
        await broker.enqueue("send", "boss@b.c", priority=Priority.CRITICAL)

        # Options can never collide with arguments of the task when they are given apart.
        later = TaskRef("report").options(at=datetime.now(UTC) + timedelta(hours=1), priority=Priority.LOW)
        handle = await broker.enqueue(later, month=5)
        print("report is", await handle.status())

        send = TaskRef("send")
        handles = await broker.enqueue_many([send.call(f"{number}@b.c") for number in range(100)])
        print(len(handles), "more in one round trip")

        for tier in (await QueueMonitor(broker=broker).snapshot()).tiers.values():
            print(f"{tier.name}: {tier.depth} waiting, {tier.delayed} delayed")


if __name__ == "__main__":
    anyio.run(main, backend=os.environ.get("BACKEND", "asyncio"))
