"""Enqueue no-op tasks by many callers at once, each of whom awaits every one of his own. Prints the seconds.

python callers.py PEER N CALLERS
"""

import asyncio
import importlib
import sys
import time


async def drive(peer, n, callers):
    async with peer.client() as client:

        async def call():
            for _ in range(n // callers):
                await client.noop()

        await client.noop()  # the connection is there
        start = time.perf_counter()
        if hasattr(peer, "sleep"):  # a peer whose backend is anyio's
            import anyio

            async with anyio.create_task_group() as group:
                for _ in range(callers):
                    group.start_soon(call)
        else:
            async with asyncio.TaskGroup() as group:
                for _ in range(callers):
                    group.create_task(call())
        return time.perf_counter() - start


def main():
    name, n, callers = sys.argv[1:]
    peer = importlib.import_module(f"peers.{name}_peer")
    run = getattr(peer, "run", lambda fn, *args: asyncio.run(fn(*args)))
    print(run(drive, peer, int(n), int(callers)), flush=True)


if __name__ == "__main__":
    main()
