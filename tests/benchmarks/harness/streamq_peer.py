"""streamq; variants: "" asyncio, "uvloop", "trio", and with "-results" each keeps its results for 5 min."""

from contextlib import asynccontextmanager

import anyio
import probe

from streamq import RedisBroker, Worker, task

LOOP, _, KEPT = probe.VARIANT.partition("-")
if LOOP == "results":
    LOOP, KEPT = "", LOOP
BACKEND = "trio" if LOOP == "trio" else "asyncio"
OPTIONS = {"use_uvloop": True} if LOOP == "uvloop" else {}
sleep = anyio.sleep
SCALE, LIMIT = 20, 100_000  # long enough to be timed at its speed


def run(fn, *args):
    return anyio.run(fn, *args, backend=BACKEND, backend_options=OPTIONS)


@task(result_ttl=300 if KEPT else None)
async def noop() -> None:
    probe.hit()


@task
async def sleeper(seconds: float) -> None:
    await anyio.sleep(seconds)
    probe.hit()


@task
async def stamp(sent: float) -> None:
    probe.stamp(sent)


class Client:
    def __init__(self, broker):
        self.broker = broker

    async def noop(self):
        await self.broker.enqueue(noop)

    async def sleeper(self, seconds):
        await self.broker.enqueue(sleeper, seconds)

    async def stamp(self, sent):
        await self.broker.enqueue(stamp, sent)

    async def bulk(self, n):
        await self.broker.enqueue_many([noop.call() for _ in range(n)])


@asynccontextmanager
async def client():
    async with RedisBroker(probe.URL) as broker:
        yield Client(broker)


async def serve():
    async with RedisBroker(probe.URL) as broker:
        await Worker(broker, tasks=[noop, sleeper, stamp], concurrency=probe.CONCURRENCY).run()


def worker():
    run(serve)
