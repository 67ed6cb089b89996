"""The simulation by hand.

python -m tests.simulation --seed 12345 [--plant NAME]        one history, with its log, made small
python -m tests.simulation --histories 10000 [--from 1] [--jobs 2] [--plant NAME]
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.histories import Summary, play, play_seed, run_on, smallest
from tests.simulation.judge import History
from tests.simulation.plan import draw
from tests.simulation.plants import PLANTS, planted


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, help="run this history alone, and print its log")
    parser.add_argument("--quiet", action="store_true", help="with --seed: print no log")
    parser.add_argument("--no-shrinking", action="store_true", help="with --seed: run it as it is")
    parser.add_argument("--histories", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first seed (1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--plant", default="", choices=["", *PLANTS], help="a bug to plant")
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        return _one(asked)
    return _many(asked)


def _one(asked: argparse.Namespace) -> int:
    history = play_seed(asked.seed, asked.plant)
    if not history.ok and not asked.no_shrinking:
        plan = smallest(draw(asked.seed), asked.plant)
        with planted(asked.plant):
            print(f"# as drawn: {'; '.join(history.violations)}")
            history = play(plan)
    _show(history, log=not asked.quiet)
    return not history.ok


def _show(history: History, *, log: bool) -> None:
    plan = history.plan
    print(
        f"# seed {plan.seed}: lease {plan.lease:g} s, {plan.workers} workers of {plan.concurrency}, "
        f"{plan.tiers} tiers, {plan.producers} producers, {history.virtual:.1f} s, {history.commands} commands"
    )
    for part in (*plan.tasks, *plan.faults):
        print(f"#   {part}")
    if log:
        print(history.log.decode())
    for line in history.violations:
        print(f"VIOLATION {line}")


def _many(asked: argparse.Namespace) -> int:
    whole, begun = Summary(), time.monotonic()
    replay = f"python -m tests.simulation{f' --plant {asked.plant}' if asked.plant else ''} --seed"
    for some in run_on(asked.jobs, range(asked.first, asked.first + asked.histories), asked.plant):
        whole.merge(some)
        for seed, violations in some.failed:
            print(f"{replay} {seed}  # {' | '.join(violations)[:300]}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{whole.histories} histories", end="", file=sys.stderr)
    print(table(whole, time.monotonic() - begun, asked.jobs))
    return bool(whole.failed)


def table(whole: Summary, seconds: float, jobs: int) -> str:
    """Return the figures of many histories as text."""
    rate = whole.histories / max(seconds, 0.001) * 60
    rows = [
        ("histories", f"{whole.histories:,}"), ("tasks", f"{whole.tasks:,}"), ("effects", f"{whole.effects:,}"),
        ("commands", f"{whole.commands:,}"), ("virtual hours", f"{whole.virtual / 3600:,.1f}"),
        ("most commands in a second", f"{whole.busiest:,}"), ("seconds", f"{seconds:,.1f}"),
        ("histories per minute", f"{rate:,.0f} ({rate / jobs:,.0f} per process)"),
        ("faults", f"{whole.faults.total():,}"),
        *((f"  {name}", f"{count:,}") for name, count in sorted(whole.faults.items())),
        ("histories with violations", f"{len(whole.failed):,}"),
    ]  # fmt: skip
    return "\n".join(f"{name:<28}{value:>16}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
