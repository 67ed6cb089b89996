"""How sharp the simulation is: bugs that are planted on purpose are found, and without them all is well."""

from __future__ import annotations

import pytest

from tests.simulation.histories import play_seed, run
from tests.simulation.plants import PLANTS

# Within how many histories each is found, and by which questions of the checker.
WITHIN = {
    "acknowledge-before-run": (5, "P2 acknowledged before the effect"),
    "renew-without-owner": (150, "P4"),
    "sweep-from-the-start": (20, "P1 left in Redis"),
    "retry-in-two-steps": (60, ""),
    "leave-with-pending": (30, ""),
    "group-at-the-end": (60, "P1"),
    "retry-without-owner": (150, "P4"),
    "bury-without-owner": (150, "P1 P4"),
    "prefetched-not-renewed": (100, "P3 live redeliveries"),
    "replies-to-the-wrong": (60, ""),
    "retries-are-free": (20, ""),
    "sweep-takes-the-living": (60, "P3 live redeliveries"),
}


@pytest.mark.parametrize("name", WITHIN)
def test_a_planted_bug_is_found(name: str) -> None:
    """And the history that found it is well without it."""
    within, question = WITHIN[name]
    first = 1
    while first <= within:
        found = run(range(first, within + 1), name, until_failed=True).failed
        assert found, f"{name} was not found in {within} histories"
        seed, violations = found[0]
        if any(line.startswith(question) for line in violations):
            assert play_seed(seed).ok
            return
        first = seed + 1
    pytest.fail(f"{name}: no history asked the right question")


def test_every_plant_is_tried() -> None:
    """All but those that are too rare for every run, by name."""
    assert PLANTS.keys() - WITHIN.keys() == {"settle-said-once"}
