"""The log of a worker process: where its lines go, in which format, and who writes them."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any, Final

from streamq.diagnostics.safe_log import SafeLog, faults
from streamq.logs import JsonFormatter, TaskFields, TextFormatter

log = SafeLog("streamq.cli")

_MOST_WAITING: Final = 10_000  # records that wait for a log that nobody reads


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


def join_configuration(log_format: str, level: str, explicit: Collection[str]) -> None:
    """Decide between the options and what modules have configured meanwhile, as Django's LOGGING does.

    Of the options those in `explicit` ("log_format", "log_level") were given, and win on the root logger: its handlers
    that write to the terminal are replaced, others stay. Otherwise the module's configuration stays, and one line says
    so. Loggers of streamq that `dictConfig` has disabled are enabled again: it does so to all that exist.
    """
    root = logging.getLogger()
    _enable_own()
    if any(isinstance(handler, _Writer) for handler in root.handlers):
        return
    if not explicit:
        if not any(isinstance(one, TaskFields) for handler in root.handlers for one in handler.filters):
            log.info(
                "a module has configured the root logger: lines are as that says, without the fields of tasks. Give "
                "its handlers the filter streamq.logs.TaskFields, or the worker --log-format", event="log_configured",
            )  # fmt: skip
        return
    for handler in [*root.handlers]:
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.stdout):
            root.removeHandler(handler)
    writer = _writer(log_format)
    writer.addFilter(TaskFields())
    root.addHandler(writer)
    if "log_level" in explicit:
        root.setLevel(level.upper())
    given = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(explicit))
    log.info("a module has configured the root logger: %s replaced its handlers to the terminal", given,
             event="log_configured")  # fmt: skip


def _enable_own() -> None:
    """Enable the loggers of streamq: `dictConfig` in a module disables all that exist, and deaths were not logged."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and (name == "streamq" or name.startswith("streamq.")):
            logger.disabled = False


class _Writer(logging.StreamHandler[Any]):
    """Writes to stderr. What raises meanwhile is reported there as streamq reports it, and harms nobody."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            super().emit(record)
        except BaseException:  # noqa: BLE001 - a formatter, a stream, an object of the user's
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name in logging
        """Report the exception in handling."""
        if (error := sys.exc_info()[1]) is not None:
            faults.note(record.name, error)


def _writer(log_format: str) -> logging.Handler:
    handler = _Writer(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    return handler


def _install(handler: logging.Handler, level: str) -> None:
    handler.addFilter(TaskFields())  # of the one that is called where a line is logged
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
