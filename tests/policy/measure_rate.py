"""Measure the rate that RateLimitMiddleware keeps: `python -m tests.policy.measure_rate [--seconds 30] [--rate 50]`.

Starts a server of its own and real worker processes; every start is a line in a file. The rate is that of the starts in
a window that begins 2 s after the first one, on the machine's clock. Ends with 1 if one is off by more than 2 %.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Final

import anyio
import click

from streamq import RedisBroker, task
from streamq.middleware import RateLimitMiddleware
from tests.crew import Crew, say
from tests.servers import Kind, fresh_server

WARM: Final = 2.0  # seconds
TOLERANCE: Final = 0.02

_limit = RateLimitMiddleware(
    float(os.environ.get("MEASURED_RATE", "50")),
    scope="fleet" if os.environ.get("MEASURED_SCOPE") == "fleet" else "process",
)


@task(name="measured", retries=0, middleware=[_limit])
async def measured(number: int) -> None:
    """Say when it started."""
    say(f"{time.time():.6f} {number}")


TASKS = [measured]


async def measure(kind: Kind, backend: str, workers: int, scope: str, rate: float, seconds: float) -> tuple[float, int]:
    """Return the measured rate, and by how many places a start was out of order at most."""
    os.environ["MEASURED_RATE"], os.environ["MEASURED_SCOPE"] = str(rate), scope
    with fresh_server(kind) as server, tempfile.TemporaryDirectory() as folder:
        async with RedisBroker(server.url) as broker:
            count = int(rate * (seconds + 2 * WARM + 5))
            await broker.enqueue_many([measured.call(number) for number in range(count)])
        with Crew("tests.policy.measure_rate", server, folder, backend=backend, lease=10.0) as crew:
            for number in range(workers):
                crew.start(f"worker-{number}")
            await anyio.to_thread.run_sync(crew.until, "")
            await anyio.sleep(seconds + 2 * WARM)
        lines = [line.split() for line in crew.log.read_text().splitlines()]
    starts = sorted((float(at), int(number)) for at, number in lines)
    begin = starts[0][0] + WARM
    within = [at for at, _ in starts if begin <= at < begin + seconds]
    shift = max(abs(number - place) for place, (_, number) in enumerate(starts))
    return len(within) / seconds, shift


@click.command()
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--rate", default=50.0, show_default=True)
@click.option("--kind", default="valkey", show_default=True)
def main(seconds: float, rate: float, kind: Kind) -> None:
    """Measure one worker in both scopes, and four in the fleet's."""
    worst = 0.0
    for backend, workers, scope in (
        ("asyncio", 1, "process"), ("asyncio", 1, "fleet"), ("asyncio", 4, "fleet"), ("trio", 4, "fleet"),
    ):  # fmt: skip
        got, shift = anyio.run(measure, kind, backend, workers, scope, rate, seconds)
        off = got / rate - 1
        worst = max(worst, abs(off))
        print(f"{backend:8} {workers} worker(s) {scope:8} wanted {rate:g}/s, got {got:.2f}/s ({off:+.2%}) "
              f"over {seconds:g} s; out of order by {shift} at most")  # fmt: skip
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
