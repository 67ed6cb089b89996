"""Proving that nothing was lost: a recorder for what happened, and a checker that reads it.

    recorder = Recorder("run.log", worker.name)            # one in each process, one file for all
    Worker(broker, tasks=[...], listeners=[recorder])
    report = check(read("run.log"), await final_state(broker), Limits(lease=30.0))
    print(table(report))

`python -m streamq.testing check run.log --url redis://... --lease 30` does the same by hand.
"""

from __future__ import annotations

from streamq.testing.checker import Checker, check
from streamq.testing.findings import Question
from streamq.testing.recorder import LogError, Record, Recorder, read
from streamq.testing.report import scenarios, summary, table
from streamq.testing.state import final_state
from streamq.testing.verdict import FinalState, Limits, Report, Row

__all__ = [
    "Checker",
    "FinalState",
    "Limits",
    "LogError",
    "Question",
    "Record",
    "Recorder",
    "Report",
    "Row",
    "check",
    "final_state",
    "read",
    "scenarios",
    "summary",
    "table",
]
