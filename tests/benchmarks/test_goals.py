"""From records to tables: medians, goals that are held and missed, and what was not measured."""

from __future__ import annotations

import pytest

from tests.benchmarks.goals import CHOSEN, Column, Goal, goals, medians, report

RATE = Column("tasks/s", "noop", "tasks_per_s")
LATENCY = Column("p50, ms", "latency", "p50_ms", "{:.2f}")


def noop(peer, rate, rep=0):
    return {"peer": peer, "rep": rep, "scenario": "noop", "tasks_per_s": rate}


def test_the_median_of_the_rounds():
    """Of each figure by itself; a failed round has none."""
    records = [noop("a", 10.0), noop("a", 90.0, 1), noop("a", 20.0, 2)]
    failed = {"peer": "a", "rep": 3, "scenario": "noop", "error": "RuntimeError: it broke"}
    assert medians([*records, failed]) == {"a": {("noop", "tasks_per_s"): 20.0}}


@pytest.mark.parametrize(("rate", "held"), [(50.0, "held"), (49.0, "**missed**")])
def test_a_goal_is_compared_with_the_best_of_the_others(rate, held):
    """Not with ourselves, in whatever variant, and not with a limit."""
    figures = medians(
        [noop(CHOSEN, rate), noop("streamq", 99.0), noop("a", 5.0), noop("b", 4.0), noop("limit: x", 9.0)]
    )
    row = Goal("rate", RATE, times=10).row(figures)
    assert row == ["rate", "at least 10 times", f"{rate:.0f}", "5 (a)", f"{rate / 5:.2f}", held]


def test_less_is_better():
    """The best of the others has the least, and ours may be so many times that at most."""
    figures = {
        CHOSEN: {("latency", "p50_ms"): 0.7},
        "a": {("latency", "p50_ms"): 2.0},
        "b": {("latency", "p50_ms"): 1.0},
    }
    row = Goal("p50", LATENCY, times=0.6, more=False).row(figures)
    assert row == ["p50", "at most 0.6 times", "0.70", "1.00 (b)", "0.70", "**missed**"]


def test_a_bound():
    """It stands for itself; the best of the others is shown."""
    figures = medians([noop(CHOSEN, 7.0), noop("a", 0.0)])
    assert Goal("load", RATE, bound=8, more=False).row(figures) == ["load", "at most 8", "7", "0 (a)", "-", "held"]


def test_a_limit_has_one_scenario():
    """And is what a goal names."""
    figures = medians([noop(CHOSEN, 30.0), {"peer": "limit: pool", "rep": 0, "scenario": "limit", "tasks_per_s": 50.0}])
    assert Goal("half", RATE, times=0.5, against="limit: pool").row(figures)[3:] == ["50 (limit: pool)", "0.60", "held"]


@pytest.mark.parametrize("figures", [{}, {CHOSEN: {("noop", "tasks_per_s"): 1.0}}], ids=["nothing", "no other"])
def test_what_was_not_measured(figures):
    """It is neither held nor missed."""
    assert Goal("rate", RATE, times=10).row(figures)[-1] == "not measured"


def test_the_report_has_every_goal_and_whoever_was_measured():
    """And says what failed, and how it was run."""
    run = {
        "peer": "", "rep": 0, "scenario": "run", "at": "2026-01-01T00:00:00+00:00", "commit": "abc", "cores": 2,
        "python": "3.11.7", "redis": "7.0.15", "command": "--out x",
    }  # fmt: skip
    failed = {"peer": "c", "rep": 1, "scenario": "sleep", "error": "RuntimeError: it broke"}
    text = report([run, noop(CHOSEN, 100.0), noop("b", 5.0), failed])
    assert text.startswith(
        "`python -m tests.benchmarks.peers --out x`, 2 cores, Python 3.11.7, Redis 7.0.15, commit abc"
    )
    assert all(f"| {goal.what} |" in text for goal in goals())
    assert text.index("\n| streamq:uvloop | 100 |") < text.index("\n| b | 5 |")
    assert "\n| c |" not in text
    assert text.endswith("What failed:\n\n- c, sleep, round 2: RuntimeError: it broke\n")
