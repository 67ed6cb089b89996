"""Print how many memory blocks one plain run allocates; a program, so that nothing comes before it.

PYTHONHASHSEED=0 python -m tests.benchmarks.weighing trio
"""

from __future__ import annotations

import sys
from contextlib import closing

from streamq.testing.clock import VirtualTime
from tests.benchmarks.counting import EACH, FIRST, Meter, Work, determined, plain, work_off
from tests.servers import RealServer

RUNS = 1000  # to be weighed: that is slow


def main(backend: str) -> None:
    """Weigh runs at concurrency 100, over a backlog."""
    virtual = VirtualTime(patience=0.02)

    async def weighed() -> None:
        work = Work(virtual, meter, each=EACH, first=FIRST, last=FIRST + RUNS)
        await work_off(meter, work, plain(work), concurrency=100)

    with closing(RealServer("valkey")) as server:
        meter = Meter(server)
        meter.weighs = True
        with determined(meter):
            virtual.run(weighed, backend=backend)
    assert meter.cost is not None
    print(meter.cost.blocks / meter.runs)


if __name__ == "__main__":
    main(sys.argv[1])
