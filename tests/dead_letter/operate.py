"""A program that carries out an operation over dead letters, to be killed: `operate BACKEND URL KIND|ID`."""

from __future__ import annotations

import sys

import anyio

from streamq import RedisBroker
from streamq.dead_letter import DeadLetterQueue


async def main(url: str, what: str) -> None:
    async with RedisBroker(url) as broker:
        queue = DeadLetterQueue(broker=broker)
        operation = await (queue.start(what) if what in ("replay", "purge") else queue.operation(what))  # type: ignore[arg-type]
        print(operation.id, flush=True)
        async for outcome in operation.run():
            assert outcome.error is None
        print(operation.progress.state, operation.progress.done, operation.progress.examined, flush=True)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[2:], backend=sys.argv[1])
