"""What a member does: run one worker until it is told to stop. `member` is how it is started."""

from __future__ import annotations

import os
import signal

import anyio

from streamq import RedisBroker, Worker
from streamq.consumer import unknown_tasks
from streamq.errors import BrokerError
from tests.faults import handlers
from tests.faults.member import Setting

_AGAIN = 0.1  # seconds after which a worker that found no server starts again


def run(setting: Setting) -> None:
    """Be a worker: SIGTERM drains, a second one hurries."""
    unknown_tasks.FIRST_PAUSE = setting.unknown_pause  # two seconds are long for a deploy that takes ten
    anyio.run(_main, setting, backend=setting.backend)
    os._exit(0)  # the worker has left: what the interpreter does on a busy machine at its end takes seconds


async def _main(setting: Setting) -> None:
    timeouts = {"connect_timeout": setting.connect_timeout, "reply_timeout": setting.reply_timeout}
    async with RedisBroker(setting.url, **timeouts) as broker:
        while True:
            worker = _worker(broker, setting)
            try:
                await _serve(worker)
            except BrokerError:  # no server at the start: a supervisor would start it again
                if worker.name in handlers.UP:
                    raise
                await anyio.sleep(_AGAIN)
            else:
                return


def _worker(broker: RedisBroker, setting: Setting) -> Worker:
    return Worker(
        broker, handlers.VERSIONS[setting.version], name=os.environ[handlers.WHO], concurrency=setting.concurrency,
        visibility_timeout=setting.lease, grace_period=setting.grace, max_prefetch=setting.prefetch,
        max_crashes=setting.max_crashes, unknown_wait=setting.unknown_wait, lifespan=handlers.lifespan,
        listeners=[handlers.recorder()],
    )  # fmt: skip


async def _serve(worker: Worker) -> None:
    failed: BrokerError | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_obey, worker)
        try:
            await worker.run()
        except BrokerError as error:  # raised below: a task group would wrap it
            failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _obey(worker: Worker) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            worker.stop()
