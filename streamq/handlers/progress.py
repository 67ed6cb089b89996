"""Progress: what a running task says of itself, for whoever waits for it or shows it.

A handler may report as often as it likes: a report is noted by its worker's reporter (`reporting.py`).
Loads no Redis client, so that a module of tasks may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio.lowlevel
import orjson

from streamq.errors import BrokerError, ConfigurationError, check_number
from streamq.handlers.context import cancel_requested, current_delivery, reporter
from streamq.wire.message import dumps

LONGEST_NOTE = 1000  # characters
LARGEST_DATA = 65_536  # bytes of JSON


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come: `done` of `total`, in units of its own. `at` is Unix seconds."""

    done: float
    total: float | None = None
    note: str = ""
    data: Any = None
    at: float = 0.0

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1; None if the total is not known."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0

    @classmethod
    def parse(cls, payload: bytes) -> Progress:
        """Return a report as it lies in Redis; only `done` must be there.

        Raises BrokerError for anything else: it was written by nobody of streamq.
        """
        try:
            value: Mapping[str, Any] = orjson.loads(payload)
            total = value.get("total")
            return cls(
                float(value["done"]), None if total is None else float(total), str(value.get("note", "")),
                value.get("data"), float(value.get("at", 0.0)),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BrokerError(f"what lies under a progress key is no progress: {payload[:80]!r}") from error


@dataclass(slots=True)
class Report:
    """What one run said last. `data` is JSON: the handler may change its own copy."""

    done: float
    total: float | None
    note: str
    data: bytes
    at: float

    @classmethod
    def of(cls, done: float, total: float | None, note: str, data: Any, at: float) -> Report:
        """Raises ConfigurationError for what cannot be reported."""
        check_number("done", done, 0.0)
        if total is not None:
            check_number("total", total, 0.0)
        if not isinstance(note, str):
            raise ConfigurationError(f"note={note!r} cannot be reported: give a text")
        note = note[:LONGEST_NOTE].encode(errors="backslashreplace").decode()
        return cls(done, total, note, b"" if data is None else _packed(data), at)

    def packed(self) -> bytes:
        """Return it as it lies in Redis."""
        value: dict[str, Any] = {"done": self.done}
        if self.total is not None:
            value["total"] = self.total
        if self.note:
            value["note"] = self.note
        if self.data:
            value["data"] = orjson.Fragment(self.data)
        return orjson.dumps({**value, "at": self.at})


async def report_progress(done: float, total: float | None = None, note: str = "", data: Any = None) -> None:
    """Say how far the task has come whose handler (or middleware) runs here: `done` of `total`.

    `note` is a text for people (1,000 characters), `data` any JSON (64 KiB). May be called as often as
    one likes: what was reported last is written, at most every 0.1 s, and in any case before the
    run's outcome is settled. A server that is away costs reports and never the task.

    Raises LookupError outside a worker's handler, ConfigurationError for what cannot be reported.
    """
    reports = _reporter()
    if reports.note(current_delivery(), done, total, note, data):
        reports.wake()
    if reports.due():  # a handler that does nothing but report must not hold up the others
        await anyio.lowlevel.checkpoint()


def report_progress_sync(done: float, total: float | None = None, note: str = "", data: Any = None) -> None:
    """Do what `report_progress` does, from a handler in a thread.

    What a run reports after it was told to stop is ignored.
    """
    reports, delivery = _reporter(), current_delivery()
    if cancel_requested():
        return
    must_wake = reports.note(delivery, done, total, note, data)
    if cancel_requested():  # in this instant, and the run is closed already
        reports.forget(delivery)
    elif must_wake:
        from anyio import from_thread  # noqa: PLC0415 - few handlers need it

        with suppress(RuntimeError):  # the event loop has ended, and its worker with it
            from_thread.run_sync(reports.wake)


def _reporter() -> Any:
    try:
        return reporter.get()
    except LookupError:
        raise LookupError("no worker runs here: report progress inside a task's handler") from None


def _packed(data: Any) -> bytes:
    try:
        packed = dumps(data)
    except (TypeError, RecursionError) as error:
        raise ConfigurationError(f"data={data!r} cannot be reported as JSON: {error}") from error
    if len(packed) > LARGEST_DATA:
        raise ConfigurationError(f"data of {len(packed)} bytes cannot be reported: give at most {LARGEST_DATA}")
    return packed
