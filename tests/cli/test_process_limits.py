"""What a worker process has taken: its memory, its runs."""

from __future__ import annotations

import builtins
import subprocess
import sys
from unittest.mock import patch

import click
import pytest

from streamq import RedisBroker, Worker, batch_task, task
from streamq.cli.options import size
from streamq.cli.process_limits import JITTER, ProcessLimits, mebibytes
from streamq.consumer.resident_memory import resident_bytes
from streamq.middleware import MiddlewareChain, RateLimitMiddleware


@task
async def in_loop() -> None: ...


@task
def in_thread() -> None: ...


@task(retries=1, backoff=0.0)
async def fails() -> None:
    raise ValueError


@batch_task(size=3, wait=5.0)
async def together(items: list[int]) -> None: ...


@task(middleware=MiddlewareChain(RateLimitMiddleware(max_per_second=5.0, burst=1)))
async def limited() -> None: ...


async def test_each_run_that_ended_counts() -> None:
    """In the event loop and in threads, each task of a batch, each attempt; not what never began."""
    async with RedisBroker("memory://") as broker:
        for one in (in_loop, in_thread, fails, limited, limited):
            await broker.enqueue(one)
        for item in range(3):
            await broker.enqueue(together, item)
        await broker.enqueue("nobody")
        worker = Worker(broker, tasks=[in_loop, in_thread, fails, together, limited], unknown_wait=0.0, burst=True)
        assert worker.runs == 0
        await worker.run()
        assert worker.runs == 1 + 1 + 2 + 3 + 2


def test_the_limit_of_runs_has_jitter() -> None:
    """It goes up alone, by a tenth at most."""
    limits = {ProcessLimits(None, 1000)._most_runs for _ in range(50)}
    assert len(limits) > 5
    assert min(limits) >= 1000
    assert max(limits) <= 1000 * (1 + JITTER)
    assert ProcessLimits(None, 9)._most_runs == 9


def test_the_memory_is_that_of_this_process() -> None:
    """It is the resident set; where there is no /proc, the most that it was."""
    now = resident_bytes()
    assert 10 << 20 < now < 10 << 30
    with patch.object(builtins, "open", side_effect=OSError):
        assert 10 << 20 < resident_bytes() < 10 << 30
    assert mebibytes(300 << 20) == "300 MiB"
    assert mebibytes(2500 << 20) == "2,500 MiB"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300MiB", 300 << 20), ("300M", 300 << 20), ("300 mib", 300 << 20), ("300MB", 300_000_000),
        ("1.5GiB", 3 << 29), ("2g", 2 << 30), ("4096k", 4 << 20), ("4096kB", 4_096_000), ("5000000", 5_000_000),
        ("5000000B", 5_000_000), ("1T", 1 << 40),
    ],
)  # fmt: skip
def test_a_size(text: str, expected: int) -> None:
    """Units of 1,024 unless it is MB or GB."""
    assert size(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("much", "'much' is not a size: write bytes, or a number with MiB, GiB, MB or GB"),
        ("-5M", "is not a size"), ("", "is not a size"), ("5PB", "is not a size"), ("\uff15M", "is not a size"),
        ("300", "'300' is out of bounds: give 1,048,576 to 1,099,511,627,776 bytes"), ("9999T", "is out of bounds"),
    ],
)  # fmt: skip
def test_a_size_that_cannot_be_used(text: str, why: str) -> None:
    """The error names the value, and what can be."""
    with pytest.raises(click.BadParameter, match=why):
        size(text)


def test_the_supervisor_is_a_small_process() -> None:
    """It loads neither the worker nor a client: it would take as much memory as a worker."""
    loaded = "import sys, streamq.cli.supervisor; print([m for m in ('streamq.worker', 'redis') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", loaded], check=True, timeout=60, capture_output=True, text=True)
    assert found.stdout == "[]\n"
