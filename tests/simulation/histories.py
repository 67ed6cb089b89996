"""Running histories: one from its plan, many on several cores, and the smallest that still fails."""

from __future__ import annotations

import gc
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import anyio

from tests.simulation.determinism import determined
from tests.simulation.judge import History, judged
from tests.simulation.plan import Plan, draw
from tests.simulation.plants import planted
from tests.simulation.process import Spin
from tests.simulation.server import SimulatedServer
from tests.simulation.world import World

COLLECT_EVERY = 20  # histories, for which Python's garbage waits


def play(plan: Plan) -> History:
    """Run one history."""
    server = SimulatedServer.instance()
    with determined(plan.seed):
        world = World(plan, server)
        server.begin(world)
        try:
            anyio.run(world.run, backend="trio", backend_options=world.virtual.options("trio"))
        except (Spin, BaseExceptionGroup) as error:
            world.problem(f"the world ended: {error!r}")
        history = judged(world)
        server.begin(None)
    return history


def play_seed(seed: int, plant: str = "") -> History:
    """Run the history of a seed, with a bug planted if one is named."""
    with planted(plant):
        return play(draw(seed))


def smallest(plan: Plan, plant: str = "", tries: int = 200) -> Plan:
    """Return a plan that still fails, with as few faults and tasks as leaving out one by one gives."""
    with planted(plant):
        for without, many in ((Plan.without_fault, "faults"), (Plan.without_task, "tasks")):
            index = 0
            while index < len(getattr(plan, many)) and tries:
                tries -= 1
                less = without(plan, index)
                if play(less).ok:
                    index += 1
                else:
                    plan = less
    return plan


@dataclass(slots=True)
class Summary:
    """What many histories were, and which of them failed."""

    histories: int = 0
    tasks: int = 0
    commands: int = 0
    virtual: float = 0.0  # seconds
    busiest: int = 0
    effects: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, list[str]]] = field(default_factory=list)

    def add(self, history: History) -> None:
        """Take one history into account."""
        self.histories += 1
        self.tasks += history.report.tasks
        self.commands += history.commands
        self.virtual += history.virtual
        self.busiest = max(self.busiest, history.busiest)
        self.effects += sum(number * tasks for number, tasks in history.report.effects.items())
        self.faults.update(history.faults)
        if not history.ok:
            self.failed.append((history.plan.seed, history.violations))

    def merge(self, other: Summary) -> None:
        """Take what another process ran into account."""
        self.histories += other.histories
        self.tasks += other.tasks
        self.commands += other.commands
        self.virtual += other.virtual
        self.busiest = max(self.busiest, other.busiest)
        self.effects += other.effects
        self.faults.update(other.faults)
        self.failed += other.failed


def run(
    seeds: range, plant: str = "", tell: Callable[[History], None] = lambda _: None, *, until_failed: bool = False
) -> Summary:
    """Run the histories of some seeds in this process."""
    summary = Summary()
    with planted(plant):
        for seed in seeds:
            if summary.histories % COLLECT_EVERY == 0:
                gc.collect()
            history = play(draw(seed))
            summary.add(history)
            tell(history)
            if until_failed and summary.failed:
                break
    return summary


def run_on(jobs: int, seeds: range, plant: str = "", portion: int = 25) -> Iterator[Summary]:
    """Run the histories of some seeds on several cores; yield what becomes of each portion."""
    portions = [(seeds[at : at + portion], plant) for at in range(0, len(seeds), portion)]
    if jobs == 1:
        for some, name in portions:
            yield run(some, name)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_run, portions)


def _run(portion: tuple[range, str]) -> Summary:
    return run(*portion)
