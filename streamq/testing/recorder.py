"""The log of events: processes write it outside Redis, and the checker reads it.

A record is one JSON line. All processes append to one file, opened with O_APPEND, and each record is one
write, made at once. So the records of a process stay after it is killed, and the order of the lines is the
order of the writes. `time.monotonic` is one clock for all processes of a Linux machine.

Owns the kinds of records and their format. Knows nothing about the promises that they prove.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from streamq.consumer.events import Event, Reclaimed, Recovered, Settled, Started, Superseded, Trouble
from streamq.errors import StreamqError, UndecodableError
from streamq.tasks.outcome import Ack, DeadLetter, Outcome, Postpone, Release, Retry, Skip
from streamq.wire.delivery import Delivery

# The kinds of records, by writer. A scenario may add its own kinds: the checker ignores them.
BY_PRODUCERS = frozenset({"accepted", "unknown", "refused", "withdrawn"})
BY_HANDLERS = frozenset({"effect"})
BY_WORKERS = frozenset(
    {"up", "start", "settled", "superseded", "reclaimed", "trouble", "recovered", "stopping", "stopped"}
)
BY_SCENARIOS = frozenset(
    {
        "died",
        "frozen",
        "thawed",
        "cut",
        "healed",
        "blocked",
        "unblocked",
        "down",
        "back",
        "wiped",
        "fault",
        "stop",
        "exit",
    }
)
KINDS = BY_PRODUCERS | BY_HANDLERS | BY_WORKERS | BY_SCENARIOS
TORN = "torn"  # the kind that the reader gives to a half-written line

_LINE_START = b'{"at":'  # how every line begins
_MAX_SHOWN = 80  # bytes of an invalid line that an error shows
_CANCELLED_RESULT = b'{"error_type":"Cancelled"'  # start of the result of a run that its producer cancelled

Write = Callable[[bytes], Any]


class Record(NamedTuple):
    """One line of the log. `at` is seconds on the recorders' clock, `details` the whole line."""

    at: float
    who: str
    what: str
    task: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012 - never written to


class LogError(StreamqError):
    """A line of a log is not a record. `line` counts from 1."""

    def __init__(self, path: str, line: int, text: bytes) -> None:
        self.path = path
        self.line = line
        shown = text[:_MAX_SHOWN].decode(errors="backslashreplace")
        super().__init__(f"{path}, line {line}: {shown!r} is not a record; check that the file is a log of a Recorder")


