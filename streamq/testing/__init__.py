"""Tools to prove that no task was lost: a recorder for events, and a checker that reads its log.

    recorder = Recorder("run.log", worker.name)            # one in each process, one file for all
    Worker(broker, tasks=[...], listeners=[recorder])
    report = check(read("run.log"), await final_state(broker), Limits(lease=30.0))
    print(table(report))

`python -m streamq.testing check run.log --url redis://... --lease 30` does the same from the shell.

`VirtualTime` is a test clock for asyncio and trio. It is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamq.testing.checker import Checker, check
from streamq.testing.findings import Question
from streamq.testing.read_state import final_state
from streamq.testing.recorder import LogError, Record, Recorder, read
from streamq.testing.report import FinalState, Limits, Report, Row
from streamq.testing.report_text import scenarios, summary, table

if TYPE_CHECKING:
    from streamq.testing.clock import VirtualTime

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
    "VirtualTime",
    "check",
    "final_state",
    "read",
    "scenarios",
    "summary",
    "table",
]


def __getattr__(name: str) -> Any:
    if name != "VirtualTime":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from streamq.testing.clock import VirtualTime  # noqa: PLC0415 - most users of this package need no clock

    globals()[name] = VirtualTime
    return VirtualTime


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
