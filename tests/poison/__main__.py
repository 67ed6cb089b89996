"""The long form: `python -m tests.poison --server redis --backend trio`. Exits with 1 if a kind of poison is over."""

from __future__ import annotations

import argparse
import sys

from tests.poison.kinds import KINDS
from tests.poison.measure import measure
from tests.servers import REAL_KINDS, available, fresh_server

BACKENDS = ("asyncio", "trio")
MOST = 2.0  # times the usual time


def main() -> int:
    """Measure each kind, and print how much longer good tasks took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--server", choices=REAL_KINDS, action="append")
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="this kind alone")
    parser.add_argument("--good", type=int, default=3000, help="how many good tasks")
    parser.add_argument("--pairs", type=int, default=3, help="how many runs without poison, and as many with it")
    given = parser.parse_args()
    over = 0
    for server_kind in given.server or [kind for kind in REAL_KINDS if available(kind)]:
        for backend in given.backend or BACKENDS:
            print(f"{server_kind} {backend}: kind, ratio, seconds without/with", flush=True)
            for name in given.kind or KINDS:
                with fresh_server(server_kind) as server:
                    result = measure(server, KINDS[name], backend, good=given.good, pairs=given.pairs)
                over += result.over(MOST, KINDS[name]) or bool(result.findings)
                print(result, flush=True)
    print(f"{over} over")
    return min(over, 1)


if __name__ == "__main__":
    sys.exit(main())
