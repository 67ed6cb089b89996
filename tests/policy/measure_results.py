"""How soon a waiter wakes, what waiting costs, and what gathering and reporting cost.

    python -m tests.policy.measure_results [--backend trio] [--runs 500]

Everything in one process and against one server of its own (Valkey), so the figures compare with
each other and not with those of another machine.
"""

from __future__ import annotations

import argparse
import statistics
import time

import anyio

from streamq import RedisBroker, gather, report_progress, task
from tests.at_work import working
from tests.queue.test_gather import commands, spent
from tests.servers import fresh_server

ENDS: dict[int, float] = {}


@task(result_ttl=60)
async def ends(n: int) -> None:
    await anyio.sleep(0.02)
    ENDS[n] = time.perf_counter()


@task(result_ttl=60)
async def double(n: int) -> int:
    return 2 * n


@task(result_ttl=60)
async def counts(n: int, reports: bool) -> float:
    started = time.perf_counter()
    for at in range(n):
        if reports:
            await report_progress(at, n)
    return (time.perf_counter() - started) / n


async def wakes(broker: RedisBroker, runs: int) -> None:
    """From the end of the handler to the return of `result()`, beside the server's own round trip."""
    took, trips = [], []
    for n in range(runs):
        handle = await broker.enqueue(ends, n)
        await handle.result(timeout=10)
        took.append(time.perf_counter() - ENDS[n])
        started = time.perf_counter()
        await broker.client.ping()
        trips.append(time.perf_counter() - started)
    for name, values in (("end of the handler to the waiter", took), ("a PING", trips)):
        cuts = statistics.quantiles(values, n=100)
        print(f"{name:>34}: median {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms")


async def idles(broker: RedisBroker, server: object) -> None:
    """What is asked in two seconds in which fifty wait, one of them for a thousand; no worker runs."""
    handles = await broker.enqueue_many([double.call(i) for i in range(1000)])
    async with anyio.create_task_group() as group:
        for handle in handles[:50]:
            group.start_soon(handle.result)
        group.start_soon(gather, *handles)
        await anyio.sleep(0.5)
        before = commands(server)
        await anyio.sleep(2.0)
        print(f"{'2 s of waiting':>34}: {sum(spent(before, commands(server)).values())} commands")
        group.cancel_scope.cancel()


async def gathers(broker: RedisBroker, server: object, n: int) -> None:
    """A thousand results: one after the other, and by `gather`."""
    for name in ("one after the other", "gather"):
        handles = await broker.enqueue_many([double.call(i) for i in range(n)])
        await gather(*handles, timeout=60)
        before, started = commands(server), time.perf_counter()
        if name == "gather":
            await gather(*handles, timeout=60)
        else:
            for handle in handles:
                await handle.result(timeout=60)
        took, used = time.perf_counter() - started, sum(spent(before, commands(server)).values())
        print(f"{f'{n} results, {name}':>34}: {took * 1e3:.1f} ms, {used} commands")


async def reports(broker: RedisBroker, server: object, n: int) -> None:
    """What a report costs its handler."""
    for reporting in (False, True):
        before = commands(server)
        each = await (await broker.enqueue(counts, n, reporting)).result(timeout=60)
        writes = spent(before, commands(server)).get("set", 0) - 1
        print(f"{f'{n} turns, reporting: {reporting}':>34}: {each * 1e6:.2f} µs each, {writes} writes")


async def main(runs: int) -> None:
    with fresh_server("valkey") as server:
        async with RedisBroker(server.url) as broker:
            await idles(broker, server)
        async with RedisBroker(server.url) as broker, working(broker, ends, double, counts):
            await wakes(broker, runs)
            await gathers(broker, server, 1000)
            await reports(broker, server, 100_000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    parser.add_argument("--runs", type=int, default=500)
    chosen = parser.parse_args()
    anyio.run(main, chosen.runs, backend=chosen.backend)
