"""What a history is made of, drawn from its seed: workers, tasks, faults. Values; nothing runs here."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

LEASES = (6.0, 6.0, 12.0)  # seconds; timeouts of the connections are in proportion
CHAOS = 3.0  # leases in which things go wrong; then the world is left in peace
SHORT_FROM = 1_000_000  # seeds from here on are short histories: a few tasks, one or two faults
STALE_FROM = 2_000_000  # from here on a worker is short of its connection, or its time, while it runs long tasks

# What a task does, and how often it is drawn.
KINDS = {
    "quick": 7, "slow": 6, "flaky": 3, "failing": 2, "later": 2, "deadly": 1, "deadly-once": 1, "blocking": 1,
    "rejecting": 1, "timed": 1, "sleeper": 2,
}  # fmt: skip
# What goes wrong, and how often it is drawn.
FAULTS = {
    "kill": 5, "freeze": 4, "stop": 3, "cut": 4, "cut-sending": 4, "cut-replying": 5, "hold": 4, "hold-sending": 2,
    "hold-replies": 3, "slow": 2, "split": 2, "refuse": 2, "forget-scripts": 2, "wipe": 1, "restart-empty": 1,
    "down": 2, "loading": 1, "pause": 1, "oom": 1, "readonly": 1, "kill-connections": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: what it does, and how it is sent. Times are seconds, `at` since the beginning."""

    number: int
    kind: str
    at: float
    tier: int
    duration: float  # of a run
    failures: int  # how often it fails before it succeeds
    retries: int
    delay: float | None = None
    own_id: bool = False  # sent with a task id of its own, and again while the outcome is unknown
    result: bool = False
    cancel_after: float | None = None  # its sender cancels it then
    patience: int | None = None  # its sender's call is cancelled after so many turns of the loop
    producer: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `target` picks who is hit, `lasts` is in seconds, `after` in bytes."""

    kind: str
    at: float
    target: int
    lasts: float
    after: int
    back_after: float | None  # a worker that is gone is replaced then


@dataclass(frozen=True, slots=True)
class Plan:
    """One history before it happens."""

    seed: int
    lease: float
    tiers: int
    workers: int
    concurrency: int
    producers: int
    tasks: tuple[TaskSpec, ...]
    faults: tuple[Fault, ...]

    @property
    def calm(self) -> float:
        """Return when nothing goes wrong any more."""
        ends = [fault.at + fault.lasts for fault in self.faults] + [task.at for task in self.tasks]
        return max(ends, default=0.0)

    def without_task(self, index: int) -> Plan:
        return replace(self, tasks=self.tasks[:index] + self.tasks[index + 1 :])

    def without_fault(self, index: int) -> Plan:
        return replace(self, faults=self.faults[:index] + self.faults[index + 1 :])


def draw(seed: int) -> Plan:
    """Return the plan that belongs to a seed."""
    dice = random.Random(seed)
    if seed >= STALE_FROM:
        return _stale(seed, dice)
    if seed >= SHORT_FROM:
        return _short(seed, dice)
    lease = dice.choice(LEASES)
    tiers = dice.choice((1, 1, 1, 2, 3))
    producers = dice.choice((1, 1, 2))
    number = dice.randint(4, 10) if dice.random() < 0.8 else dice.randint(10, 25)
    tasks = tuple(_task(dice, index, lease, tiers, producers) for index in range(number))
    faults = tuple(_fault(dice, lease) for _ in range(dice.choice((0, 1, 1, 2, 2, 3, 3, 4, 5, 8))))
    tasks = tuple(_near(dice, task, faults) for task in tasks)
    return Plan(
        seed, lease, tiers, dice.choice((1, 2, 2, 3)), dice.choice((1, 2, 2, 3, 5)), producers,
        tuple(sorted(tasks, key=lambda task: task.at)), tuple(sorted(faults, key=lambda fault: fault.at)),
    )  # fmt: skip


def _short(seed: int, dice: random.Random) -> Plan:
    """Return a plan of a few tasks and one or two faults: thousands of them in a minute."""
    lease = 6.0
    tasks = tuple(_task(dice, index, lease, 1, 1) for index in range(dice.randint(1, 4)))
    tasks = tuple(replace(task, at=min(task.at, lease / 2), duration=min(task.duration, lease * 1.2)) for task in tasks)
    faults = tuple(_fault(dice, lease) for _ in range(dice.choice((1, 1, 2))))
    faults = tuple(replace(fault, at=min(fault.at, lease), lasts=min(fault.lasts, lease * 1.2)) for fault in faults)
    tasks = tuple(_near(dice, task, faults) for task in tasks)
    return Plan(
        seed, lease, 1, dice.choice((1, 2)), dice.choice((1, 2)), 1,
        tuple(sorted(tasks, key=lambda task: task.at)), tuple(sorted(faults, key=lambda fault: fault.at)),
    )  # fmt: skip


def _stale(seed: int, dice: random.Random) -> Plan:
    """Return a plan in which a worker that has lost what it runs may settle it late."""
    lease = 6.0
    tasks = tuple(_task(dice, index, lease, 1, 1) for index in range(dice.randint(2, 5)))
    tasks = tuple(
        replace(
            task, at=0.5, kind=dice.choice(("failing", "failing", "flaky", "slow")), retries=dice.randint(0, 1),
            duration=dice.uniform(0.8, 2.0) * lease, cancel_after=None, patience=None, delay=None,
        )
        for task in tasks
    )  # fmt: skip
    kind = dice.choice(("hold", "hold", "hold-sending", "hold-replies", "freeze", "refuse"))
    fault = replace(_fault(dice, lease), kind=kind, at=dice.uniform(0.5, lease), lasts=dice.uniform(1.0, 1.6) * lease)
    return Plan(seed, lease, 1, 2, dice.choice((1, 2, 3)), 1, tasks, (fault,))


def _near(dice: random.Random, task: TaskSpec, faults: tuple[Fault, ...]) -> TaskSpec:
    """Have some tasks be sent just when something goes wrong with the server's data: that is where they get lost."""
    moments = [fault.at + fault.lasts for fault in faults if fault.kind in ("wipe", "restart-empty", "forget-scripts")]
    if not moments or dice.random() < 0.5:
        return task
    return replace(task, at=dice.choice(moments) + dice.choice((0.0, dice.uniform(0.0, 0.02), dice.uniform(0.0, 0.5))))


