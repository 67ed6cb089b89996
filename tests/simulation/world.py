"""One history: processes, what they do, and what goes wrong, from a plan to a log.

Workers are real `Worker`s on brokers of their own, producers real `RedisBroker`s; between them
and the server lie the cables. All time is virtual. When the plan is done the world is left in
peace and must work off all it has; then every worker is told to stop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from typing import Any

import anyio
import trio

from streamq import RedisBroker, Worker
from streamq.consumer.consumer_name import name_given
from streamq.embedded.memory_stream import MemoryStream
from streamq.errors import BrokerError
from streamq.testing import FinalState, Recorder
from streamq.testing.clock import VirtualTime
from streamq.testing.read_state import final_state
from streamq.wire.keys import RELEASED_CONSUMER
from streamq.wire.tiers import DEFAULT_TIERS
from tests.simulation.faults import befall
from tests.simulation.plan import Plan
from tests.simulation.process import Process, current
from tests.simulation.producer import produce
from tests.simulation.seam import Cable, Conditions
from tests.simulation.server import NAME, Looker, SimulatedServer
from tests.simulation.tasks import tasks_for

PATIENCE = 40.0  # leases after the last fault within which everything must be worked off
GROUP = "workers"
GRACE = 0.5  # of a lease that a worker has to stop


class World:
    """The stage of one history; `run` plays it. What cannot be said in the log is in `problems`."""

    def __init__(self, plan: Plan, server: SimulatedServer) -> None:
        self.plan = plan
        self.specs = {spec.number: spec for spec in plan.tasks}
        self.server = server
        self.virtual = VirtualTime()
        self.log: list[bytes] = []
        self.problems: list[str] = []
        self.final = FinalState()
        self.workers: list[Process] = []
        self.processes: list[Process] = []
        self.refusing = 0
        self.downs = 0
        self.nursery: trio.Nursery
        self._made = 0
        self.closing = False  # told to stop, all of them: nobody is hired any more
        self._conditions: dict[Process, Conditions] = {}
        self._running: dict[Process, Worker] = {}
        self._recorders: dict[Process, Recorder] = {}
        self.recorder = Recorder(self.log.append, "server", clock=self.virtual.elapsed)
        self.faults: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<World {self.plan.seed} at {self.virtual.elapsed():.3f} s>"

    # --- what others ask for ---------------------------------------------------------------------

    def conditions(self, process: Process) -> Conditions:
        """Return what holds for the connections of a process."""
        return self._conditions[process]

    def cable(self, stream: MemoryStream, process: Process, number: int) -> Cable:
        """Return the client's end of a new connection."""
        return Cable(stream, process, self._conditions[process], random.Random(self.plan.seed * 1000 + number))

    def recorder_of(self, process: Process) -> Recorder:
        """Return the recorder of a process; what a dead one says is not written."""
        return self._recorders[process]

    def fault(self, name: str) -> None:
        """Count a fault that was injected."""
        self.faults[name] = self.faults.get(name, 0) + 1
        self.recorder.record("fault", name=name)

    def problem(self, text: str) -> None:
        """Note what no log can show."""
        self.problems.append(f"{self.virtual.elapsed():.3f} s: {text}")

    @contextmanager
    def impaired(self, process: Process, word: str, over: str) -> Iterator[None]:
        """Say in the log that something keeps a process from its leases; of several at once, once."""
        impairments = process.impairments
        impairments[word] += 1
        if impairments[word] == 1:
            self.recorder.record_of(process.name, word)
        yield
        impairments[word] -= 1
        if not impairments[word] and process.running:
            self.recorder.record_of(process.name, over)

    def someone(self, target: int) -> Process | None:
        """Return a living worker."""
        living = [process for process in self.workers if process.running]
        return living[target % len(living)] if living else None

    # --- processes ---------------------------------------------------------------------------------

    def begin(self, name: str, main: Callable[[Process], Any]) -> Process:
        """Start a process."""
        process = Process(name, self)
        self._conditions[process] = Conditions()
        self._recorders[process] = Recorder(partial(self._write, process), name, clock=self.virtual.elapsed)
        self.processes.append(process)
        self.soon(self._live, process, main)
        return process

    def soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Start a task of the world itself: it belongs to no process, whoever asks for it."""
        Context().run(self.nursery.start_soon, function, *args)

    def died(self, process: Process) -> None:
        """A worker is killed, now."""
        if process.running:
            self.recorder.record_of(process.name, "died")
            process.kill()

    def _write(self, process: Process, line: bytes) -> None:
        if not process.dead:
            self.log.append(line)

    async def _live(self, process: Process, main: Callable[[Process], Any]) -> None:
        token = current.set(process)
        try:
            with process.scope:
                await main(process)
        except Exception as error:  # noqa: BLE001 - whatever it is, the world has to hear of it
            if not process.dead:
                self.problem(f"{process.name} raised {error!r}")
        finally:
            current.reset(token)
            process.ended.set()
            process.suspended = 0

    def broker(self) -> RedisBroker:
        """Return a broker of this world, to be opened in a process."""
        lease = self.plan.lease
        return RedisBroker(
            f"memory://{NAME}", tiers=DEFAULT_TIERS[-self.plan.tiers :], clock=self.virtual.clock,
            connect_timeout=lease / 6, reply_timeout=lease / 2,
        )  # fmt: skip

    def hire(self) -> Process:
        """Start a worker."""
        self._made += 1
        process = self.begin(f"w{self._made}", self._work)
        self.workers.append(process)
        return process

    async def _work(self, process: Process) -> None:
        """Be a worker process, under a supervisor that starts it again while there is no server."""
        recorder = self.recorder_of(process)
        async with self.broker() as broker:
            while True:
                self._running[process] = worker = self._worker(broker, process, recorder)
                try:
                    await worker.run(task_status=_Up(recorder))
                    break
                except BrokerError:  # at the start alone
                    if process.told:
                        break
                    await anyio.sleep(self.plan.lease / 10)
        recorder.record("exit", code=0)

    def _worker(self, broker: RedisBroker, process: Process, recorder: Recorder) -> Worker:
        lease = self.plan.lease
        return Worker(
            broker, tasks_for(self.plan.lease), concurrency=self.plan.concurrency, visibility_timeout=lease,
            grace_period=lease * GRACE, listeners=[recorder], name=process.name,
            seed=self.plan.seed * 100 + len(self.processes),
        )  # fmt: skip

    def tell_to_stop(self, process: Process) -> None:
        """Tell a worker to stop, as SIGTERM does."""
        worker = self._running.get(process)
        if worker is None:
            self.died(process)  # it is not up yet: nothing handles the signal
            return
        self.recorder.record_of(process.name, "stop")
        process.told = True
        worker.stop()

    # --- the course ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Play the history."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            for _ in range(self.plan.workers):
                self.hire()
            producers = [self.begin(f"p{n}", partial(produce, self, n)) for n in range(self.plan.producers)]
            for fault in self.plan.faults:
                nursery.start_soon(befall, self, fault)
            await anyio.sleep(self.plan.calm + 0.001)
            await self._sent(producers)
            await self._peace()
            await self._stopped()
            self._judge_connections()
            self.final = await final_state(Looker(self.server, self.broker()))
            for process in self.workers:
                process.kill()
            nursery.cancel_scope.cancel()

    async def _sent(self, producers: list[Process]) -> None:
        """Wait until the producers have sent all they have; each call must end, whatever becomes of it."""
        with trio.move_on_after(PATIENCE * self.plan.lease) as scope:
            for producer in producers:
                await producer.ended.wait()
        if scope.cancelled_caught:
            left = [producer for producer in producers if not producer.ended.is_set()]
            self.problem(f"producers have not ended within {PATIENCE} leases: {left}")
            for producer in left:
                producer.kill()

    async def _peace(self) -> None:
        """Leave the world alone until it has worked off all it has."""
        keys = self._keys()
        depth, strangers = 0, set[str]()
        for conditions in self._conditions.values():  # what was to be cut, and was not
            conditions.cut_sending = conditions.cut_replying = None
        await anyio.sleep(self.plan.lease / 2)  # who was cut off comes back
        until = self.virtual.elapsed() + PATIENCE * self.plan.lease
        while self.virtual.elapsed() < until:
            if not any(process.running for process in self.workers):
                self.hire()
            depth, strangers = self.server.depth(keys), self._strangers(keys)
            if not depth and not strangers:
                return
            await anyio.sleep(self.plan.lease / 5)
        self.problem(f"after {PATIENCE} leases of peace there are {depth} tasks, and consumers {strangers}")

    def _strangers(self, keys: Any) -> set[str]:
        """Return the consumers that are known to the server and not alive."""
        living = {process.name for process in self.workers if process.running} | {RELEASED_CONSUMER}
        return {name_given(name) for name in self.server.consumers(keys, GROUP)} - living

    def _keys(self) -> Any:
        return self.broker().keys.tiers

    async def _stopped(self) -> None:
        """Tell all workers to stop; they must."""
        self.closing = True
        for process in self.workers:
            if process.running:
                self.tell_to_stop(process)
        limit = self.plan.lease * (GRACE + 2) + 15
        with trio.move_on_after(limit) as scope:
            for process in self.workers:
                await process.ended.wait()
        if scope.cancelled_caught:
            left = [process for process in self.workers if not process.ended.is_set()]
            self.problem(f"told to stop and still there after {limit:g} s: {left}")

    def _judge_connections(self) -> None:
        if self.server.busiest > 2000:
            self.problem(f"{self.server.busiest} commands within one second")


class _Up:
    """What a worker tells once it reads."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def started(self, _: Any = None) -> None:
        self._recorder.record("up")
