"""One worker process of `test_true_figures`; its arguments are those of `member.py`.

Each run that ends well writes down its wait and its latency in microseconds, with the number of its task. Of a task
that ran twice the last line is the run that counted: the first was lost with its worker.
"""

from __future__ import annotations

import time

import anyio

from streamq import Backoff, Reject, RetryLater, current_delivery, task
from tests.promises import member

SECONDS = 0.01  # a run takes 0 to 29 times as long


def arrived_us() -> int:
    return int(current_delivery().entry_id.partition(b"-")[0]) * 1000


def now_us() -> int:
    return time.time_ns() // 1000


@task
async def fine(number: int) -> None:
    """Take a while, and say how long it waited and how long it was there."""
    wait = now_us() - arrived_us()
    await anyio.sleep(number % 30 * SECONDS)
    member.note(f"wait:{number}", wait)
    member.note(f"latency:{number}", now_us() - arrived_us())
    member.note("effect", number)


@task(retries=3, backoff=Backoff(base=0.05))
async def flaky(number: int) -> None:
    """Fail the first attempt."""
    if current_delivery().attempt == 1:
        raise ValueError(number)
    member.note("effect", number)


@task
async def doomed(number: int) -> None:
    raise Reject(f"{number} is hopeless")


@task
async def later(number: int) -> None:
    """Be postponed once."""
    if current_delivery().starts == 1:
        raise RetryLater(after=0.1)
    member.note("effect", number)


@task
async def endless(number: int) -> None:
    """Run until it is cancelled."""
    member.note("start", number)
    await anyio.sleep(300)


if __name__ == "__main__":
    member.main_with([fine, flaky, doomed, later, endless])
