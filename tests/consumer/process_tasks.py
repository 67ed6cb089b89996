"""Tasks of `test_process_pool.py`. Each process imports this module, so it imports little."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from streamq import batch_task, current_delivery, report_progress_sync, task

kept: list[bytes] = []
prepared: list[int] = []
FAST: dict[str, Any] = {"run_in": "process", "retries": 0, "result_ttl": 60}


@task(**FAST)
def pid(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


@task(result_ttl=60)
async def in_loop() -> int:
    return os.getpid()


@batch_task(size=10, wait=0.2, **FAST)
def batch_pid(items: list[int]) -> list[int]:
    return [len(items)] * len(items)


@task(**FAST)
def leaks(mib: int) -> tuple[int, int]:
    kept.append(os.urandom(1 << 20) * mib)
    time.sleep(0.03)
    return os.getpid(), int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@task(**FAST)
def has_sibling(seconds: float) -> tuple[int, bool]:
    """Wait until there is a second process, for so long at most."""
    children, until_then = Path(f"/proc/{os.getppid()}/task").glob, time.monotonic() + seconds
    while time.monotonic() < until_then:
        others = {one for thread in children("*/children") for one in thread.read_text().split()} - {str(os.getpid())}
        if any(is_process_of_handlers(one) for one in others):
            return os.getpid(), True
        time.sleep(0.02)
    return os.getpid(), False


def is_process_of_handlers(pid: str) -> bool:
    try:
        return b"process_child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def prepare() -> None:
    prepared.append(os.getpid())
    print("prepared")


def fails() -> None:
    raise RuntimeError("no licence")


@task(**FAST)
def shows_prepared() -> list[int]:
    return prepared


@task(run_in="process", retries=0, timeout=0.5)
def too_long(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


@task(run_in="process", retries=0)
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task(run_in="process", retries=0, name="tells")
def tells() -> None:
    print("from print")
    print("no end of line", end="")
    sys.stderr.write("from stderr\n")
    subprocess.run(["/bin/sh", "-c", "echo from a program; echo its error >&2"], check=True)
    log = logging.getLogger("shop.cart")
    log.info("bought %d", 3, extra={"price": 1.5, "odd": object, "task_id": "forged"})
    log.debug("hidden")
    try:
        {}["basket"]
    except KeyError:
        log.exception("lost")
    threading.Thread(target=log.warning, args=("from a thread",)).start()
    log.warning("bad %d", "text")


@task(**FAST)
def knows() -> dict:
    delivery = current_delivery()
    for done in range(1000):
        report_progress_sync(done, 1000, note="going", data={"n": done})
    return {"id": delivery.task_id, "attempt": delivery.attempt, "tier": delivery.tier_name}


@task(run_in="process", retries=0)
def reports_badly() -> None:
    report_progress_sync(-5)


@task(**FAST)
def floods(lines: int) -> int:
    for number in range(lines):
        print("x" * 100, number)
    return lines


class NoText:
    def __repr__(self) -> str:
        raise RuntimeError("detached")


@task(run_in="process", retries=0)
def logs_what_has_no_text() -> None:
    logging.getLogger("shop").warning("row %s", NoText(), extra={"row": NoText(), "deep": {"row": NoText()}})


left: list[threading.Event] = []


@task(**FAST)
def leaves_threads() -> str:
    """One with the context of this run, one with none; both write when the next run asks them to."""
    go = threading.Event()
    left.append(go)

    def late(how: str) -> None:
        go.wait(20)
        logging.getLogger("shop").warning("late, %s", how)
        with contextlib.suppress(LookupError):
            report_progress_sync(66, note=f"of the run before, {how}")

    threading.Thread(target=contextvars.copy_context().run, args=(late, "with its context")).start()
    threading.Thread(target=late, args=("with none",)).start()
    return current_delivery().task_id


@task(**FAST)
def follows() -> str:
    left.pop().set()
    time.sleep(0.3)
    logging.getLogger("shop").warning("its own")
    return current_delivery().task_id
