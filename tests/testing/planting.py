"""Violations to plant and excuses to find, by the functions that write them; and what both need."""

from __future__ import annotations

from dataclasses import replace

import pytest

PLANTS = []
EXCUSED = []


def plant(question):
    """Register a violation, and the row that must name it."""

    def register(function):
        PLANTS.append(pytest.param(function, str(question), id=function.__name__.replace("_", "-")))
        return function

    return register


def excused(function):
    """Register what looks like a violation and is none."""
    EXCUSED.append(pytest.param(function, id=function.__name__.replace("_", "-")))
    return function


def set_final(log, **changes):
    log.final = replace(log.final, **changes)


def set_limits(log, **changes):
    log.limits = replace(log.limits, **changes)


def taken_over(log, task="x", *, by="w2"):
    """w1 starts a task, is frozen past its lease, and another takes over. w1 is well again."""
    log.accepted(task, retries=5)
    log.start("w1", task)
    log.world("frozen", "w1")
    log.wait(4)
    log.reclaimed(by, task)
    log.start(by, task, starts=2)
    log.world("thawed", "w1")


def lost_to_w2(log, *, died=True):
    """w2 takes x over from w1 and does it; w1 finds out."""
    log.reclaimed("w2", "x", died=died)
    log.start("w2", "x", starts=2)
    log.effect("w2", "x")
    log.settled("w2", "x")
    log.superseded("w1", "x")
