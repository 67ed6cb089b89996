"""Tasks of `test_process_output.py`. Each process imports this module, so it imports little."""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

from streamq import task

FAST: dict[str, Any] = {"run_in": "process", "retries": 0, "result_ttl": 60}


@task(**FAST)
def warms_up() -> None:
    """Starts a process."""


@task(**FAST)
def prints_empty_lines(number: int) -> None:
    os.write(1, b"first\n")
    data = b"\n" * 50_000
    for at in range(0, number, len(data)):
        os.write(1, data[: number - at])


@task(**FAST)
def fills_its_pipe() -> None:
    """What a pipe holds, at once: the run has ended before any of it is read."""
    os.write(1, b"\n" * 60_000)


@task(**FAST)
def leaves_a_program() -> int:
    return subprocess.Popen(["/usr/bin/yes", ""]).pid


@task(**FAST)
def logs_much(number: int) -> None:
    log = logging.getLogger("shop.much")
    for done in range(number):
        log.warning("line %d", done)
