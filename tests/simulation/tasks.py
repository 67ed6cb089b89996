"""What the tasks of a simulated world do. Each records its effect right before it returns."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import anyio
import trio

from streamq import Reject, RetryLater, current_delivery, task
from streamq.tasks.retry_policy import Backoff
from tests.simulation.plan import KINDS
from tests.simulation.process import Process, current

if TYPE_CHECKING:
    from tests.simulation.plan import TaskSpec
    from tests.simulation.world import World


class Failed(Exception):  # noqa: N818 - it is what the task does, and no error of the simulation
    """A task fails, as planned."""


@cache
def tasks_for(lease: float) -> list[Any]:
    """Return the tasks that the workers of a world know: one for each kind."""
    backoff = Backoff(base=lease / 20, cap=lease / 2)
    found = []
    for kind in KINDS:

        async def handler(number: int) -> int:
            process = current.get()
            assert process is not None
            await _act(process.world, process, process.world.specs[number])
            return number

        options: dict[str, Any] = {"timeout": lease / 4} if kind == "timed" else {}
        found.append(task(name=kind, backoff=backoff, **options)(handler))
    return found


async def _act(world: World, process: Process, spec: TaskSpec) -> None:
    delivery = current_delivery()
    if spec.duration and spec.kind != "blocking":
        await anyio.sleep(spec.duration)
    match spec.kind:
        case "failing":
            raise Failed
        case "flaky" if delivery.attempt <= min(spec.failures, spec.retries):
            raise Failed
        case "later" if delivery.starts <= spec.failures:
            raise RetryLater(after=spec.duration + world.plan.lease / 10)
        case "rejecting":
            raise Reject("as planned")
        case "deadly":
            await _die(world, process)
        case "deadly-once" if not delivery.crashed_workers:
            await _die(world, process)
        case "blocking":
            await _block(world, process, spec.duration)
        case _:
            pass
    world.recorder_of(process).record("effect", delivery.task_id)


async def _die(world: World, process: Process) -> None:
    """Take the worker down; somebody starts another one."""
    if process.running:
        world.fault("deadly task")
        world.died(process)
        world.soon(_replace, world)
    await trio.sleep_forever()


async def _replace(world: World) -> None:
    await anyio.sleep(world.plan.lease / 10)
    world.hire()


async def _block(world: World, process: Process, duration: float) -> None:
    """Block the event loop of this worker."""
    if not process.running or process.suspended:
        return
    world.fault("blocked loop")
    process.suspend()
    world.soon(_blocked, world, process, duration)
    await trio.lowlevel.checkpoint()


async def _blocked(world: World, process: Process, duration: float) -> None:
    with world.impaired(process, "blocked", "unblocked"):
        await anyio.sleep(duration)
    process.resume()
