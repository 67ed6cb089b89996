"""The frames of an exception, sent to another process: what reads tracebacks there (`logging`, Sentry) sees them.

A traceback cannot leave its process. But one can be made of code objects that have the names of others: tblib does so,
too. It is a dependency more for these lines, and has no bound on how many frames there are.
"""

from __future__ import annotations

import sys
from types import CodeType, TracebackType
from typing import Any, Final, NamedTuple

from streamq.diagnostics.safe_text import frames_of, str_of

_FIRST: Final = 20  # frames that are kept of a deep traceback
_LAST: Final = 60
_LONGEST: Final = 1_000  # characters of a name
_STUB: Final = compile("raise LookupError", "", "exec")


class SentFrame(NamedTuple):
    """Where a frame was: what its module is called, and the line that it had reached."""

    file: str
    module: str
    function: str
    line: int


def sent_frames(error: BaseException) -> tuple[SentFrame, ...]:
    """Return the frames of an exception, the innermost last; those between are left out where they are very many."""
    found: list[SentFrame] = []
    trace = frames_of(error)
    while trace is not None:
        code = trace.tb_frame.f_code
        module = str_of(trace.tb_frame.f_globals.get("__name__", ""), _LONGEST)
        found.append(SentFrame(code.co_filename[:_LONGEST], module, code.co_name[:_LONGEST], trace.tb_lineno or 0))
        trace = trace.tb_next
        if len(found) > 2 * (_FIRST + _LAST):
            found = found[:_FIRST] + found[-_LAST:]
    return tuple(found if len(found) <= _FIRST + _LAST else found[:_FIRST] + found[-_LAST:])


def traceback_with(frames: tuple[SentFrame, ...]) -> TracebackType | None:
    """Return a traceback with these frames, None if there are none."""
    trace = None
    for one in reversed(frames):
        names: dict[str, Any] = {"co_filename": one.file, "co_name": one.function, "co_firstlineno": max(1, one.line)}
        trace = _around(trace, _STUB.replace(**names), one)
    return trace


def _around(inner: TracebackType | None, code: CodeType, sent: SentFrame) -> TracebackType:
    try:
        exec(code, {"__name__": sent.module, "__file__": sent.file})  # noqa: S102 - one `raise`, see _STUB
    except LookupError as error:
        outer = frames_of(error)
        assert outer is not None  # noqa: S101 - it was raised
        assert outer.tb_next is not None  # noqa: S101 - by the stub
        return TracebackType(inner, outer.tb_next.tb_frame, -1, sent.line)  # -1: its columns are those of the stub
    raise SystemError(sys.version)
