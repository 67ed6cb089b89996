"""Scenarios choose among what there is: a scene waits for a worker, or says why there is none."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from tests.faults.evidence import expect_handed_over
from tests.faults.harness import Scene, Stuck
from tests.faults.registry import Scenario
from tests.faults.scenarios import workers as injectors


@dataclass
class Stand:
    """Stands in for a worker's process."""

    who: str
    alive: bool = True
    frozen: bool = False
    told: bool = False
    code: int | None = None

    def kill(self) -> None:
        self.alive, self.code = False, -9

    def freeze(self) -> None:
        self.frozen = True

    def terminate(self) -> None:
        self.told = True

    def children(self) -> list[int]:
        return []


@pytest.fixture
def scene(tmp_path):
    """A scene without a server, whose workers are only stood in for."""
    scenario = Scenario(name="none", body=lambda _: None, summary="")
    server = SimpleNamespace(url="unix:///none")
    made = Scene(scenario, server=server, folder=tmp_path, backend="asyncio", seed=1, tasks=10)
    yield made
    made.recorder.close()


def up(scene: Scene, who: str) -> None:
    scene.recorder.record_of(who, "up", "")


def test_only_workers_that_are_well_are_drawn(scene):
    """Those that read, live, are not frozen and were not told to stop."""
    well = [Stand("w1"), Stand("w2")]
    scene.workers = [*well, Stand("w3", frozen=True), Stand("w4", told=True), Stand("w5", alive=False), Stand("w6")]
    for worker in scene.workers[:5]:
        up(scene, worker.who)
    drawn = [scene.pick() for _ in range(50)]
    assert all(worker in well for worker in drawn)
    assert {worker.who for worker in drawn} == {"w1", "w2"}


def test_one_that_is_starting_is_waited_for(scene):
    """After kills all the others may still be on their way: that is no reason to fail."""
    scene.workers = [Stand("w1", alive=False, code=-9), Stand("w2")]
    starting = threading.Timer(0.1, up, (scene, "w2"))
    starting.start()
    assert scene.pick(seconds=20).who == "w2"
    starting.join()


def test_the_wait_is_bounded_and_says_how_each_worker_is(scene):
    """What did not come is a finding in words, not an error of the harness."""
    scene.workers = [Stand("w1", alive=False, code=-9), Stand("w2", frozen=True), Stand("w3", told=True), Stand("w4")]
    with pytest.raises(Stuck) as caught:
        scene.pick(seconds=0.05)
    assert str(caught.value) == (
        "none of the workers is well: w1 ended with -9, w2 is frozen, w3 was told to stop, w4 does not read yet"
    )


@pytest.mark.parametrize(
    "workers", [[], [Stand("w1", alive=False, code=1)], [Stand("w1", frozen=True), Stand("w2", told=True)]]
)
def test_nobody_is_waited_for_who_cannot_become_well(scene, workers):
    """Only what a scenario does thaws or starts a worker, and it is waiting here."""
    scene.workers = workers
    with pytest.raises(Stuck, match=r"none of the workers is well: (w1|none was ever started)"):
        scene.pick(seconds=3600)


def test_the_soak_chooses_nobody_rather_than_wait(scene):
    """Its faults come at their time: an injector that finds nobody does nothing, and counts nothing."""
    scene.workers = [Stand("w1"), Stand("w2", alive=False)]
    for inject in (injectors.kill, injectors.freeze, injectors.restart, injectors.hurry, injectors.kill_child):
        assert inject(scene) is None
    assert scene.count("fault") == 0
    assert scene.pick_at_once() is None


def test_the_oldest_is_one_that_lives(scene):
    """And without any, that is said."""
    scene.workers = [Stand("w1", alive=False, code=3), Stand("w2"), Stand("w3")]
    assert scene.oldest().who == "w2"
    scene.workers = scene.workers[:1]
    with pytest.raises(Stuck, match="none of the workers lives: w1 ended with 3"):
        scene.oldest()


def test_a_worker_that_did_not_say_when_it_left_has_handed_nothing_over_in_time(scene):
    """Killed before its last word: a violation, and no error in what looks for one."""
    scene.recorder.record_of("w1", "start", "t")
    scene.recorder.record_of("w2", "start", "t")
    expect_handed_over(scene, "w1", within=1.0)
    assert [row.value for row in scene.rows] == [float("inf"), 0]
