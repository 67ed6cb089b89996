"""Workers that leave in order: told once, told twice, replaced one by one by another version of the app."""

from __future__ import annotations

import time

from tests.faults.evidence import expect_gone, expect_handed_over, undone
from tests.faults.harness import Scene
from tests.faults.processes import Process
from tests.faults.producer import Kind
from tests.faults.registry import scenario

GRACE = 3.0
_AT_ONCE = 1.5  # seconds, on a loaded machine


@scenario("sigterm", tasks=1500, short=700, lease=6.0)
def sigterm(scene: Scene) -> None:
    """SIGTERM under load: once drains within the grace period, twice hands back at once; exit code 0."""
    scene.start_many(2, grace=GRACE)
    cli = [scene.start_cli("--grace", f"{GRACE}s", wait=False) for _ in range(2)]
    for worker in cli:
        scene.until_up(worker)
    drained, hurried = [scene.workers[0], cli[0]], [scene.workers[1], cli[1]]
    scene.produce(
        scene.load(
            Kind(task="work", share=20, kwargs={"seconds": [0.0, 0.1]}),
            Kind(task="work", kwargs={"seconds": [1.5, 2.5]}),
            rate=scene.pace(5),
            batch=10,
        )
    )
    scene.start_many(2, grace=GRACE)  # those that stay
    scene.until_underway()
    scene.sleep(0.5)
    _leave(scene, drained, within=GRACE + scene.slack)
    scene.send(scene.load(Kind(task="work", kwargs={"seconds": 6.0}), total=16, batch=1))
    scene.sleep(0.5)
    for worker in hurried:
        worker.terminate()
    scene.sleep(0.2)
    _leave(scene, hurried, within=_AT_ONCE)
    scene.drain()
    for worker in hurried:
        expect_handed_over(scene, worker.who, within=_AT_ONCE)


def _leave(scene: Scene, workers: list[Process], *, within: float) -> None:
    """Tell workers to stop (again), and expect that they are gone soon, with code 0 and nothing left behind."""
    told = time.monotonic()
    for worker in workers:
        scene.fault("SIGTERM")
        worker.terminate()
    for worker in workers:
        worker.wait(30)
    stopped = {record["who"]: record["at"] for record in scene.journal.records("stopped")}
    for worker in workers:
        who = worker.who
        scene.expect("P8", f"{who} took to leave (s)", stopped.get(who, float("inf")) - told, within)
        scene.expect("P8", f"exit code of {who}", 99 if worker.code is None else abs(worker.code), 0)
        expect_gone(scene, who)


@scenario("rolling-deploy", tasks=2400, short=600, lease=2.0)
def rolling_deploy(scene: Scene) -> None:
    """Two versions of the app, each with tasks that the other does not know, replaced one by one under load."""
    crew = 3
    common, old, new = Kind(task="work", share=8, kwargs={"seconds": [0.0, 0.05]}), Kind(task="old_only"), Kind(
        task="new_only"
    )  # fmt: skip
    third = scene.tasks // 3
    scene.start_many(crew, version="old")
    scene.produce(scene.load(common, old, new, total=third, rate=third / 3))
    scene.sleep(0.5)
    for _ in range(crew - 1):
        scene.fault("deploy")
        scene.start(version="new")
        scene.stop(scene.oldest())
    scene.produce(scene.load(common, old, new, total=third, rate=third / 2))
    scene.until(lambda: not scene.sending() and not undone(scene, "old_only"), 60, "end of the old tasks")
    scene.fault("deploy")
    scene.produce(scene.load(common, new, total=scene.tasks - 2 * third))
    scene.start(version="new")
    scene.stop(scene.oldest())
    scene.drain()
    scene.expect("P1", "dead letters", scene.command("XLEN", "queue:dead"), 0)
