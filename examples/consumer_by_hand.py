"""The consumer's loop written by hand, for those who want no worker.

python examples/consumer_by_hand.py
BACKEND=trio python examples/consumer_by_hand.py
"""

import os
from contextlib import aclosing

import anyio

from streamq import RedisBroker
from streamq.dead_letter import DeadLetterQueue

URL = os.environ.get("STREAMQ_URL", "memory://")


async def send(to: str, n: int = 1) -> None:
    print(f"{n} to {to}")


HANDLERS = {"send": send}


async def main() -> None:
    async with RedisBroker(URL) as broker:
        for number in range(3):
            await broker.enqueue("send", f"{number}@b.c", n=number)
        await broker.enqueue("unheard_of")

        left = 4
        # aclosing: what is not acknowledged when the loop ends is handed back at once.
        async with aclosing(broker.consume()) as messages:
            async for message in messages:
                handler = HANDLERS.get(message.task)
                if handler is None:
                    await broker.nack(message.task_id, error=LookupError(f"no handler for {message.task}"))
                else:
                    await handler(*message.args, **message.kwargs)
                    await broker.ack(message.task_id)  # only after success
                left -= 1
                if not left:
                    break

        for letter in await DeadLetterQueue(broker=broker).peek():
            print("dead:", letter.task_name, "because", letter.error)


if __name__ == "__main__":
    anyio.run(main, backend=os.environ.get("BACKEND", "asyncio"))
