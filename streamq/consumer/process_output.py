"""What a process of handlers prints: lines of the worker's log, within bounds.

The event loop of the worker logs them, beside all else that it does. So it does that for 5 ms at a time, and all
processes together have a third of its time, whatever they write. The rest waits in the pipes, and so does who writes
it. What one run may have is bounded, too: the log is for all tasks. One line says what was left out.

What is in the pipe when a run has answered is of that run: it is taken out at once, and logged before the run ends.
What comes between two runs is of a program or a thread that a run has left. Nobody waits for that; it may have less.
"""

from __future__ import annotations

import fcntl
import logging
import struct
import sys
import termios
import time
from collections import deque
from contextlib import suppress
from contextvars import Context, copy_context
from typing import BinaryIO, Final

import anyio

from streamq.diagnostics.log_fields import fields_of
from streamq.diagnostics.safe_log import SafeLog
from streamq.handlers.context import delivery_var

log = SafeLog("streamq")

LINES: Final = 10_000  # of one stream of a run, in one window
BYTES: Final = 1 << 20
LINES_BETWEEN: Final = 1_000  # the same for what comes between runs
BYTES_BETWEEN: Final = 1 << 17
WINDOW: Final = 60.0  # seconds
_LOGGER: Final = "streamq.output"
_LONGEST_LINE: Final = 10_000  # bytes; a longer one is several
_READ: Final = 1 << 16  # bytes at a time: what a pipe holds
_MOST_IN_PIPE: Final = 1 << 20  # bytes that a process can make its pipe hold
_SLICE: Final = 0.005  # seconds of logging at a time
_SLICE_LINES: Final = 200
_SHARE: Final = 1 / 3  # of the event loop's time, for all processes
_SHARE_BETWEEN: Final = 0.02  # for one stream, while no run has it
_MOST_WAIT: Final = 30.0  # seconds that a run which has answered waits for its last lines to be logged
_LEAST_WAIT: Final = 0.5  # the same where the run is to end at once: cancelled, or its timeout is over


class Pace:
    """Shares out the event loop's time among all that log for processes: each pays for what it has used, in turn."""

    def __init__(self) -> None:
        self._turn = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Pace {self._turn!r}>"

    async def pay(self, used: float) -> None:
        """Wait as long as others have the event loop for these seconds of it."""
        async with self._turn:
            await anyio.sleep(used * (1 / _SHARE - 1))


