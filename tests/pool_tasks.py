"""Tasks of `pool_soak.py`."""

from __future__ import annotations

import os
import time

from streamq import task

kept: list[bytes] = []


@task(run_in="process", retries=20, backoff=0.05, result_ttl=600)
def leaks(number: int, mib: int) -> int:
    kept.append(os.urandom(1 << 20) * mib)
    time.sleep(0.02)
    return number


@task(run_in="process", retries=1, backoff=0.05, result_ttl=600)
def exits(code: int) -> None:
    os._exit(code)


@task(run_in="process", retries=0, timeout=0.3, result_ttl=600)
def overruns() -> None:
    time.sleep(60)


@task(run_in="process", retries=20, backoff=0.05, result_ttl=600)
def is_cancelled() -> None:
    time.sleep(60)
