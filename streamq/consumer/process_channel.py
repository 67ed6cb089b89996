"""The socket of a process that runs handlers, seen from that process: frames, log lines, reports of progress.

Threads and signal handlers of the user may write at any moment, also in the middle of a write of the same thread. Such
a frame waits in the queue, and the write that it met sends it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

import orjson

from streamq.consumer.process_frames import HEADER, Kind, frame, parse_header
from streamq.diagnostics.log_fields import OF_EVERY_RECORD, message_of
from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.handlers.progress import Report
from streamq.wire.delivery import Delivery

_EVERY: Final = 0.1  # seconds between two reports of progress: the worker writes no more of them either
_LONGEST_TEXT: Final = 100_000  # characters of a text in a log record
_LONGEST_VALUE: Final = 10_000  # characters of a value of `extra` that JSON lacks
_MOST_FIELDS: Final = 100
_PLAIN: Final = (bool, int, float, str, type(None))
_COPIED: Final = ("name", "levelno", "levelname", "created", "msecs", "pathname", "filename", "module", "lineno",
                  "funcName", "thread", "threadName", "process", "processName")  # fmt: skip


# The number of the call that the code here belongs to: 0 for a thread that a handler has started, whose lines are those
# of no task, and that of an earlier call for what that has left.
call_var: ContextVar[int] = ContextVar("streamq_call", default=0)


class Channel:
    """The end of the socket that a process has."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._waiting: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._writer: int | None = None
        self.closed = False

    def __repr__(self) -> str:
        return f"<Channel {len(self._waiting)} waiting>"

    @property
    def descriptor(self) -> int:
        """The file descriptor of the socket."""
        return self._socket.fileno()

    def receive(self) -> tuple[Kind, int, bytes] | None:
        """Return the next frame; None if the worker has closed its end."""
        header = self._read(HEADER.size)
        if header is None:
            return None
        kind, call, length = parse_header(header)
        body = self._read(length)
        return None if body is None else (kind, call, body)

    def _read(self, length: int) -> bytes | None:
        found = bytearray(length)
        view, at = memoryview(found), 0
        while at < length:
            try:
                read = self._socket.recv_into(view[at:])
            except ConnectionError:  # it was closed before all was read there
                return None
            if not read:
                return None
            at += read
        return bytes(found)

    def send(self, kind: Kind, call: int, body: bytes = b"") -> None:
        """Send a frame, whole. What the worker does not read any more is dropped."""
        if self.closed:
            return
        self._waiting.append(frame(kind, call, body))
        if self._writer == threading.get_ident():  # a signal handler, in the middle of the loop below
            return
        with self._lock:
            self._writer = threading.get_ident()
            before = _block_signals()
            try:
                while self._waiting:
                    with suppress(OSError):
                        self._socket.sendall(self._waiting.popleft())
            finally:
                self._writer = None
                _unblock_signals(before)

    def leave(self) -> None:
        """In a child that a handler has forked: it must not answer in its parent's place."""
        self.closed = True
        self._lock, self._writer = threading.Lock(), None
        self._waiting.clear()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, self._socket.fileno(), inheritable=False)
        os.close(nothing)


def _block_signals() -> set[signal.Signals] | None:
    """Block signals in this thread: one that raises must not leave half a frame behind."""
    if not hasattr(signal, "pthread_sigmask"):
        return None
    return signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # type: ignore[return-value]


def _unblock_signals(before: set[signal.Signals] | None) -> None:
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ToWorker(logging.Handler):
    """Sends each record to the worker, which gives it to its own logger of that name, with the fields of the task."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. Never raises for what the user has put into it."""
        try:
            self._channel.send(Kind.LOG, call_var.get(), _encoded(_parts(record)))
        except Exception:  # noqa: BLE001 - the user's values may raise anything
            self.handleError(record)


def _parts(record: logging.LogRecord) -> dict[str, Any]:
    given = record.__dict__
    parts = {name: given.get(name) for name in _COPIED}
    parts["msg"] = str_of(message_of(record), _LONGEST_TEXT)
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    parts["exc_text"] = record.exc_text and str_of(record.exc_text, _LONGEST_TEXT)
    parts["stack_info"] = record.stack_info and str_of(record.stack_info, _LONGEST_TEXT)
    extra = {str_of(name, 256): value for name, value in given.items() if name not in OF_EVERY_RECORD}
    parts["extra"] = dict(list(extra.items())[:_MOST_FIELDS])
    return parts


def _encoded(parts: dict[str, Any]) -> bytes:
    """Return the parts of a record as JSON; a value that JSON lacks is its text, and so is one that is too deep."""
    try:
        return orjson.dumps(parts, default=_text)
    except TypeError:
        extra = {name: value if type(value) in _PLAIN else _text(value) for name, value in parts["extra"].items()}
        return orjson.dumps({**parts, "extra": extra}, default=_text)


def _text(value: Any) -> str:
    return repr_of(value, _LONGEST_VALUE)


class Reports:
    """What one run reports of its progress goes to the reporter of the worker, the latest at the end of the run."""

    def __init__(self, channel: Channel, call: int) -> None:
        self._channel = channel
        self._call = call
        self._unsent: bytes | None = None
        self._sent_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Reports to the worker, unsent={self._unsent!r}>"

    def note(self, delivery: Delivery, done: float, total: float | None, note: str, data: Any) -> bool:  # noqa: ARG002
        """Take a report. Raises ConfigurationError for a value that cannot be reported. There is nothing to wake."""
        report = Report.of(done, total, note, data, 0.0)
        self._unsent = report.encode()
        if time.monotonic() >= self._sent_at + _EVERY:
            self.flush()
        return False

    def flush(self) -> None:
        """Send the latest report, if it has not been sent."""
        if self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            self._sent_at = time.monotonic()
            self._channel.send(Kind.PROGRESS, self._call, unsent)

    def forget(self, delivery: Delivery) -> None:
        """Do nothing: nobody asks a process to stop."""

    def wake(self) -> None:
        """Do nothing: there is no loop here."""

    def due(self) -> bool:
        """Return False: there is no loop here that must be let run."""
        return False
