"""The socket of a process that runs handlers, seen from that process: frames, reports of progress.

Threads and signal handlers of the user may write at any moment, also in the middle of a write of the same thread. Such
a frame waits in the queue, and the write that it met sends it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

from streamq.consumer.process_frames import HEADER, Kind, frame, parse_header
from streamq.handlers.progress import Report
from streamq.wire.delivery import Delivery

_EVERY: Final = 0.1  # seconds between two reports of progress: the worker writes no more of them either


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
