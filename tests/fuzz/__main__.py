"""The long form: `python -m tests.fuzz --minutes 10 --backend trio --server redis`.

Exits with 1 if it finds something.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from functools import partial
from random import SystemRandom

import anyio

from tests.fuzz.attacks import ATTACKS
from tests.fuzz.plants import PLANTS, planted
from tests.fuzz.play import play
from tests.servers import InProcess, fresh_server


def main() -> int:
    """Play rounds until the time is over. Returns how many of them found something, 1 at most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to play")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    parser.add_argument("--server", choices=("redis", "valkey", "memory"), default="valkey")
    parser.add_argument("--seed", type=int, help="play the rounds of this seed again; without it, a random one")
    parser.add_argument("--round", type=int, help="play this round alone")
    parser.add_argument("--attack", action="append", choices=sorted(ATTACKS), help="choose from these alone")
    parser.add_argument("--plant", choices=sorted(PLANTS), default="", help="have an old fault in streamq again")
    given = parser.parse_args()
    seed = SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    found = played = good = 0
    server = InProcess() if given.server == "memory" else None
    until = time.monotonic() + 60 * given.minutes
    with contextlib.closing(server) if server else fresh_server(given.server) as running, planted(given.plant):
        for number in (given.round,) if given.round is not None else range(1_000_000):
            if time.monotonic() > until:
                break
            result = anyio.run(partial(play, running, seed, number, given.attack or ()), backend=given.backend)
            played, good = played + 1, good + result.good
            if result.findings:
                found += 1
                print(result, flush=True)
    print(f"{played} rounds, {good} good tasks, {found} rounds found something (seed {seed})")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
