"""What signatures cost: to sign and to check one message, and a whole queue with keys beside one without.

    python -m tests.benchmarks.signing --tasks 20000

docs/performance.md has its figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import anyio

from streamq import RedisBroker, SigningKeys, Worker, task
from streamq.wire.delivery import Delivery
from streamq.wire.signing import Signer
from tests.servers import fresh_server

KEYS = SigningKeys({"2026-11": bytes(range(32))})
STREAM = "queue:standard"


def times(call: Any, count: int = 20_000) -> float:
    """Return the microseconds of one call: the median of five rounds."""
    rounds = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(count):
            call()
        rounds.append((time.perf_counter() - begun) / count * 1e6)
    return statistics.median(rounds)


def of_one_message(size: int) -> tuple[float, float, int]:
    """Return the microseconds to sign and to check a message, and the bytes that the signature adds."""
    signer = Signer(KEYS, namespace="queue", group="workers")
    fields = ["task", "send", "id", "abcdefghijklmnop", "args", b'["' + b"x" * size + b'"]']
    signed = [part.encode() if isinstance(part, str) else part for part in signer.sign(STREAM, fields)]

    def check() -> None:
        signer.check(STREAM, Delivery(0, "standard", b"1-1", signed))

    plain = times(lambda: Delivery(0, "standard", b"1-1", signed).fields)
    return times(lambda: signer.sign(STREAM, fields)), times(check) - plain, sum(map(len, signed[-2:]))


async def of_a_queue(url: str, tasks: int, signing: SigningKeys | None) -> tuple[float, float]:
    """Return the microseconds of CPU time to enqueue one task, and to run it."""

    @task(name="noop")
    async def noop(n: int) -> None: ...

    async with RedisBroker(url, signing=signing) as broker:
        begun = time.process_time()
        for at in range(0, tasks, 1000):
            await broker.enqueue_many([noop.call(n) for n in range(at, at + 1000)])
        sent = time.process_time()
        await Worker(broker, [noop], burst=True).run()
        ran = time.process_time()
    return (sent - begun) / tasks * 1e6, (ran - sent) / tasks * 1e6


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20_000, help="tasks of each queue")
    tasks = parser.parse_args().tasks
    for size in (20, 1_000, 100_000):
        sign, check, added = of_one_message(size)
        print(f"a message of {size} B: {sign:.1f} us to sign, {check:.1f} us to check, {added} B more")
    with fresh_server("valkey") as server:
        for name, signing in (("without keys", None), ("with keys", KEYS)):
            rounds = [anyio.run(partial(of_a_queue, server.url, tasks, signing)) for _ in range(3)]
            sends, runs = (statistics.median(values) for values in zip(*rounds, strict=True))
            print(f"{name}: {sends:.1f} us to enqueue, {runs:.1f} us to run")


if __name__ == "__main__":
    main()
