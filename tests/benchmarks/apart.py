"""The cost of one no-op task taken apart: where the microseconds go, and which commands Redis carries out.

    python -m tests.benchmarks.apart                                       one run of a worker over a backlog
    python -m tests.benchmarks.apart --what kept                           the same, and each result is kept
    python -m tests.benchmarks.apart --what one --tasks 50000              one enqueue, awaited by one caller
    python -m tests.benchmarks.apart --what callers                        one enqueue, by 100 callers at once
    python -m tests.benchmarks.apart --what many                           one of 1,000 in an enqueue_many

Two runs, each in a process of its own: one says what a task costs, the other is sampled by py-spy
(`pip install py-spy`) and says how that is shared out. A sample belongs to the innermost function of this
package in it; where there is none, to the event loop. What C does for a function, parsing or `send` say, is
that function's. Two runs of this differ by some tenths of a microsecond in each part.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import anyio

import streamq
from streamq import RedisBroker, Task, Worker, task
from tests.servers import RealServer, available

_BATCH = 1000
_CALLERS = 100
_RATE = 400  # samples a second; each stops the process for a moment
_FRAME = re.compile(r"(?P<function>[^\s;]+) \((?P<file>.+?):\d+\)")
_OURS = f"{Path(streamq.__file__).parent}/"
_RUNNING = "anyio/_core/_eventloop.py"  # is in every stack of a program that has begun

# The first that fits: a module, or a module and a part of the function's name.
PARTS = {
    "read: receive, parse, wake": (
        "client/shared_connection.py:replied", "client/sockets.py:readable", "client/sockets.py:follow",
        "client/connection.py", "client/readable_callback.py", "client/blocking_connection.py",
    ),
    "write: pack, send": ("client/",),
    "make deliveries": ("read_commands.py:deliveries", "delivery.py:__init__"),
    "decode": ("delivery.py",),
    "check the call, choose its tier": ("arguments.py", "tasks/", "tiers.py:pick_tier"),
    "buffer: what starts, what to read": ("prefetch_buffer.py", "tiers.py"),
    "runner": ("runner_pool.py",),
    "chain, and what it is put together from": ("consumer/handler.py", "middleware/", "context.py", "threads.py"),
    "settle": ("settling.py", "acknowledgements.py", "outcome.py", "side_effects.py"),
    "count": ("counters.py", "counting.py"),
    "round trips": ("consumer/consumer.py", "round_trip.py"),
    "queue's commands": (
        "store.py", "_commands.py", "side_effect_arguments.py", "scripts/", "enqueue_requests.py", "keys.py",
    ),
    "make messages, ids included": ("sending.py", "message.py"),
    "enqueue itself, and handles": ("broker.py", "results.py"),
    "the rest of streamq": ("",),
}  # fmt: skip


@task
async def noop() -> None:
    """Do nothing."""


@task(result_ttl=3600)
async def answer() -> None:
    """Do nothing, and have that kept."""


# --- the process that is measured --------------------------------------------------------------------


async def run(broker: RedisBroker, _: int) -> None:
    """Run all that waits, with its results kept or without."""
    await Worker(broker, [noop, answer], concurrency=100, burst=True).run()


async def one(broker: RedisBroker, tasks: int) -> None:
    """Enqueue one after the other."""
    for _ in range(tasks):
        await broker.enqueue(noop)


async def callers(broker: RedisBroker, tasks: int) -> None:
    """Enqueue by many callers, each one after the other."""
    async with anyio.create_task_group() as group:
        for _ in range(_CALLERS):
            group.start_soon(one, broker, tasks // _CALLERS)


async def many(broker: RedisBroker, tasks: int, wanted: Task[[], None] = noop) -> None:
    """Enqueue by thousands."""
    for _ in range(tasks // _BATCH):
        await broker.enqueue_many([wanted.call() for _ in range(_BATCH)])


WHAT = {
    "run": run, "kept": run, "one": one, "callers": callers, "many": many, "answers": partial(many, wanted=answer)
}  # fmt: skip
BACKLOG = {"run": "many", "kept": "answers"}  # what waits before it is measured


async def act(url: str, what: str, tasks: int) -> float:
    """Do it; return the CPU seconds that it took."""
    async with RedisBroker(url) as broker:
        before = _cpu()
        await WHAT[what](broker, tasks)
        return _cpu() - before


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the one that measures ---------------------------------------------------------------------------


def part_of(stack: str) -> str | None:
    """Return the part that a sample belongs to; None for imports and other threads."""
    if _RUNNING not in stack or "importlib" in stack:
        return None
    for found in reversed(list(_FRAME.finditer(stack))):
        file, function = found["file"], found["function"]
        if file == __file__ and (function in WHAT or function in {"noop", "answer"}):
            return "handler" if function in {"noop", "answer"} else "caller"
        if file.startswith(_OURS):
            name = f"{file.removeprefix(_OURS)}:{function}"
            return next(part for part, places in PARTS.items() if any(_fits(name, place) for place in places))
    return "event loop"


def _fits(name: str, place: str) -> bool:
    file, _, function = place.partition(":")
    return file in name.partition(":")[0] and function in name.partition(":")[2]


def commands(server: RealServer) -> dict[str, tuple[int, int]]:
    """Return the calls of each command, and the microseconds of all of them together."""
    text = server.command("INFO", "commandstats").decode()
    found = re.findall(r"^cmdstat_(\S+?):calls=(\d+),usec=(\d+)", text, re.MULTILINE)
    return {name: (int(calls), int(usec)) for name, calls, usec in found if name != "info"}


def main() -> None:
    """Print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="run", choices=WHAT)
    parser.add_argument("--tasks", type=int, default=400_000)
    parser.add_argument("--backend", default="uvloop", choices=("asyncio", "uvloop", "trio"))
    parser.add_argument("--act", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.act:
        backend = "trio" if given.backend == "trio" else "asyncio"
        options = {"use_uvloop": True} if given.backend == "uvloop" else {}
        act_there = partial(act, given.act, given.what, given.tasks)
        print(anyio.run(act_there, backend=backend, backend_options=options))
        return
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if spy is None:
        parser.error("this needs py-spy: pip install py-spy")
    with (
        closing(RealServer("redis" if available("redis") else "valkey")) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        command = [sys.executable, "-m", "tests.benchmarks.apart", "--what", given.what, "--backend", given.backend]
        command += ["--tasks", str(given.tasks), "--act", server.url]
        _prepare(server, given)
        before = commands(server)
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        after = commands(server)
        _prepare(server, given)
        raw = Path(folder) / "samples"
        spying = [spy, "record", "--rate", str(_RATE), "--format", "raw", "--full-filenames", "--output", raw, "--"]
        subprocess.run([*spying, *command], check=True, capture_output=True, timeout=300)
        samples = raw.read_text()
    print(_shared_out(samples, float(said) / given.tasks * 1e6))
    print(_commands(before, after, given.tasks))


def _prepare(server: RealServer, given: argparse.Namespace) -> None:
    """Have an empty server, or one with what a worker is to run."""
    server.flush()
    if given.what in BACKLOG:
        anyio.run(partial(act, server.url, BACKLOG[given.what], given.tasks))


def _shared_out(samples: str, cost: float) -> str:
    """Return the table of the process: `cost` (us) of a task by its parts."""
    counts = Counter[str]()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        if (part := part_of(stack)) is not None:
            counts[part] += int(count)
    rows = [f"| {part} | {count / counts.total() * cost:.2f} |" for part, count in counts.most_common()]
    return "\n".join(["| part | us/task |", "|---|---|", *rows, f"| all of it | {cost:.2f} |", ""])


def _commands(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], tasks: int) -> str:
    """Return the table of the server: what is called at least once for a thousand tasks."""
    rows = []
    for name, (calls, usec) in sorted(after.items(), key=lambda item: -item[1][0]):
        called, took = (now - then for now, then in zip((calls, usec), before.get(name, (0, 0)), strict=True))
        if called >= tasks / 1000:
            rows.append(f"| {name.upper().replace('|', ' ')} | {called / tasks:.4f} | {took / tasks:.2f} |")
    return "\n".join(["| command | calls/task | us/task, those in it included |", "|---|---|---|", *rows])


if __name__ == "__main__":
    main()
