"""Texts of users' values and exceptions, for logs and dead letters. Nothing here raises, and each text has a bound.

`str`, `repr`, the name of a class, a traceback: each runs code of the user, which may raise anything, SystemExit and
KeyboardInterrupt too. The text then says so. Each text can be encoded as UTF-8.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from itertools import islice
from types import TracebackType
from typing import Any

SHOWN = 1_000  # characters of a value in a text
MOST_NOTES = 20  # of an exception (`add_note`) in its traceback
_CUT = "... ({} more characters)"

# The `__traceback__` of an exception, whatever its class makes of attributes.
frames_of: Callable[[BaseException], TracebackType | None] = BaseException.__dict__["__traceback__"].__get__


def str_of(value: object, limit: int = SHOWN) -> str:
    """Return `str(value)`, at most `limit` characters; a text that says so if it raises."""
    if type(value) is str and len(value) <= limit and value.isascii():  # most are, and each line of the log has many
        return value
    return _text(str, "__str__", value, limit)


def repr_of(value: object, limit: int = SHOWN) -> str:
    """Return `repr(value)`, at most `limit` characters; a text that says so if it raises."""
    return _text(repr, "__repr__", value, limit)


def type_name(error: BaseException) -> str:
    """Return the qualified name of the class of an exception."""
    kind = type(error)
    try:
        module, name = kind.__module__, kind.__qualname__
        return _bounded(name if module == "builtins" else f"{module}.{name}", SHOWN)
    except BaseException:  # noqa: BLE001 - its metaclass may raise anything
        return _bounded(type.__dict__["__name__"].__get__(kind), SHOWN)


def traceback_of(error: BaseException, limit: int) -> str:
    """Return the last `limit` characters of the traceback of an exception.

    If the exception cannot be formatted with its causes and notes, the text has its frames and its message alone.
    """
    try:
        text = _formatted(error, limit)
    except BaseException as broken:  # noqa: BLE001 - properties of the exception may raise anything
        text = f"{_frames(error)}{type_name(error)}: {str_of(error)}\n(its causes and notes raise {type_name(broken)})"
    return _utf8(text[-limit:])


def _formatted(error: BaseException, limit: int) -> str:
    """Return the traceback of an exception, with at most `MOST_NOTES` notes of each exception in it."""
    whole = traceback.TracebackException(type(error), error, frames_of(error), compact=True)
    waiting: list[Any] = [whole]
    while waiting:
        one = waiting.pop()
        if one.__notes__ is not None:
            one.__notes__ = _bounded_notes(one.__notes__, limit)
        waiting += [other for other in (one.__cause__, one.__context__, *(one.exceptions or ())) if other is not None]
    return "".join(whole.format())


def _bounded_notes(notes: Any, limit: int) -> list[str]:
    if not isinstance(notes, Sequence):
        return [repr_of(notes, limit)]
    first = [str_of(note, limit) for note in islice(notes, MOST_NOTES + 1)]
    return first if len(first) <= MOST_NOTES else [*first[:MOST_NOTES], "... (more notes)"]


def _frames(error: BaseException) -> str:
    try:
        return "".join(traceback.format_tb(frames_of(error)))
    except BaseException:  # noqa: BLE001 - the loader of a frame's source may raise anything
        return ""


def _text(of: Callable[[Any], str], name: str, value: object, limit: int) -> str:
    try:
        return _bounded(of(value), limit)
    except BaseException as broken:  # noqa: BLE001 - it is the user's code
        return f"<no text: its {name} raised {type_name(broken)}>"


def _bounded(text: str, limit: int) -> str:
    """Return a text, cut to `limit` characters and a note of how many there were."""
    text = str.__str__(text)  # `str(value)` may return an object of a subclass
    if len(text) > limit:
        kept = max(0, limit - 40)
        text = text[:kept] + _CUT.format(len(text) - kept)
    return _utf8(text)


def _utf8(text: str) -> str:
    """Return a text with lone surrogates escaped: they have no UTF-8. Names of files may hold some."""
    return text.encode(errors="backslashreplace").decode()
