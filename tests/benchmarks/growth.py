"""How the cost of one task grows with what is around it: what waits, what is delayed, tiers, slots, workers.

    python -m tests.benchmarks.growth --out docs/growth.json --plots docs/
    python -m tests.benchmarks.growth --axis tiers --axis workers --short

At each point of an axis, workers in processes of their own (under uvloop) work off the same tasks, and then find
nothing to do; the second is subtracted from the first, so that what it takes to start and to stop is not in it. The
server is started here and counts for itself. Counts hardly jitter, CPU does by some percent, and tasks/s depends on
whoever else uses the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import anyio

from tests.benchmarks.growth_plots import draw
from tests.benchmarks.growth_worker import send
from tests.servers import RealServer

_ROOT = Path(__file__).parent.parent.parent
_WITHIN = 300.0  # seconds that one worker may take
_TELLING = 0.2  # seconds: an end is noticed every 0.05 s
_FAR = 7 * 24 * 3600.0  # seconds: a delay that does not end here


@dataclass(frozen=True, slots=True)
class Point:
    """What is run at one place of an axis."""

    waiting: int = 50_000
    concurrency: int = 100
    tiers: int = 3
    delayed: int = 0  # due long after
    workers: int = 1
    promoted: bool = False  # what waits was delayed, and is due


@dataclass(frozen=True, slots=True)
class Cost:
    """Per task, except for what is in the worker."""

    worker_us: float
    redis_us: float
    commands: float
    reads: float
    tasks_per_s: float  # 0 if it was over too soon to tell
    memory: float  # bytes on the server while it waits
    resident: float  # MiB of the largest worker, after the run


@dataclass(frozen=True, slots=True)
class Count:
    """What a server has done so far."""

    commands: int
    reads: int
    cpu: float
    memory: int


AXES: dict[str, list[int]] = {
    "waiting": [1_000, 10_000, 100_000, 1_000_000],
    "concurrency": [10, 32, 100, 320, 1_000],
    "tiers": [1, 2, 4, 8, 16, 32, 64],
    "delayed": [0, 1_000, 10_000, 100_000, 1_000_000],
    "promoted": [0, 1_000, 10_000, 100_000, 1_000_000],
    "workers": [1, 2, 4, 8, 16],
}
SHORT: dict[str, list[int]] = {
    "waiting": [500, 4_000],
    "concurrency": [10, 1_000],
    "tiers": [1, 16],
    "delayed": [0, 2_000],
    "promoted": [0, 2_000],
    "workers": [1, 2],
}


def point_of(axis: str, value: int, *, short: bool) -> Point:
    """Return what is run at a value of an axis."""
    base = Point(waiting=4_000) if short else Point()
    if axis == "promoted":
        return replace(base, delayed=value, promoted=True)
    return replace(base, **{axis: value})


def count(server: RealServer) -> Count:
    """Return what a server has done so far: commands with those of scripts, without INFO."""
    text = server.command("INFO", "everything").decode()
    found = dict(re.findall(r"^([\w.|]+):([^\r]*)\r?$", text, re.MULTILINE))
    calls = [
        int(value.split("calls=")[1].split(",")[0])
        for name, value in found.items()
        if name.startswith("cmdstat_") and not name.startswith("cmdstat_info")
    ]
    return Count(
        commands=sum(calls),
        reads=int(found["total_reads_processed"]),
        cpu=float(found["used_cpu_user"]) + float(found["used_cpu_sys"]),
        memory=int(found["used_memory"]),
    )


def measure(server: RealServer, point: Point, rounds: int) -> tuple[Cost, float]:
    """Return what a task costs at a point, the median of some rounds; and the bytes of what is delayed far off."""
    server.flush()
    run = partial(anyio.run, backend_options={"use_uvloop": True})
    _work(server, point)  # the server forgot the scripts; what it makes once for each is not the tasks'
    before = count(server).memory
    run(partial(send, server.url, point.delayed, tiers=point.tiers, delay=_FAR))
    beside = (count(server).memory - before) / max(1, point.delayed)
    costs = []
    for _ in range(rounds):
        nothing = _work(server, point)
        before = count(server).memory
        delay = 0.001 if point.promoted else None
        run(partial(send, server.url, point.waiting, tiers=point.tiers, delay=delay))
        memory = (count(server).memory - before) / point.waiting
        costs.append(_difference(_work(server, point), nothing, point.waiting, memory))
    medians = {name: median(getattr(cost, name) for cost in costs) for name in Cost.__slots__}
    return Cost(**medians), beside


def _work(server: RealServer, point: Point) -> tuple[Count, Count, list[dict[str, float]]]:
    """Have the workers of a point work off what there is; return what the server had done before and after."""
    command = [sys.executable, "-m", "tests.benchmarks.growth_worker", server.url]
    command += ["--concurrency", str(point.concurrency), "--tiers", str(point.tiers)]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(point.workers)
        ]
        try:
            for worker in workers:
                worker.stdout.readline()  # it has started
            before = count(server)
            for worker in workers:
                worker.stdin.write("go\n")
                worker.stdin.flush()
            said = [json.loads(worker.communicate(timeout=_WITHIN)[0].splitlines()[-1]) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
    return before, count(server), said


def _difference(
    full: tuple[Count, Count, list[dict[str, float]]], nothing: tuple[Count, Count, list[dict[str, float]]], tasks: int,
    memory: float,
) -> Cost:  # fmt: skip
    """Return what each task costs more than none."""

    def more(name: str) -> float:
        (before, after, _), (none_before, none_after, _) = full, nothing
        spent = getattr(after, name) - getattr(before, name)
        return float(spent - (getattr(none_after, name) - getattr(none_before, name))) / tasks

    worked, idled = full[2], nothing[2]
    seconds = max(one["seconds"] for one in worked) - max(one["seconds"] for one in idled)
    return Cost(
        worker_us=(sum(one["cpu"] for one in worked) - sum(one["cpu"] for one in idled)) / tasks * 1e6,
        redis_us=more("cpu") * 1e6,
        commands=more("commands"),
        reads=more("reads"),
        tasks_per_s=tasks / seconds if seconds > _TELLING else 0.0,
        memory=memory,
        resident=max(one["resident"] for one in worked),
    )


def rounds_of(point: Point, *, short: bool) -> int:
    """Return how often a point is run: more often where a run is short."""
    if short:
        return 1
    return 9 if point.waiting <= 1_000 else 5 if point.waiting <= 10_000 else 3 if point.waiting <= 100_000 else 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", action="append", choices=tuple(AXES), help="which axes; all if none is given")
    parser.add_argument("--short", action="store_true", help="few tasks: does it work at all?")
    parser.add_argument("--server", default="valkey", choices=("valkey", "redis"))
    parser.add_argument("--out", type=Path, help="a file of JSON; what it says of other axes stays")
    parser.add_argument("--plots", type=Path, help="a folder for one SVG of each axis")
    given = parser.parse_args(arguments)
    axes = SHORT if given.short else AXES
    found: dict[str, list[dict[str, float]]] = {}
    if given.out is not None and given.out.exists():
        found = json.loads(given.out.read_text())
    with closing(RealServer(given.server)) as server:
        for axis in given.axis or axes:
            print(axis, flush=True)
            found[axis] = []
            for value in axes[axis]:
                point = point_of(axis, value, short=given.short)
                cost, beside = measure(server, point, rounds_of(point, short=given.short))
                figures = {name: float(f"{amount:.4g}") for name, amount in asdict(cost).items()}
                row = {"value": value, **figures, "delayed_memory": round(beside)}
                found[axis].append(row)
                print("  ".join(f"{name} {amount:g}" for name, amount in row.items()), flush=True)
    if given.out is not None:
        rows = {axis: ",\n".join(f"  {json.dumps(row)}" for row in rows) for axis, rows in found.items()}
        text = ",\n".join(f' "{axis}": [\n{lines}\n ]' for axis, lines in rows.items())
        given.out.write_text(f"{{\n{text}\n}}\n")
    if given.plots is not None:
        draw(found, given.plots)


if __name__ == "__main__":
    main()
