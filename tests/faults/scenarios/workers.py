"""Workers that are well, that die, freeze, block and take each other down."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from tests.faults.evidence import expect_effects, expect_some
from tests.faults.harness import Scene
from tests.faults.producer import Kind
from tests.faults.registry import injector, scenario

MIXED = (
    Kind(task="noop", share=8),
    Kind(task="work", share=2, kwargs={"seconds": [0.0, 0.05]}),
    Kind(task="threaded", share=0.2, kwargs={"seconds": [0.0, 0.02]}),
)
CREW = 3


@scenario("steady", tasks=20_000, short=2000, lease=6.0, limits={"effects_once": True})
def steady(scene: Scene) -> None:
    """No fault at all: every task exactly once."""
    scene.start_many(CREW)
    scene.produce(scene.load(*MIXED))
    scene.drain()


LASTING = (Kind(task="noop", share=6), Kind(task="work", share=4, kwargs={"seconds": [0.0, 0.5]}))  # much is in hand


@scenario("worker-killed", tasks=5000, short=900)
def worker_killed(scene: Scene) -> None:
    """SIGKILL of workers at random points under load; others take their place."""
    kills = 4 if scene.tasks >= 3000 else 2
    apart = scene.lease * 4 / 3 + 1.0  # what one held has run by then: nothing is in two dead workers' hands
    scene.start_many(CREW)
    scene.produce(scene.load(*LASTING, rate=scene.pace((kills + 1) * apart * 0.8)))
    scene.until_underway()
    for _ in range(kills):
        scene.sleep(apart * scene.random.uniform(0.5, 1.5))
        scene.kill(scene.pick())
        scene.replace_dead(CREW)
    scene.drain()


# Not judged: how soon. What was in the hands of two dead workers runs apart, one at a time, and while a worker
# does that it takes nothing over.
@scenario("workers-killed-often", tasks=6000, short=1200, limits={"recovery": None})
def workers_killed_often(scene: Scene) -> None:
    """SIGKILL of workers more often than what they held can be worked off."""
    kills = 10 if scene.tasks >= 5000 else 4
    spared = {"max_crashes": 1000}  # a task cannot know that it was not the culprit each time
    scene.start_many(CREW, **spared)
    scene.produce(scene.load(*LASTING, rate=scene.pace(kills * 0.7)))
    scene.until_underway()
    for _ in range(kills):
        scene.sleep(scene.random.uniform(0.2, 1.2))
        if (worker := scene.pick_at_once()) is not None:  # often all of them are starting: the next round, then
            scene.kill(worker)
        scene.replace_dead(CREW, **spared)
    scene.drain()


@scenario("killed-after-effect", tasks=400, short=150)
def killed_after_effect(scene: Scene) -> None:
    """A worker dies between the effect and its acknowledgement: that task, and no other, has two effects."""
    deaths = 5
    alone = {"concurrency": 1, "prefetch": 0}  # so nothing else is between its effect and its acknowledgement
    scene.send(scene.load(Kind(task="work", kwargs={"seconds": [0.0, 0.02]}), total=scene.tasks - deaths))
    scene.send(scene.load(Kind(task="effect_then_die", kwargs={"seconds": 0.1}), total=deaths))
    scene.drain(meanwhile=lambda: scene.replace_dead(CREW, **alone))
    expect_effects(scene, "effect_then_die", 2)


@scenario("worker-frozen", tasks=3000, short=900)
def worker_frozen(scene: Scene) -> None:
    """SIGSTOP past the lease, then SIGCONT: late successes, late failures and late renewals change nothing."""
    rounds = 3 if scene.tasks >= 2000 else 1
    scene.start_many(CREW)
    scene.produce(
        scene.load(
            Kind(task="noop", share=6),
            Kind(task="work", share=2, kwargs={"seconds": [0.2, 0.6]}),
            Kind(task="late_failure", share=2, kwargs={"seconds": [0.2, 0.6]}),
            rate=scene.pace(rounds * scene.lease * 2 + 1),
            batch=20,
        )
    )
    scene.until_underway()
    for _ in range(rounds):
        scene.sleep(scene.random.uniform(0.3, 0.6))
        frozen = scene.pick()
        scene.freeze(frozen)
        scene.sleep(scene.lease * 4 / 3 + 0.5)
        scene.thaw(frozen)
    scene.drain()
    expect_some(scene, "superseded")


@scenario("loop-blocked", tasks=1500, short=500, lease=1.0)
def loop_blocked(scene: Scene) -> None:
    """Handlers that block the event loop for longer than the lease."""
    stuck = 4 if scene.tasks >= 1000 else 2
    scene.start_many(CREW)
    scene.produce(scene.load(*MIXED, total=scene.tasks - stuck, rate=scene.pace(5)))
    for _ in range(stuck):
        scene.fault("block")
        scene.send(scene.load(Kind(task="stuck", kwargs={"seconds": [1.5, 2.5]}), total=1))
        scene.sleep(scene.random.uniform(0.2, 1.0))
    scene.drain()
    expect_some(scene, "blocked")


# A deadly task is found by taking workers down one after the other, so recovery is several leases.
DEADLY = {"dead": {"crash_loop"}, "culprits": {"deadly"}, "lease": 1.0, "tasks": 150, "short": 60}


@scenario("crash-loop", **DEADLY)
def crash_loop(scene: Scene) -> None:
    """A task that kills its worker each time, among innocents: it dies, and nothing else is blamed."""
    _crash_loop(scene, culprits=1)


@scenario("crash-loops", **DEADLY)
def crash_loops(scene: Scene) -> None:
    """Several such tasks at once."""
    _crash_loop(scene, culprits=3)


def _crash_loop(scene: Scene, *, culprits: int) -> None:
    innocent = Kind(task="work", kwargs={"seconds": [0.05, 0.25]})
    before = scene.random.randrange(max(1, scene.tasks // 2))
    scene.send(scene.load(innocent, total=before, tiers=["standard"]))
    for number in range(culprits):
        scene.send(scene.load(Kind(task="deadly", kwargs={"seconds": 0.02 * number}), total=1, tiers=["standard"]))
    scene.send(scene.load(innocent, total=scene.tasks - before - culprits, tiers=["standard"]))
    for _ in range(culprits):
        scene.fault("deadly task")
    scene.drain(90, meanwhile=lambda: scene.replace_dead(2, concurrency=10))
    dead = scene.command("XLEN", "queue:dead")
    scene.expect("P5", "culprits that are no dead letters", culprits - dead, 0)


@scenario("process-child-killed", tasks=80, short=40, lease=2.0)
def process_child_killed(scene: Scene) -> None:
    """SIGKILL of the process that runs a task with run_in="process": the task runs again, the worker lives."""
    scene.start_many(2, concurrency=4)
    crunch = Kind(task="crunch", kwargs={"seconds": [0.05, 0.3], "ident": "$id"})
    scene.produce(scene.load(crunch, Kind(task="noop"), batch=10))
    children = 5 if scene.tasks > 50 else 2
    for killed in range(1, 20):
        scene.until(lambda: any(worker.children() for worker in scene.members), 60, "child process")
        scene.sleep(scene.random.uniform(0.2, 0.5))
        kill_child(scene)
        if killed >= children and _retries(scene):  # on a busy machine the first ones die as they start
            break
    scene.drain()
    scene.expect("P9", "workers that died with a child", scene.count("died"), 0)
    scene.expect("-", "no child was killed at work", int(_retries(scene) == 0), 0)


def _retries(scene: Scene) -> int:
    return sum(record["outcome"] == "retry" for record in scene.journal.records("settled"))


def kill_child(scene: Scene) -> None:
    """SIGKILL one child process of a worker, if there is one."""
    children = [child for worker in scene.members for child in worker.children()]
    if children:
        scene.fault("kill child")
        with contextlib.suppress(ProcessLookupError):
            os.kill(scene.random.choice(children), signal.SIGKILL)  # of a process that we started


# --- for the soak ---------------------------------------------------------------------------------


@injector("kill", group="workers", weight=3, excuses="what the worker had in its hands runs again")
def kill(scene: Scene) -> None:
    """SIGKILL a worker; the soak starts another."""
    if (worker := scene.pick_at_once()) is not None:
        scene.kill(worker)


@injector(
    "freeze", group="workers", weight=2, lasts=(0.2, 4.0), excuses="past the lease: what it had runs elsewhere, too",
    heal=lambda scene, worker: worker is None or scene.thaw(worker),
)  # fmt: skip
def freeze(scene: Scene) -> object:
    """SIGSTOP a worker for a while."""
    if (worker := scene.pick_at_once()) is not None:
        scene.freeze(worker)
    return worker


@injector("restart", group="workers", weight=2, excuses="nothing")
def restart(scene: Scene) -> None:
    """SIGTERM a worker; the soak starts another."""
    if (worker := scene.pick_at_once()) is not None:
        scene.fault("restart")
        worker.terminate()


@injector("hurry", group="workers", excuses="what it ran runs again, elsewhere and at once")
def hurry(scene: Scene) -> None:
    """SIGTERM a worker twice."""
    if (worker := scene.pick_at_once()) is not None:
        scene.fault("hurry")
        worker.terminate()
        time.sleep(0.1)
        worker.terminate()


@injector("block", group="workers", weight=0.5, excuses="what the worker had in its hands may run elsewhere, too")
def block(scene: Scene) -> None:
    """Have a task block the event loop of a worker."""
    scene.fault("block")
    scene.produce(scene.load(Kind(task="stuck", kwargs={"seconds": [0.3, 3.0]}), total=1))
