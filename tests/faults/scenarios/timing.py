"""Time: clocks that are off, tasks that wait, leases of different lengths."""

from __future__ import annotations

from tests.faults.evidence import expect_in_time, expect_some
from tests.faults.harness import Scene
from tests.faults.producer import Kind
from tests.faults.registry import scenario
from tests.faults.scenarios.workers import CREW

HOUR = 3600.0
DELAYED = Kind(task="noop", share=3, options={"delay": [0.1, 3.0]})
RETRIED = (
    Kind(task="flaky", share=2, kwargs={"fails": 1}),
    Kind(task="flaky", kwargs={"fails": 3, "seconds": [0.0, 0.1]}),
)


@scenario("clock-off", tasks=2000, short=500, lease=4.0, limits={"effects_once": True})
def clock_off(scene: Scene) -> None:
    """One worker's clock is an hour ahead, another's an hour behind: nothing is early, late, lost or run twice."""
    for clock in (HOUR, -HOUR, 0.0):
        scene.start(wait=False, clock=clock)
    for worker in scene.workers:
        scene.until_up(worker)
        scene.fault("clock")
    perishable = Kind(task="work", share=3, kwargs={"seconds": [0.0, 0.1]}, options={"expires": 60.0})
    scene.produce(scene.load(Kind(task="noop", share=3), perishable, DELAYED, *RETRIED, rate=scene.pace(4)))
    scene.drain()
    expect_in_time(scene)


@scenario("delayed", tasks=4000, short=700, dead={"retries_exhausted"})
def delayed(scene: Scene) -> None:
    """Delays, retries, cancels and hopeless tasks, while workers are killed."""
    scene.start_many(CREW)
    hopeless = Kind(task="hopeless", share=0.5)
    scene.produce(
        scene.load(Kind(task="noop", share=2), DELAYED, *RETRIED, hopeless, rate=scene.pace(5), cancel=0.2, batch=20)
    )
    scene.until_underway()
    for _ in range(4 if scene.tasks > 2000 else 2):
        scene.sleep(scene.random.uniform(0.5, 1.5))
        scene.kill(scene.pick())
        scene.replace_dead(CREW)
    scene.drain()
    expect_in_time(scene)
    expect_some(scene, "withdrawn")


@scenario("mixed-leases", tasks=200, short=60, lease=6.0, limits={"effects_once": True})
def mixed_leases(scene: Scene) -> None:
    """Workers of one group with visibility timeouts of 0.8 s and 6 s, and long tasks: nobody takes from the living."""
    for lease in (0.8, 6.0, 0.8, 6.0):
        scene.start(wait=False, lease=lease, concurrency=20)
    for worker in scene.workers:
        scene.until_up(worker)
    scene.fault("mixed leases")
    long = Kind(task="work", kwargs={"seconds": [2.0, 4.0]})
    scene.produce(scene.load(long, Kind(task="work", share=3, kwargs={"seconds": [0.0, 0.2]}), batch=10))
    scene.drain()
