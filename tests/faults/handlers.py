"""The tasks that members run, and how a worker process writes down what it does.

`streamq worker tests.faults.handlers` runs them too: the module has a lifespan, which puts the
recorder among the worker's listeners. Where to write, and under which name, is in the environment.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from streamq import Backoff, Worker, current_delivery, task
from streamq.testing.recorder import Recorder
from streamq.worker import State
from tests.faults import vigil

LOG = "STREAMQ_FAULTS_LOG"
WHO = "STREAMQ_FAULTS_WHO"
WRONG = "STREAMQ_FAULTS_WRONG"  # "no-effect": every fiftieth run is acknowledged without its effect

_LATE = 4.0  # seconds for a process to end after its worker
_LOOK = 0.01  # seconds between two looks at the worker's state
_runs = 0
UP: set[str] = set()  # names of the workers of this process that read


class FlakyError(Exception):
    """What a flaky handler raises."""


@functools.cache
def recorder() -> Recorder:
    """Return this process's recorder."""
    return Recorder(Path(os.environ[LOG]), os.environ[WHO])


def effect() -> None:
    """Record the effect of the run in progress."""
    global _runs  # noqa: PLW0603 - the cheapest way to count
    _runs += 1
    if _runs % 50 == 0 and os.environ.get(WRONG) == "no-effect":
        return
    recorder().record("effect", current_delivery().task_id)


# --- well-behaved -------------------------------------------------------------------------------


@task(retries=50, backoff=Backoff(base=0.05, cap=0.5))
async def noop() -> None:
    """Do nothing but the effect."""
    effect()


@task(retries=50, backoff=Backoff(base=0.05, cap=0.5))
async def work(seconds: float) -> None:
    """Take a while, then do it."""
    await anyio.sleep(seconds)
    effect()


@task(retries=50, backoff=Backoff(base=0.05, cap=0.5))
def threaded(seconds: float) -> None:
    """Do it in a thread."""
    time.sleep(seconds)
    effect()


@task(retries=50, backoff=Backoff(base=0.05, cap=0.5), run_in="process")
def crunch(seconds: float, ident: str) -> None:
    """Do it in a process of its own, which knows of no delivery: `ident` is the task's id."""
    time.sleep(seconds)
    recorder().record("effect", ident)


# --- failing ------------------------------------------------------------------------------------


@task(retries=10, backoff=Backoff(base=0.05, cap=0.5))
async def flaky(fails: int, seconds: float = 0.0) -> None:
    """Fail the first attempts, then do it."""
    await anyio.sleep(seconds)
    if current_delivery().attempt <= fails:
        raise FlakyError(f"attempt {current_delivery().attempt}")
    effect()


@task(retries=2, backoff=Backoff(base=0.02))
async def hopeless() -> None:
    """Fail every time."""
    await anyio.lowlevel.checkpoint()
    raise FlakyError("always")


@task(retries=10, backoff=Backoff(base=0.05, cap=0.5))
async def late_failure(seconds: float) -> None:
    """Fail the first run, after a while; whoever runs it again does it."""
    first = current_delivery().starts == 1
    await anyio.sleep(seconds if first else 0)
    if first:
        raise FlakyError("late")
    effect()


# --- harmful ------------------------------------------------------------------------------------


@task(retries=0)
async def effect_then_die(seconds: float) -> None:
    """On the first start: do it, then take the worker down before it can say so."""
    first = current_delivery().starts == 1
    await anyio.sleep(seconds)  # until what the worker did before is acknowledged
    effect()
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
        await anyio.sleep_forever()


@task(retries=0)
async def deadly(seconds: float = 0.0) -> None:
    """Take the worker down, every time."""
    await anyio.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
    await anyio.sleep_forever()


@task(retries=10)
async def stuck(seconds: float) -> None:
    """Block the event loop."""
    recorder().record("blocked")
    time.sleep(seconds)  # noqa: ASYNC251 - that is the fault
    recorder().record("unblocked")
    effect()


# --- versions of the app ------------------------------------------------------------------------


@task(retries=10)
async def old_only() -> None:
    """Do what only the old version of the app knows."""
    effect()


@task(retries=10)
async def new_only() -> None:
    """Do what only the new version of the app knows."""
    effect()


COMMON = [noop, work, threaded, crunch, flaky, hopeless, late_failure, effect_then_die, deadly, stuck]
VERSIONS = {"all": [*COMMON, old_only, new_only], "old": [*COMMON, old_only], "new": [*COMMON, new_only]}


# --- the worker ---------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(worker: Worker) -> AsyncIterator[None]:
    """Listen to the worker, and write down when it reads, drains and has stopped."""
    vigil.leashed()
    vigil.pulse(recorder())
    if recorder() not in worker._listeners:
        worker._listeners = (*worker._listeners, recorder())
    failed: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_follow, worker)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
            failed = error
        group.cancel_scope.cancel()
    recorder().record("stopped")
    faulthandler.dump_traceback_later(_LATE)  # a process that does not end says where it hangs
    if failed is not None:
        raise failed


async def _follow(worker: Worker) -> None:
    for state, what in ((State.RUNNING, "up"), (State.DRAINING, "stopping")):
        while worker.state is not state:
            if worker.state is State.DRAINING:  # it ran for less than a look
                break
            await anyio.sleep(_LOOK)
        recorder().record(what)
        UP.add(worker.name)
