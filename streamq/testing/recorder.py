"""The log of what happened: written by the processes that saw it, outside Redis, read by the checker.

Every record is one JSON line of one file that all processes append to. A record is one write on a file
opened with O_APPEND, made at once: what a process wrote before it was killed stays, and the order of the
lines is the order of the writes. `time.monotonic` is one clock for all processes of a Linux machine.

Owns the kinds of records and their form; knows nothing of what they prove.
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

# What there is to record, by who sees it. A scenario may add kinds of its own: the checker passes over them.
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
TORN = "torn"  # what the reader makes of a half-written line

_FIRST = b'{"at":'  # how every line begins
_SHOWN = 80  # bytes of a broken line that an error shows
_CANCELLED = b'{"error_type":"Cancelled"'  # how the result of a task begins whose sender cancelled its run

Write = Callable[[bytes], Any]


class Record(NamedTuple):
    """One line of the log. `at` is seconds on the recorders' clock, `details` the whole line."""

    at: float
    who: str
    what: str
    task: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012 - never written to


class LogError(StreamqError):
    """A log holds a line that is no record. `line` counts from 1."""

    def __init__(self, path: str, line: int, text: bytes) -> None:
        self.path = path
        self.line = line
        shown = text[:_SHOWN].decode(errors="backslashreplace")
        super().__init__(f"{path}, line {line}: {shown!r} is no record")


class Recorder:
    """Appends what one process saw, under one name, to a log that others append to as well.

    `sink` is the file, or a callable that takes each line as bytes. `who` names whoever speaks: for a
    worker its consumer name, which is what the final state in Redis knows it by. A Recorder is a listener
    too: `Worker(..., listeners=[recorder])`.

    Raises OSError if the file cannot be written; a record is never dropped in silence.
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
        """Close the file. What was recorded is in it already."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def record(self, what: str, task: str = "", **details: Any) -> None:
        """Write one record, now. `details` must have JSON."""
        self._write(orjson.dumps(self._line(self.who, what, task) | details, option=orjson.OPT_APPEND_NEWLINE))

    def record_of(self, who: str, what: str, task: str = "", **details: Any) -> None:
        """Write a record about somebody else: a scenario says that a worker died."""
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
        """Hear an event of a worker, and record it."""
        match event:
            case Started(delivery):
                self.record("start", _task_id(delivery), **_start(delivery))
            case Settled(delivery, outcome, _):
                self.record("settled", _task_id(delivery), entry=_entry(delivery), **_end(delivery, outcome))
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


def _start(delivery: Delivery) -> dict[str, Any]:
    """Return which start this is. The first says nothing but its entry: there are millions of them."""
    details: dict[str, Any] = {"entry": _entry(delivery)}
    if delivery.starts != 1:
        details["starts"] = delivery.starts
    if delivery.attempt != 1:
        details["attempt"] = delivery.attempt
    if delivery.crashes:
        details["crashes"] = len(delivery.crashes)
    return details


def _end(delivery: Delivery, outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Ack(result):
            return {"outcome": "cancelled" if result.startswith(_CANCELLED) else "ack"}
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

    A line that a killed process left half written becomes a record of the kind `torn`, whether it is the
    last one or another process went on right behind it; the checker asks who was killed.

    Raises LogError, which names the line, for anything else that is no record.
    """
    loads = orjson.loads
    with Path(path).open("rb", buffering=1 << 20) as lines:
        for number, line in enumerate(lines, 1):
            try:
                details = loads(line)
                yield Record(details["at"], details["who"], details["what"], details.get("task", ""), details)
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                yield from _mended(str(path), number, line)


def _mended(path: str, number: int, line: bytes) -> Iterator[Record]:
    """Yield what a broken line still says: that a record was cut off, and the one behind it if there is one."""
    text = line.removesuffix(b"\n")
    cut = text.rfind(_FIRST, 1)
    half, whole = (text, b"") if cut < 0 else (text[:cut], text[cut:])
    last_and_cut = not whole and text == line
    if not (half.startswith(_FIRST) or (half and _FIRST.startswith(half))) or not (whole or last_and_cut):
        raise LogError(path, number, text)
    found: list[Record] = []
    if whole:
        try:
            details = orjson.loads(whole)
            found.append(Record(details["at"], details["who"], details["what"], details.get("task", ""), details))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            if text != line:  # its newline is there, so nobody was killed while it was written
                raise LogError(path, number, text) from None
            found.append(Record(0.0, "", TORN, "", {"line": number}))
    yield Record(0.0, "", TORN, "", {"line": number})
    yield from found