class Account:
    """The time that one of them has used, and has not paid for: little is not worth a pause."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._used = 0.0

    def __repr__(self) -> str:
        return f"<Account {self._used:.4f} s>"

    def note(self, begun: float) -> None:
        """Add the time since `begun`, by `time.monotonic`."""
        self._used += time.monotonic() - begun

    async def settle(self) -> float:
        """Pay, if a slice or more was used. Return for how many seconds."""
        if self._used < _SLICE:
            return 0.0
        used, self._used = self._used, 0.0
        await self._pace.pay(used)
        return used


class Output:
    """What a process writes to one of its standard streams: lines of the log, with the fields of the task.

    Where lines of that level are not logged they go to the same stream of the worker, as they do from the event loop
    and from threads.
    """

    def __init__(self, pipe: BinaryIO, stream: str, level: int, pid: int, pace: Pace) -> None:
        self.pipe = pipe
        self.between = copy_context()
        self.between.run(delivery_var.set, None)
        self._stream, self._level, self._pid = stream, level, pid
        self._no_run = self._of = _Lines(self, self.between, LINES_BETWEEN, BYTES_BETWEEN)
        self._waiting: deque[_Piece] = deque()
        self._account = Account(pace)

    def __repr__(self) -> str:
        return f"<Output {self._stream} {len(self._waiting)} pieces wait>"

    async def read(self) -> None:
        """Read until nobody can write any more."""
        try:
            while (found := self._next(_READ)) != b"":
                if found is None:
                    await anyio.wait_readable(self.pipe)
                    continue
                self._waiting.append(_Piece(self._of, found))
                used = await self._log_waiting()
                if self._of is self._no_run:
                    await anyio.sleep(used / _SHARE_BETWEEN)
            self._waiting.append(_Piece(self._of, None))
            await self._log_waiting()
        finally:
            self.pipe.close()

    def run_begins(self, context: Context) -> None:
        """Take what was written before for that of no run. `context`: that of the run that begins."""
        self._collect()
        self._of = _Lines(self, context, LINES, BYTES)

    async def run_ended(self) -> None:
        """Log what the run has written, the line that it did not end as well.

        What takes too long is left out. Nothing here is cancelled: the run may have its result.
        """
        self._collect()
        ended, self._of = self._of, self._no_run
        self._waiting.append(_Piece(ended, None))
        begun = anyio.current_time()
        while not ended.ended:  # beside it, what was left behind goes on writing
            waited = anyio.current_time() - begun
            must_end = waited > _LEAST_WAIT and anyio.current_effective_deadline() <= anyio.current_time()
            if must_end or waited > _MOST_WAIT:
                self._leave_out(ended)
                return
            self._log_slice()
            with anyio.move_on_after(_LEAST_WAIT, shield=True):
                await self._account.settle()

    def _leave_out(self, ended: _Lines) -> None:
        """Count all that waits as left out, and say so."""
        while self._waiting:
            self._waiting.popleft().leave_out()
        ended.end()

    def _collect(self) -> None:
        """Take out of the pipe what is in it now."""
        left = 0 if self.pipe.closed else _held(self.pipe)
        while left > 0 and (found := self._next(min(left, _READ))):
            self._waiting.append(_Piece(self._of, found))
            left -= len(found)

    def _next(self, most: int) -> bytes | None:
        """Return what was written, None if that is nothing, b"" if nobody can write any more."""
        try:
            return b"" if self.pipe.closed else self.pipe.read(most)  # None if there is nothing
        except OSError:
            return b""

    async def _log_waiting(self) -> float:
        """Log what waits, in slices. Return the seconds of the event loop that were used and paid for."""
        used = 0.0
        while self._waiting:
            self._log_slice()
            used += await self._account.settle()
        return used

    def _log_slice(self) -> None:
        begun = time.monotonic()
        for _ in range(_SLICE_LINES):
            if not self._waiting or time.monotonic() - begun >= _SLICE:
                break
            if self._waiting[0].log_line():
                self._waiting.popleft()
        self._account.note(begun)

    def write(self, line: bytes, fields: dict[str, str | int]) -> None:
        """Log a line, in the context of its run."""
        text = line.decode(errors="backslashreplace")
        logger = logging.getLogger(_LOGGER)
        if logger.isEnabledFor(self._level):
            extra = {"event": "output", "stream": self._stream, **fields}
            try:
                record = logger.makeRecord(_LOGGER, self._level, self._stream, 0, "%s", (text,), None, None, extra)
                record.process = self._pid
                logger.handle(record)
            except BaseException as error:  # noqa: BLE001 - a filter or a handler of the user's; as in `safe_log`
                log.warning("a line of a process cannot be logged: %s", error, event="internal_error")
            return
        with suppress(BaseException):  # closed; None, where the program has none; what the user has put there
            getattr(sys, self._stream).write(text + "\n")

    def say_left_out(self, lines: int, size: int, *, of_run: bool) -> None:
        """Log how much was left out, in the context of its run."""
        log.warning(
            "%d lines (%d bytes) of %s of a process (pid %d) were left out: it writes more than is logged %s",
            lines, size, self._stream, self._pid, "of a run" if of_run else "while it runs no task",
            event="output_left_out", of=delivery_var.get(),
            extra={"stream": self._stream, "lines": lines, "bytes": size},
        )  # fmt: skip


class _Lines:
    """The lines of one run, or of none: whose they are, and how many of them are logged."""

    def __init__(self, output: Output, context: Context, most_lines: int, most_bytes: int) -> None:
        self._output = output
        self._context = context
        self._fields = fields_of(context.get(delivery_var))
        self._most = most_lines, most_bytes
        self._window_end = 0.0
        self._lines = self._bytes = 0  # left in this window
        self._left_out = [0, 0]  # lines, bytes
        self._rest = b""
        self.ended = False

    def __repr__(self) -> str:
        return f"<_Lines of {self._fields.get('task_id')}, {self._lines} left, {self._left_out[0]} left out>"

    def full(self) -> bool:
        """Is no more of it logged now?"""
        now = time.monotonic()
        if now >= self._window_end:
            self._say_left_out()
            self._window_end = now + WINDOW
            self._lines, self._bytes = self._most
        return self._lines <= 0 or self._bytes <= 0

    def add(self, part: bytes, *, whole: bool) -> None:
        """Log a line; `whole`: this is its end."""
        line = self._rest + part if self._rest else part
        self._rest = b""
        while len(line) > _LONGEST_LINE:
            self._say(line[:_LONGEST_LINE])
            line = line[_LONGEST_LINE:]
        if whole:
            self._say(line)
        else:
            self._rest = line

    def leave_out(self, lines: int, size: int) -> None:
        """Count what is not logged."""
        if self._rest:
            size += len(self._rest)
            self._rest = b""
        self._left_out[0] += lines
        self._left_out[1] += size

    def end(self) -> None:
        """Log a line that has no end, and say what was left out."""
        self.ended = True
        if self._rest:
            rest, self._rest = self._rest, b""
            self._say(rest)
        self._say_left_out()

    def _say(self, line: bytes) -> None:
        self._lines -= 1
        self._bytes -= len(line) + 1
        self._context.run(self._output.write, line, self._fields)

    def _say_left_out(self) -> None:
        if any(self._left_out):
            (lines, size), self._left_out = self._left_out, [0, 0]
            of_run = self._most[0] == LINES
            self._context.run(self._output.say_left_out, lines, size, of_run=of_run)


class _Piece:
    """Bytes that were read and wait to be logged. `data` is None at the end of their run."""

    def __init__(self, lines: _Lines, data: bytes | None) -> None:
        self._of = lines
        self._data = data
        self._at = 0

    def __repr__(self) -> str:
        return f"<_Piece of {len(self._data or b'')} bytes, {self._at} logged>"

    def log_line(self) -> bool:
        """Log the next line; return True if it was the last. What is over the bound is left out in one step."""
        data = self._data
        if data is None:
            self._of.end()
            return True
        if self._of.full():
            self.leave_out()
            return True
        found = data.find(b"\n", self._at)
        end = len(data) if found < 0 else found
        self._of.add(data[self._at : end], whole=found >= 0)
        self._at = end + 1
        return self._at >= len(data)

    def leave_out(self) -> None:
        """Count what waits instead of logging it."""
        if self._data is not None:
            self._of.leave_out(self._data.count(b"\n", self._at), len(self._data) - self._at)


def _held(pipe: BinaryIO) -> int:
    """Return how many bytes a pipe holds now."""
    try:
        (held,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * struct.calcsize("i")))
    except OSError:
        return 0
    return min(int(held), _MOST_IN_PIPE)
