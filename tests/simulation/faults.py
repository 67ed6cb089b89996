"""What goes wrong in a simulated world, by the names of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from tests.simulation.dataset import OOM, READONLY

if TYPE_CHECKING:
    from tests.simulation.plan import Fault
    from tests.simulation.process import Process
    from tests.simulation.seam import Gate
    from tests.simulation.world import World

SLOWEST = 0.05  # of a lease that a chunk of bytes may take in a slow network


async def befall(world: World, fault: Fault) -> None:
    """Have one fault happen at its time, and undo it when its time is over."""
    await anyio.sleep(fault.at)
    match fault.kind:
        case "kill" | "freeze" | "stop":
            await _to_a_worker(world, fault)
        case (
            "wipe"
            | "restart-empty"
            | "forget-scripts"
            | "down"
            | "loading"
            | "pause"
            | "oom"
            | "readonly"
            | "kill-connections"
        ):
            await _to_the_server(world, fault)
        case _:
            await _to_the_network(world, fault)


# --- workers -----------------------------------------------------------------------------------------


async def _to_a_worker(world: World, fault: Fault) -> None:
    process = world.someone(fault.target)
    if process is None:
        return
    world.fault(fault.kind)
    if fault.kind == "freeze":
        process.suspend()
        with world.impaired(process, "frozen", "thawed"):
            await anyio.sleep(fault.lasts)
        process.resume()
        return
    if fault.kind == "kill":
        world.died(process)
    else:
        world.tell_to_stop(process)
    if fault.back_after is not None:
        await anyio.sleep(fault.back_after)
        if not world.closing:
            world.hire()


# --- the network ---------------------------------------------------------------------------------------


async def _to_the_network(world: World, fault: Fault) -> None:  # noqa: C901 - one case for each fault
    process = _anyone(world, fault.target)
    if process is None:
        return
    world.fault(fault.kind)
    conditions = world.conditions(process)
    match fault.kind:
        case "cut":
            for cable in process.cables[: 1 + fault.target % 3]:
                cable.cut()
        case "cut-sending":
            conditions.cut_sending = fault.after
        case "cut-replying":
            conditions.cut_replying = fault.after
        case "hold":
            await _held(world, process, fault.lasts, conditions.sending, conditions.replies)
        case "hold-sending":
            await _held(world, process, fault.lasts, conditions.sending)
        case "hold-replies":
            await _held(world, process, fault.lasts, conditions.replies)
        case "refuse":
            with world.impaired(process, "cut", "healed"):
                conditions.dialling.close()
                for cable in list(process.cables):
                    cable.cut()
                await anyio.sleep(fault.lasts)
                conditions.dialling.unclose()
        case "slow":
            with world.impaired(process, "cut", "healed"):
                conditions.latency = SLOWEST * world.plan.lease
                await anyio.sleep(fault.lasts)
                conditions.latency = 0.0
                await anyio.sleep(SLOWEST * world.plan.lease)
        case "split":
            conditions.split = 1 + fault.after % 60
            await anyio.sleep(fault.lasts)
            conditions.split = 0


async def _held(world: World, process: Process, lasts: float, *gates: Gate) -> None:
    """Have bytes wait on their way; then they arrive."""
    with world.impaired(process, "cut", "healed"):
        for gate in gates:
            gate.close()
        await anyio.sleep(lasts)
        for gate in gates:
            gate.unclose()
        if world.conditions(process).sending.open:
            for cable in list(process.cables):
                cable.let_go()
        # What was asked before this ends may have to wait for its reply to be given up.
        await anyio.sleep(world.plan.lease / 2)


def _anyone(world: World, target: int) -> Process | None:
    """Return a living worker, or a producer."""
    living = [process for process in world.processes if process.running]
    return living[target % len(living)] if living else None


# --- the server ------------------------------------------------------------------------------------------


async def _to_the_server(world: World, fault: Fault) -> None:
    world.fault(fault.kind)
    match fault.kind:
        case "wipe":
            world.server.execute("FLUSHALL")
            world.recorder.record("wiped")
        case "forget-scripts":
            world.server.execute("SCRIPT", "FLUSH")
        case "kill-connections":
            world.server.kill_connections()
        case "down" | "restart-empty":
            with _down(world):
                world.refusing += 1
                world.server.execute("SCRIPT", "FLUSH")
                world.server.kill_connections()
                if fault.kind == "restart-empty":
                    world.server.execute("FLUSHALL")
                    world.recorder.record("wiped")
                await anyio.sleep(fault.lasts)
                world.refusing -= 1
        case "loading":
            with _down(world):
                world.server.loading += 1
                await anyio.sleep(fault.lasts)
                world.server.loading -= 1
        case "oom" | "readonly":
            with _down(world):
                world.server.refuse_writes(OOM if fault.kind == "oom" else READONLY)
                await anyio.sleep(fault.lasts)
                world.server.refuse_writes("")
        case "pause":
            with _down(world):
                await _paused(world, fault.lasts)


async def _paused(world: World, lasts: float) -> None:
    """Have the server answer nobody for a while; what was sent to it waits."""
    held = [(world.conditions(process), process) for process in world.processes]
    for conditions, _ in held:
        conditions.sending.close()
    await anyio.sleep(lasts)
    for conditions, process in held:
        conditions.sending.unclose()
        if conditions.sending.open:
            for cable in list(process.cables):
                cable.let_go()


@contextmanager
def _down(world: World) -> Iterator[None]:
    """The server cannot be used; nested, the log says so once."""
    world.downs += 1
    if world.downs == 1:
        world.recorder.record("down")
    yield
    world.downs -= 1
    if not world.downs:
        world.recorder.record("back")
