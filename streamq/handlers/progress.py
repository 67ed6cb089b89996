"""Progress: what a running task reports of itself, for those who wait for it or show it.

A handler can report as often as it likes: the reporter of its worker (`consumer/progress_reporter.py`) keeps the last
report and writes it. This module must not load the Redis client: modules of tasks import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio.lowlevel
import orjson

from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.diagnostics.unawaited import name_remedy
from streamq.errors import BrokerError, ConfigurationError
from streamq.handlers.context import cancel_requested, nothing_here, reporter_var, running_delivery
from streamq.wire import bounds
from streamq.wire.message import dumps

LONGEST_NOTE = 1000  # characters
LARGEST_DATA = 65_536  # bytes of JSON


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come: `done` of `total`, in a unit of the task's choice. `at` is in Unix seconds."""

    done: float
    total: float | None = None
    note: str = ""
    data: Any = None
    at: float = 0.0

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1. None without a total."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0

    @classmethod
    def parse(cls, payload: bytes) -> Progress:
        """Return the report that Redis keeps. Only `done` must be there.

        Raises BrokerError for anything else: streamq did not write it.
        """
        try:
            value: Mapping[str, Any] = orjson.loads(payload)
            total = value.get("total")
            return cls(
                float(value["done"]), None if total is None else float(total), str(value.get("note", "")),
                value.get("data"), float(value.get("at", 0.0)),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BrokerError(f"the value of a progress key is no progress: {payload[:80]!r}") from error


@dataclass(slots=True)
class Report:
    """The last report of one run. `data` is JSON already, so the handler can change its own object."""

    done: float
    total: float | None
    note: str
    data: bytes
    at: float

    @classmethod
    def of(cls, done: float, total: float | None, note: str, data: Any, at: float) -> Report:
        """Return a report. Raises ConfigurationError for a value that cannot be reported."""
        done = bounds.DONE.check(done)
        if total is not None:
            total = bounds.TOTAL.check(total)
        if not isinstance(note, str):
            raise ConfigurationError(f"note={repr_of(note)} cannot be reported: give a text")
        note = note[:LONGEST_NOTE].encode(errors="backslashreplace").decode()
        return cls(done, total, note, b"" if data is None else _encode_data(data), at)

    def encode(self) -> bytes:
        """Return the report as it is kept in Redis."""
        value: dict[str, Any] = {"done": self.done}
        if self.total is not None:
            value["total"] = self.total
        if self.note:
            value["note"] = self.note
        if self.data:
            value["data"] = orjson.Fragment(self.data)
        return orjson.dumps({**value, "at": self.at})


async def report_progress(done: float, total: float | None = None, note: str = "", data: Any = None) -> None:
    """Report how far the task has come: `done` of `total`. For handlers and their middleware.

    `note` is a text for people (1,000 characters at most), `data` is any JSON (64 KiB at most). Call it as often as you
    like: the last report is written, at most every 0.1 s, and always before the run is settled. While the server cannot
    be reached reports are lost; the task is not.

    Raises LookupError outside a worker's handler, ConfigurationError for a value that cannot be reported.
    """
    reports = _reporter()
    if reports.note(running_delivery(), done, total, note, data):
        reports.wake()
    if reports.due():  # a handler that only reports must let other tasks run, too
        await anyio.lowlevel.checkpoint()


def report_progress_sync(done: float, total: float | None = None, note: str = "", data: Any = None) -> None:
    """Report progress as `report_progress` does, from a handler in a thread.

    Reports of a run that was asked to stop are ignored.
    """
    reports, delivery = _reporter(), running_delivery()
    if cancel_requested():
        return
    must_wake = reports.note(delivery, done, total, note, data)
    if cancel_requested():  # meanwhile, and the run may have been settled already
        reports.forget(delivery)
    elif must_wake:
        from anyio import from_thread  # noqa: PLC0415 - few handlers need it

        with suppress(RuntimeError):  # the event loop has ended, and its worker with it
            from_thread.run_sync(reports.wake)


def _reporter() -> Any:
    try:
        return reporter_var.get()
    except LookupError:
        raise nothing_here("no worker runs here: report progress inside a task's handler") from None


def _encode_data(data: Any) -> bytes:
    try:
        packed = dumps(data)
    except (TypeError, RecursionError) as error:
        raise ConfigurationError(f"data={repr_of(data)} cannot be reported as JSON: {str_of(error)}") from error
    if len(packed) > LARGEST_DATA:
        raise ConfigurationError(f"data of {len(packed)} bytes cannot be reported: give at most {LARGEST_DATA}")
    return packed


name_remedy(report_progress, "report_progress(...)")
