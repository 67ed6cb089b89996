"""Those who send: one process, each task sent at its time, waited for and cancelled as the plan says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from streamq import RedisBroker, TaskRef
from streamq.errors import BrokerError, OutcomeUnknownError, ResultTimeoutError, TaskFailedError
from tests.simulation.determinism import sent_id
from tests.simulation.plan import TaskSpec

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

ATTEMPTS = 30  # a producer goes on for so long, then it gives a task up


async def produce(world: World, number: int, process: Process) -> None:
    """Send the tasks that are this producer's."""
    async with world.broker() as broker, anyio.create_task_group() as group:
        for spec in world.plan.tasks:
            if spec.producer == number:
                group.start_soon(_one, world, broker, process, spec)


async def _one(world: World, broker: RedisBroker, process: Process, spec: TaskSpec) -> None:
    await anyio.sleep(max(0.0, spec.at - world.virtual.elapsed()))
    handle = await _sent(world, broker, process, spec)
    if handle is None:
        return
    async with anyio.create_task_group() as group:
        if spec.result:
            group.start_soon(_awaited, world, handle, spec)
        if spec.cancel_after is not None:
            await anyio.sleep(spec.cancel_after)
            await _cancelled(world, process, handle, spec)


async def _sent(world: World, broker: RedisBroker, process: Process, spec: TaskSpec) -> Any:
    """Send a task; return its handle, None if it is not known to be there."""
    recorder = world.recorder_of(process)
    task_id = f"t{spec.number}" if spec.own_id else None
    reference = TaskRef(spec.kind).options(
        task_id=task_id, tier=broker.tiers[spec.tier].name, delay=spec.delay, retries=spec.retries,
        result_ttl=60.0 if spec.result else None,
    )  # fmt: skip
    details = {"tier": broker.tiers[spec.tier].name, "name": spec.kind, "retries": spec.retries}
    unknown = False
    if spec.delay is not None:
        details["due"] = round(world.virtual.elapsed() + spec.delay, 6)  # by the first attempt, if that was carried out
    for attempt in range(ATTEMPTS):
        try:
            handle = None
            with anyio.CancelScope() as scope:
                if spec.patience is not None and not attempt:
                    world.soon(_cancel_after, spec.patience, scope)
                handle = await broker.enqueue(reference, spec.number)
            if handle is None:
                raise OutcomeUnknownError("its sender was cancelled", task_id=task_id)  # noqa: TRY301 - as if it were so
        except OutcomeUnknownError:
            if task_id is None:
                recorder.record("unknown", sent_id.get(), **details)
                return None
            if not unknown:
                recorder.record("unknown", task_id, **details)
            unknown = True
        except BrokerError as error:
            recorder.record("refused", task_id or "", error=str(error), **details)
        else:
            recorder.record("accepted", handle.task_id, **details)
            return handle
        await anyio.sleep(world.plan.lease / 10)
    return None


async def _cancel_after(turns: int, scope: anyio.CancelScope) -> None:
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def _cancelled(world: World, process: Process, handle: Any, spec: TaskSpec) -> None:
    store = handle._store
    try:
        # As Handle.cancel, which does not say whether the task was withdrawn or its worker told.
        found = await store.cancel(handle.tier, handle.task_id, handle.entry_id)
    except BrokerError:
        world.recorder_of(process).record("cancel-unknown", handle.task_id)
        return
    if found in ("queued", "delayed"):
        world.recorder_of(process).record("withdrawn", handle.task_id)
    else:
        world.recorder_of(process).record("told", handle.task_id, found=found)


async def _awaited(world: World, handle: Any, spec: TaskSpec) -> None:
    """Wait for the result; if one comes, it is this task's."""
    try:
        result = await handle.result(timeout=world.plan.lease * 5)
    except (ResultTimeoutError, TaskFailedError, BrokerError):
        return
    if result != spec.number:
        world.problem(f"the result of task {spec.number} is {result!r}")
