"""Whole histories of small worlds, with faults at every byte: every promise holds in all of them."""

from __future__ import annotations

import pytest

from tests.simulation.histories import play, run, smallest
from tests.simulation.plan import FAULTS, KINDS, SHORT_FROM, STALE_FROM, draw
from tests.simulation.seam import Gate

pytestmark = pytest.mark.slow

HISTORIES = 80
SHORT = 200
PORTION = 40
PORTIONS = [*range(1, HISTORIES, PORTION), *range(SHORT_FROM, SHORT_FROM + SHORT, PORTION), STALE_FROM]


@pytest.mark.parametrize("first", PORTIONS)
def test_no_promise_is_broken(first: int) -> None:
    """A history in which one is broken is repeated by the line that is shown."""
    summary = run(range(first, first + PORTION))
    lines = [f"python -m tests.simulation --seed {seed}  # {'; '.join(found)}" for seed, found in summary.failed]
    assert not lines, "\n".join(lines)


def test_a_plan_is_drawn_from_its_seed_alone() -> None:
    """So a seed is all that a history needs."""
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_every_fault_and_every_kind_of_task_is_drawn() -> None:
    """What is never drawn is never tried."""
    plans = [draw(seed) for seed in range(300)]
    assert {fault.kind for plan in plans for fault in plan.faults} == FAULTS.keys()
    assert {task.kind for plan in plans for task in plan.tasks} == KINDS.keys()


def test_histories_do_what_they_are_for() -> None:
    """Tasks run, workers die, time passes: a world in which nothing happens proves nothing."""
    summary = run(range(1, 16))
    assert summary.effects > 40
    assert summary.faults["deadly task"] + summary.faults["kill"] > 3
    assert summary.faults.total() > 30
    assert summary.virtual > 200


def test_a_failing_history_is_made_small() -> None:
    """The shrinker leaves out what the failure does not need."""
    plan = smallest(draw(1), "acknowledge-before-run", tries=30)
    assert len(plan.tasks) < len(draw(1).tasks)
    assert not plan.faults
    assert play(plan).ok, "without the planted bug it is well"


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_gate_that_two_closed_opens_with_the_second(anyio_backend: str) -> None:
    """Two faults at once end one after the other."""
    gate = Gate()
    gate.close()
    gate.close()
    gate.unclose()
    assert not gate.open
    gate.unclose()
    assert gate.open
