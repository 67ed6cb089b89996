"""One worker process: `python -m tests.poison.member URL NAMESPACE BACKEND LOG CONCURRENCY LEASE EXTRA`.

EXTRA is `listener` or `filter` (each raises), `quiet-listener` or `none`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings

import anyio

from streamq import RedisBroker, Worker
from tests.faults.vigil import leashed
from tests.poison.handlers import Log, RaisingFilter, quiet_listener, raising_listener, tasks

LISTENERS = {"listener": [raising_listener], "quiet-listener": [quiet_listener]}


async def main(url: str, namespace: str, path: str, concurrency: int, lease: float, extra: str) -> None:
    """Run a worker until SIGTERM."""
    log = Log(path)
    async with RedisBroker(url, namespace=namespace) as broker:
        worker = Worker(
            broker, tasks(log), concurrency=concurrency, visibility_timeout=lease, grace_period=3, unknown_wait=1.0,
            listeners=LISTENERS.get(extra, []),
        )  # fmt: skip
        async with anyio.create_task_group() as group:
            group.start_soon(_obey, worker)
            await group.start(worker.run)
            log.note("up", str(os.getpid()))
            while worker.state != "stopped":
                await anyio.sleep(0.02)
            group.cancel_scope.cancel()


async def _obey(worker: Worker) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            worker.stop()


if __name__ == "__main__":
    leashed()
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, filename=sys.argv[4] + ".log", format="%(asctime)s %(message)s")
    if sys.argv[7] == "filter":
        logging.getLogger("streamq").addFilter(RaisingFilter())
    anyio.run(
        main, sys.argv[1], sys.argv[2], sys.argv[4], int(sys.argv[5]), float(sys.argv[6]), sys.argv[7],
        backend=sys.argv[3],
    )  # fmt: skip
    os._exit(0)
