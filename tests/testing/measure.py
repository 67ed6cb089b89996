"""How long the checker takes, and how much memory: `python -m tests.testing.measure --tasks 1000000`.

Writes a log of that many tasks over some workers, a few of them retried, taken over or cut off, and
then reads and checks it in another process, whose largest size is printed.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import orjson

from streamq.testing import FinalState, Limits, check, read, summary

WORKERS = 20
HELD = 500  # tasks that are in hand at any time


def lines(tasks, backlog):
    """Yield the lines of a run: `backlog` tasks are accepted before the first starts."""
    uniform = random.Random(1)
    now = 1000.0
    waiting, held = deque(), deque()
    accepted = 0

    def line(what, task, who, **details):
        nonlocal now
        now += 0.00002
        return orjson.dumps(
            {"at": round(now, 6), "who": who, "what": what, "task": task, **details}, option=orjson.OPT_APPEND_NEWLINE
        )

    while accepted < tasks or waiting or held:
        while accepted < tasks and len(waiting) < backlog:
            task = f"{uniform.getrandbits(80):020x}"[-16:]
            yield line(
                "accepted", task, "p1", tier=("critical", "standard", "bulk")[accepted % 3], name="work", retries=3
            )
            waiting.append((task, f"{1795417419354 + accepted}-0", 1))
            accepted += 1
        while waiting and len(held) < HELD:
            task, entry, attempt = waiting.popleft()
            who = f"host-4711-{uniform.randrange(WORKERS):06x}"
            yield line("start", task, who, entry=entry, **({} if attempt == 1 else {"attempt": attempt}))
            held.append((task, entry, attempt, who))
        task, entry, attempt, who = held.popleft()
        if attempt < 3 and uniform.random() < 0.05:
            yield line("settled", task, who, entry=entry, outcome="retry", attempt=attempt, delay=0.05)
            waiting.append((task, entry[:-1] + str(attempt), attempt + 1))
        else:
            yield line("effect", task, who)
            yield line("settled", task, who, entry=entry, outcome="ack")


def largest():
    """Return how large this process has been, in MB. Not by getrusage: there it begins with its parent's size."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024


def measured(path):
    """Read and check a log in this process, and print what it took."""
    before = largest()
    started, began = time.process_time(), time.perf_counter()
    report = check(read(path), FinalState(), Limits(lease=30.0))
    seconds, elapsed = time.process_time() - started, time.perf_counter() - began
    peak = largest()
    print(summary(report))
    size = Path(path).stat().st_size
    print(f"{size / 1e6:.0f} MB, {report.records} records: {seconds:.1f} s of processor time, {elapsed:.1f} s")
    print(f"RSS {before} MB before, {peak} MB at most")


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--backlog", type=int, default=1_000_000)
    options.add_argument("--log", help="check this one")
    chosen = options.parse_args()
    if chosen.log:
        measured(chosen.log)
        return
    with tempfile.NamedTemporaryFile(prefix="streamq-measure-", suffix=".log") as file:
        for line in lines(chosen.tasks, chosen.backlog):
            file.write(line)
        file.flush()
        subprocess.run([sys.executable, "-m", "tests.testing.measure", "--log", file.name], check=True)


if __name__ == "__main__":
    main()
