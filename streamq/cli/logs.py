"""The log format of a worker process: text, or one JSON object per line. Neither can be forged by what is logged."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from streamq.wire.printable import json_line, printable, printable_lines

_MOST_TRACEBACK: Final = 50_000  # characters of a traceback, from its end
_MOST_WAITING: Final = 10_000  # records that wait for a log that nobody reads
_TEXT: Final = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s[%(process)d] %(message)s"


class TextFormatter(logging.Formatter):
    """Writes one line for a record. The lines of a traceback follow, indented: no text begins a line of its own."""

    def __init__(self) -> None:
        super().__init__(_TEXT, "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text, with escapes for what is not printable."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        lines = [printable(self.formatMessage(record))]
        if record.exc_info and record.exc_info[0] is not None:
            lines.append(self.formatException(record.exc_info))
        elif record.exc_text:
            lines.append(record.exc_text)
        if record.stack_info:
            lines.append(self.formatStack(record.stack_info))
        return "\n".join([lines[0], *(printable_lines(text[-_MOST_TRACEBACK:], indent="    ") for text in lines[1:])])


class JsonFormatter(logging.Formatter):
    """Writes one object per line: ts, level, logger, pid, message; `exc`, `stack`, and `facts` for the banner."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exc"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["exc"] = record.exc_text
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        if (facts := getattr(record, "facts", None)) is not None:
            line["facts"] = facts
        return json_line(line)


class _Aside(logging.Handler):
    """Has another handler write the records, in a thread: whoever logs does not wait for those who read the log."""

    def __init__(self, writer: logging.Handler) -> None:
        super().__init__()
        self._writer = writer
        self._records: queue.SimpleQueue[logging.LogRecord | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="streamq log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on; drop it if very many wait."""
        if self._records.qsize() < _MOST_WAITING:
            self._records.put(record)

    def written(self, seconds: float) -> bool:
        """Wait until all records are written, for this time at most. Are they?"""
        reached = threading.Event()
        self._records.put(reached)
        return reached.wait(seconds)

    def _write(self) -> None:
        while True:
            one = self._records.get()
            if isinstance(one, threading.Event):
                one.set()
            else:
                self._writer.handle(one)


def set_up(log_format: str, level: str) -> None:
    """Send all log records, and Python warnings, to stderr."""
    _install(_writer(log_format), level)


def set_up_aside(log_format: str, level: str) -> Callable[[float], bool]:
    """Do the same from a thread. Return a function that waits, for some seconds, until all is written: is it?"""
    aside = _Aside(_writer(log_format))
    _install(aside, level)
    return aside.written


def _writer(log_format: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    return handler


def _install(handler: logging.Handler, level: str) -> None:
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
