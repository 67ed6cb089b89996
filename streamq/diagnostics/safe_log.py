"""Logging that harms nothing: the one way in which streamq logs.

A filter, a handler or a formatter of the user may raise anything, and so may the `str` and `repr` of what is logged.
That is reported on stderr and swallowed, also SystemExit and KeyboardInterrupt: a task, and a worker, must not end
because something was to be said about it. (Ctrl-C that arrives in just that instant has to be pressed again.) The
report comes with the 1st, 2nd, 4th, 8th, ... fault, so that it floods nothing.

What is logged has a bound: `LOGGED` characters for each value, `TEXT_LOGGED` for each text.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from streamq.diagnostics.log_fields import fields_of
from streamq.diagnostics.safe_text import frames_of, repr_of, str_of, type_name

LOGGED = 1_000  # characters of one value in a line of the log
TEXT_LOGGED = 8_000  # characters of a text: the stack of a handler that blocks, say
DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
_PLAIN = (bool, int, float, type(None))


class LogFaults:
    """How often logging itself failed in this process."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, logger: str, fault: BaseException) -> None:
        """Count a fault, and report some of them on stderr. Never raises."""
        self.count += 1
        if self.count & (self.count - 1):
            return
        try:
            text = ascii(f"{type_name(fault)}: {str_of(fault, 200)}")[1:-1]
            sys.stderr.write(f"streamq: logging to {logger!r} failed, {self.count} times so far: {text}\n")
        except BaseException:  # noqa: BLE001, S110 - stderr may be closed, or an object of the user's
            pass


faults = LogFaults()


class Given(TypedDict, total=False):
    """What a line of the log may have beside its message and its event.

    `of` is the delivery that it is about, `extra` are more fields. `error` is an exception; `trace` its traceback as
    text, where that has been made already. `stack` is that of another thread, which is written below the message.
    """

    of: object
    extra: Mapping[str, Any]
    error: BaseException | None
    trace: str
    stack: str


class SafeLog:
    """A logger whose methods never raise, and never run code of the user outside of their guard.

    Each line has the name of its `event`, and may have fields: the table in `docs/logs.md` has them all.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<SafeLog {self.name}>"

    def takes(self, level: int) -> bool:
        """Is a line of this level logged?"""
        return logging.getLogger(self.name).isEnabledFor(level)

    def debug(self, message: str, *args: object, event: str, **given: Unpack[Given]) -> None:
        """Log at the level DEBUG."""
        self._log(logging.DEBUG, message, args, event, given)

    def info(self, message: str, *args: object, event: str, **given: Unpack[Given]) -> None:
        """Log at the level INFO."""
        self._log(logging.INFO, message, args, event, given)

    def warning(self, message: str, *args: object, event: str, **given: Unpack[Given]) -> None:
        """Log at the level WARNING."""
        self._log(logging.WARNING, message, args, event, given)

    def error(self, message: str, *args: object, event: str, **given: Unpack[Given]) -> None:
        """Log at the level ERROR."""
        self._log(logging.ERROR, message, args, event, given)

    def exception(self, message: str, *args: object, event: str, **given: Unpack[Given]) -> None:
        """Log at the level ERROR, with the traceback of `error`, by default that of the exception in handling."""
        given.setdefault("error", sys.exc_info()[1])
        self._log(logging.ERROR, message, args, event, given)

    def at(self, level: int, message: str, *args: object, event: str, **given: Unpack[Given]) -> None:
        """Log at a level of `logging`."""
        self._log(level, message, args, event, given)

    def _log(self, level: int, message: str, args: tuple[object, ...], event: str, given: Given) -> None:
        try:
            logger = logging.getLogger(self.name)
            if not logger.isEnabledFor(level):
                return
            path, line, function, _ = logger.findCaller(stacklevel=3)
            extra: dict[str, Any] = {"event": event, **fields_of(given.get("of")), **given.get("extra", {})}
            error, stack = given.get("error"), given.get("stack", "")[-TEXT_LOGGED:] or None
            record = logger.makeRecord(
                self.name, level, path, line, message, tuple(map(_shown, args)),
                None if error is None else (type(error), error, frames_of(error)), function, extra, stack,
            )  # fmt: skip
            if trace := given.get("trace", ""):
                record.exc_text = trace
            logger.handle(record)
        except BaseException as fault:  # noqa: BLE001 - see the docstring of this module
            faults.note(self.name, fault)


class _Shown:
    """A value of the user in a record: its texts never raise, and have a bound."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return str_of(self._value, TEXT_LOGGED if type(self._value) is str else LOGGED)

    def __repr__(self) -> str:
        return repr_of(self._value, LOGGED)


class _ShownError:
    """The texts of an exception. Not the exception: it has the frames of its run, and who keeps a line keeps them."""

    __slots__ = ("_repr", "_str")

    def __init__(self, error: object) -> None:
        self._str, self._repr = str_of(error, LOGGED), repr_of(error, LOGGED)

    def __str__(self) -> str:
        return self._str

    def __repr__(self) -> str:
        return self._repr


def _shown(value: object) -> object:
    """Return a value as it is logged: numbers and short texts as they are."""
    kind = type(value)
    if kind in _PLAIN or (kind is str and len(value) <= TEXT_LOGGED):  # type: ignore[arg-type]
        return value
    if issubclass(kind, float):  # for %g: without what a class of the user's makes of it
        return float.__float__(value)  # type: ignore[arg-type]
    if issubclass(kind, BaseException):
        return _ShownError(value)
    return int.__int__(value) if issubclass(kind, int) else _Shown(value)  # type: ignore[arg-type]