class Recorder:
    """Appends the records of one process to a log that other processes append to as well.

    `sink` is the file, or a callable that takes each line as bytes. `who` is the name of the writer. For a
    worker give its consumer name, because the final state in Redis has that name. A Recorder is also a
    listener: `Worker(..., listeners=[recorder])`. `clock` returns seconds.

    Raises OSError if the file cannot be written. It never drops a record without an error.
    """

    def __init__(self, sink: Path | str | Write, who: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.who = who
        self._clock = clock
        self._file: int | None = None
        self._where = repr(sink)
        if isinstance(sink, Path | str):
            self._file = os.open(sink, os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
            self._write: Write = self._append
        else:
            self._write = sink

    def __repr__(self) -> str:
        return f"<Recorder {self.who} to {self._where}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. All records are already written."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def record(self, what: str, task: str = "", **details: Any) -> None:
        """Write one record at once. `details` must have JSON."""
        self._write(orjson.dumps(self._line(self.who, what, task) | details, option=orjson.OPT_APPEND_NEWLINE))

    def record_of(self, who: str, what: str, task: str = "", **details: Any) -> None:
        """Write a record about another process, for example that a worker died."""
        self._write(orjson.dumps(self._line(who, what, task) | details, option=orjson.OPT_APPEND_NEWLINE))

    def _line(self, who: str, what: str, task: str) -> dict[str, Any]:
        line: dict[str, Any] = {"at": round(self._clock(), 6), "who": who, "what": what}
        if task:
            line["task"] = task
        return line

    def _append(self, line: bytes) -> None:
        if self._file is None:
            raise ValueError(f"{self!r} is closed")
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self!r}: only part of a record could be written; is the disk full?")

    def __call__(self, event: Event) -> None:
        """Record an event of a worker."""
        match event:
            case Started(delivery):
                self.record("start", _task_id(delivery), **_start_details(delivery))
            case Settled(delivery, outcome, _):
                self.record(
                    "settled", _task_id(delivery), entry=_entry(delivery), **_outcome_details(delivery, outcome)
                )
            case Reclaimed(delivery, died):
                self.record("reclaimed", _task_id(delivery), entry=_entry(delivery), died=died)
            case Superseded(delivery):
                self.record("superseded", _task_id(delivery), entry=_entry(delivery))
            case Trouble(error):
                self.record("trouble", error=error)
            case Recovered(after):
                self.record("recovered", after=round(after, 6))


def _task_id(delivery: Delivery) -> str:
    try:
        return delivery.task_id
    except UndecodableError:
        return _entry(delivery)


def _entry(delivery: Delivery) -> str:
    return delivery.entry_id.decode()


def _start_details(delivery: Delivery) -> dict[str, Any]:
    """Return the details of a start. A first start has only its entry, because there are millions of them."""
    details: dict[str, Any] = {"entry": _entry(delivery)}
    if delivery.starts != 1:
        details["starts"] = delivery.starts
    if delivery.attempt != 1:
        details["attempt"] = delivery.attempt
    if delivery.crashed_workers:
        details["crashes"] = len(delivery.crashed_workers)
    return details


def _outcome_details(delivery: Delivery, outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Ack(result):
            return {"outcome": "cancelled" if result.startswith(_CANCELLED_RESULT) else "ack"}
        case DeadLetter(reason, failure):
            return {"outcome": "dead", "reason": str(reason), "error": f"{failure.error_type}: {failure.error[:200]}"}
        case Retry(delay):
            return {"outcome": "retry", "attempt": delivery.attempt, "delay": round(delay, 6)}
        case Postpone(delay):
            return {"outcome": "postpone", "delay": round(delay, 6)}
        case Release():
            return {"outcome": "release"}
        case Skip():
            return {"outcome": "skip"}


def read(path: Path | str) -> Iterator[Record]:
    """Yield the records of a log, in the order in which they were written.

    A line that a killed process left half written becomes a record of the kind `torn`. It may be the last line, or
    the record of another process may follow on the same line. The checker compares these with the kills.

    Raises LogError, which names the line, for any other line that is not a record.
    """
    loads = orjson.loads
    with Path(path).open("rb", buffering=1 << 20) as lines:
        for number, line in enumerate(lines, 1):
            try:
                details = loads(line)
                yield Record(details["at"], details["who"], details["what"], details.get("task", ""), details)
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                yield from _split_torn_line(str(path), number, line)


def _split_torn_line(path: str, number: int, line: bytes) -> Iterator[Record]:
    """Yield a `torn` record for an incomplete line, and the complete record after it if there is one."""
    text = line.removesuffix(b"\n")
    cut = text.rfind(_LINE_START, 1)
    torn, complete = (text, b"") if cut < 0 else (text[:cut], text[cut:])
    torn_at_end = not complete and text == line
    if not (torn.startswith(_LINE_START) or (torn and _LINE_START.startswith(torn))) or not (complete or torn_at_end):
        raise LogError(path, number, text)
    records: list[Record] = []
    if complete:
        try:
            details = orjson.loads(complete)
            records.append(Record(details["at"], details["who"], details["what"], details.get("task", ""), details))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            if text != line:  # it ends with a newline, so no kill cut it off
                raise LogError(path, number, text) from None
            records.append(Record(0.0, "", TORN, "", {"line": number}))
    yield Record(0.0, "", TORN, "", {"line": number})
    yield from records
