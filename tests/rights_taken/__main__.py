"""The long form: `python -m tests.rights_taken`: every right, both servers, both backends.

Exits with 1 if it finds something.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from functools import partial
from typing import Any

import anyio

from tests.rights_taken.play import Result, all_rights, play, quick_pauses
from tests.servers import REAL_KINDS, RealServer, available, fresh_server

BACKENDS = ("asyncio", "trio")


async def play_all(server: RealServer, rights: list[str], chosen: list[str], hold: float, at_once: int) -> list[Result]:
    """Play some rights, `at_once` of them side by side, each in a namespace of its own."""
    results: list[Result] = []
    limit = anyio.CapacityLimiter(at_once)

    async def one(right: str) -> None:
        async with limit:
            place = rights.index(right)
            result = await play(server, f"r{place}", place, hold=hold)
            results.append(result)
            print(result, flush=True)

    async with anyio.create_task_group() as group:
        for right in chosen:
            group.start_soon(one, right)
    return results


def main() -> int:
    """Take every right, and print what became of the tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--server", choices=REAL_KINDS, action="append")
    parser.add_argument("--right", action="append", help="take this one alone, as `streamq acl` prints it: +xadd")
    parser.add_argument("--hold", type=float, default=1.2, help="seconds for which a right is missing")
    parser.add_argument("--shipped", action="store_true", help="with the pauses as shipped: give --hold 15 or so")
    parser.add_argument("--at-once", type=int, default=4, help="how many rights are taken side by side")
    parser.add_argument("--log", action="store_true", help="show the log")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING if given.log else logging.CRITICAL)
    found = 0
    for kind in given.server or [kind for kind in REAL_KINDS if available(kind)]:
        for backend in given.backend or BACKENDS:
            start = time.monotonic()
            with fresh_server(kind) as server:
                rights = all_rights(server)
                chosen = given.right or rights
                whole: Any = partial(play_all, server, rights, chosen, given.hold, given.at_once)
                if given.shipped:
                    results = anyio.run(whole, backend=backend)
                else:
                    with quick_pauses():
                        results = anyio.run(whole, backend=backend)
            bad = [result for result in results if result.findings]
            found += len(bad)
            tasks = sum(result.accepted for result in results)
            print(f"{kind} {backend}: {len(results)} rights, {tasks} tasks, {len(bad)} rights found something, "
                  f"{time.monotonic() - start:.0f} s", flush=True)  # fmt: skip
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
