"""Tools for tests: of tasks, by hand and by a pytest plugin; and to prove that no task was lost.

`fake_delivery` is for a handler that a test calls itself, `own_task` for fixtures of pytest-asyncio. The fixtures of
the plugin (`pytest_plugin`) need no import; `RunTasks`, `SyncRunTasks` and `EndedTask` are types of theirs.
`VirtualTime` is a test clock for asyncio and trio.

A recorder for events, and a checker that reads its log:

    recorder = Recorder("run.log", worker.name)            # one in each process, one file for all
    Worker(broker, tasks=[...], listeners=[recorder])
    report = check(read("run.log"), await final_state(broker), Limits(lease=30.0))
    print(table(report))

`python -m streamq.testing check run.log --url redis://... --lease 30` does the same from the shell.

Names are loaded on first use: pytest imports this package at each start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.lazy_names import load_on_first_use

if TYPE_CHECKING:
    from streamq.testing.checker import Checker, check
    from streamq.testing.clock import VirtualTime
    from streamq.testing.fakes import FakeDelivery, fake_delivery
    from streamq.testing.findings import Question
    from streamq.testing.own_tasks import own_task
    from streamq.testing.read_state import final_state
    from streamq.testing.recorder import LogError, Record, Recorder, read
    from streamq.testing.report import FinalState, Limits, Report, Row
    from streamq.testing.report_text import scenarios, summary, table
    from streamq.testing.suite_sync import SyncRunTasks
    from streamq.testing.task_runs import EndedTask, RunTasks

_HOMES = {
    "Checker": "checker",
    "EndedTask": "task_runs",
    "FakeDelivery": "fakes",
    "FinalState": "report",
    "Limits": "report",
    "LogError": "recorder",
    "Question": "findings",
    "Record": "recorder",
    "Recorder": "recorder",
    "Report": "report",
    "Row": "report",
    "RunTasks": "task_runs",
    "SyncRunTasks": "suite_sync",
    "VirtualTime": "clock",
    "check": "checker",
    "fake_delivery": "fakes",
    "final_state": "read_state",
    "own_task": "own_tasks",
    "read": "recorder",
    "scenarios": "report_text",
    "summary": "report_text",
    "table": "report_text",
}

__all__ = [
    "Checker",
    "EndedTask",
    "FakeDelivery",
    "FinalState",
    "Limits",
    "LogError",
    "Question",
    "Record",
    "Recorder",
    "Report",
    "Row",
    "RunTasks",
    "SyncRunTasks",
    "VirtualTime",
    "check",
    "fake_delivery",
    "final_state",
    "own_task",
    "read",
    "scenarios",
    "summary",
    "table",
]

if not TYPE_CHECKING:  # for a type checker a name that is not above is an error
    __getattr__, __dir__ = load_on_first_use(globals(), _HOMES)