def _pick(dice: random.Random, weights: dict[str, int]) -> str:
    return dice.choices(list(weights), list(weights.values()))[0]


def _task(dice: random.Random, number: int, lease: float, tiers: int, producers: int) -> TaskSpec:
    kind = _pick(dice, KINDS)
    long = dice.uniform(0.2, 2.2) * lease
    duration = {
        "slow": long,
        "flaky": long if dice.random() < 0.4 else 0.0,
        "failing": long if dice.random() < 0.4 else 0.0,
        "blocking": dice.uniform(0.2, 1.8) * lease,
        "timed": dice.uniform(0.1, 0.4) * lease,
    }.get(kind, dice.choice((0.0, 0.0, 0.001, 0.01, dice.uniform(0.0, 0.3) * lease)))
    burst = dice.random() < 0.4
    return TaskSpec(
        number, kind, at=0.5 if burst else dice.uniform(0.0, CHAOS * 0.75) * lease, tier=dice.randrange(tiers),
        duration=duration, failures=dice.randint(1, 3), retries=dice.randint(0, 3),
        delay=dice.uniform(0.0, 2.0) * lease if dice.random() < (1.0 if kind == "sleeper" else 0.1) else None,
        own_id=dice.random() < 0.4, result=dice.random() < 0.25,
        cancel_after=dice.uniform(0.0, 1.0) * lease * dice.choice((0.01, 1.0)) if dice.random() < 0.1 else None,
        patience=dice.randint(0, 12) if dice.random() < 0.1 else None,
        producer=dice.randrange(producers),
    )  # fmt: skip


def _fault(dice: random.Random, lease: float) -> Fault:
    kind = _pick(dice, FAULTS)
    at = dice.uniform(0.0, CHAOS) * lease
    if dice.random() < 0.3:  # where most happens
        at = 0.5 + dice.uniform(0.0, 0.05)
    lasts = dice.choice((0.0, dice.uniform(0.0, 0.1), dice.uniform(0.1, 1.0), dice.uniform(1.0, 2.0))) * lease
    if kind in ("kill", "stop", "cut", "forget-scripts", "wipe", "kill-connections", "cut-sending", "cut-replying"):
        lasts = 0.0
    return Fault(
        kind, at, target=dice.randrange(1000), lasts=lasts,
        after=dice.choice((0, dice.randrange(40), dice.randrange(2000))),
        back_after=dice.uniform(0.0, 1.5) * lease if dice.random() < 0.7 else None,
    )  # fmt: skip
