"""How sharp the simulation is: bugs that are planted on purpose are found, and without them all is well."""

from __future__ import annotations

import pytest

from tests.simulation.histories import play_seed, run
from tests.simulation.plan import STALE_FROM
from tests.simulation.plants import PLANTS

pytestmark = pytest.mark.slow

# Within how many histories each is found, and by which questions of the checker.
WITHIN = {
    "acknowledge-before-run": (5, "P2 acknowledged before the effect"),
    "renew-without-owner": (80, "P4"),
    "sweep-from-the-start": (20, "P1 left in Redis"),
    "retry-in-two-steps": (60, ""),
    "leave-with-pending": (30, ""),
    "group-at-the-end": (60, "P1"),
    "retry-without-owner": (80, "P4"),
    "bury-without-owner": (80, "P4"),
    "prefetched-not-renewed": (100, "P3 live redeliveries"),
    "replies-to-the-wrong": (120, ""),
    "retries-are-free": (20, ""),
    "sweep-takes-the-living": (60, "P3 live redeliveries"),
}
# Those that need a worker which comes late: drawn on purpose, as one history of a hundred has it by chance.
OF_STALE_WORKERS = ("renew-without-owner", "retry-without-owner", "bury-without-owner", "prefetched-not-renewed")


def found_by(name: str, seeds: range, question: str) -> int | None:
    """Return the first of these histories in which a planted bug is found by the right question."""
    while seeds:
        failed = run(seeds, name, until_failed=True).failed
        if not failed:
            break
        seed, violations = failed[0]
        if any(line.startswith(question) for line in violations):
            return seed
        seeds = range(seed + 1, seeds.stop)
    return None


@pytest.mark.parametrize("name", WITHIN)
def test_a_planted_bug_is_found(name: str) -> None:
    """And the history that found it is well without it."""
    within, question = WITHIN[name]
    first = STALE_FROM if name in OF_STALE_WORKERS else 1
    seed = found_by(name, range(first, first + within), question)
    assert seed is not None, f"{name} was not found in {within} histories by {question or 'any question'}"
    print(f"{name}: found by history {seed}")
    assert play_seed(seed).ok


def test_every_plant_is_tried() -> None:
    """All but those that are too rare for every run, by name."""
    assert PLANTS.keys() - WITHIN.keys() == {"settle-said-once"}
