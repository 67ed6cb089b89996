"""A process of handlers, seen from its worker: its start, one call after the other, what it prints, its end.

It is a `Popen` with a socket and pipes of its own. No child watcher, no signal of a child and no thread has a part in
it, so it is the same under asyncio, uvloop and trio. Its end shows as the end of its socket.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Final

import anyio
import orjson

from streamq.consumer.process_frames import HEADER, KINDS, Call, Kind, Setup, SpoiledError, frame, parse_header
from streamq.consumer.process_outcome import Sent, SentError, error_of, unpack_answer
from streamq.consumer.process_output import Account, Output, Pace
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import frames_of
from streamq.errors import ConfigurationError
from streamq.handlers.context import delivery_var, reporter_var

log = SafeLog("streamq")

START_TIMEOUT: Final = 120.0  # seconds; the modules of the tasks are imported in it
_READ: Final = 1 << 18  # bytes at a time
_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM}
_PROGRAM: Final = (
    "import json,sys;a,b=map(int,sys.argv[1:]);f=open(a,'rb',0,closefd=False);"
    "sys.path[:],sys.argv[:]=json.loads(f.readline());"
    "from streamq.consumer.process_child import serve;serve(a,b)"
)
_alive: weakref.WeakSet[ProcessHandle] = weakref.WeakSet()


class EndedError(Exception):
    """Raised where a process ends before it has answered. `begun`: the call had arrived."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun


class FailedError(Exception):
    """Raised if a process says that it cannot begin, and why."""


class ProcessHandle:
    """One process. `runs` counts its calls, `memory` is what it had after the last one, in bytes.

    `code` is how it ended: its exit code, a signal below 0, None while it runs or if that is not known.
    """

    def __init__(self, pace: Pace) -> None:
        """Start a process, whose lines are logged at this pace.

        Raises OSError if the system has none, or nothing that one needs.
        """
        _fill_standard_files()
        opened: list[Any] = []
        try:
            ours, theirs = socket.socketpair()
            opened += ours, theirs
            held, lifeline = _pipe(opened, blocking=True)
            outputs = [_pipe(opened) for _ in range(2)]
            ours.setblocking(False)
            with _signals_blocked():
                self._popen = subprocess.Popen(  # noqa: S603 - this interpreter, and a text of ours
                    [sys.executable, *_flags(), "-c", _PROGRAM, str(theirs.fileno()), str(held.fileno())],
                    stdin=subprocess.DEVNULL, stdout=outputs[0][1], stderr=outputs[1][1],
                    pass_fds=[theirs.fileno(), held.fileno()],
                )  # fmt: skip
        except BaseException:
            for one in opened:
                one.close()
            raise
        for one in (theirs, held, outputs[0][1], outputs[1][1]):
            one.close()
        self.pid = self._popen.pid
        self.code: int | None = None
        self.runs = 0
        self.memory = 0
        self.started = False  # it can be asked
        self.replacing = False  # another one starts in its place
        self.retired = False  # another one has started: it takes no more calls
        self.spoiled = False  # a run left it in a state in which no other must begin
        self.idle_since = 0.0
        (out, _), (err, _) = outputs
        self.outputs = [
            Output(out, "stdout", logging.INFO, self.pid, pace),
            Output(err, "stderr", logging.WARNING, self.pid, pace),
        ]  # fmt: skip
        self._socket = ours
        self._lifeline = lifeline
        self._logging = Account(pace)
        self._calls = 0
        self._gone = False
        _alive.add(self)

    def __repr__(self) -> str:
        state = f"ended with {self.code}" if self._gone else "runs"
        return f"<ProcessHandle pid={self.pid} {state} runs={self.runs}>"

    # --- calls -------------------------------------------------------------------------------

    async def begin(self, setup: Setup) -> None:
        """Wait until the process can be asked.

        Raises FailedError with the reason if it cannot begin, EndedError if it has ended, TimeoutError if it takes too
        long.
        """
        import pickle  # noqa: PLC0415

        with anyio.fail_after(START_TIMEOUT):
            await self._send(orjson.dumps([sys.path, sys.argv], default=str) + b"\n")
            kind, body = await self._ask(Kind.SETUP, pickle.dumps(tuple(setup)))
        await self._outputs_ended()
        if kind is Kind.FAILED:
            raise FailedError(body.decode(errors="backslashreplace"))

    async def call(self, call: Call) -> Sent:
        """Run a function in the process; return its outcome.

        Raises EndedError if the process ends before it answers, SpoiledError if what it answers is none.
        """
        import pickle  # noqa: PLC0415

        self.runs += 1
        context = copy_context()
        for output in self.outputs:
            output.run_begins(context)
        try:
            _, answer = await self._ask(Kind.RUN, pickle.dumps(tuple(call)))
            try:
                sent, self.memory, self.spoiled = unpack_answer(answer)
            except Exception as error:
                raise SpoiledError from error
            return sent
        except anyio.get_cancelled_exc_class():
            self.kill()  # before its lines are logged
            raise
        finally:
            await self._outputs_ended()

    async def _outputs_ended(self) -> None:
        for output in self.outputs:
            await output.run_ended()

    async def _ask(self, asked: Kind, body: bytes) -> tuple[Kind, bytes]:
        self._calls += 1
        begun = False
        try:
            await self._send(frame(asked, self._calls, body))
            while True:
                kind, call, length = parse_header(await self._receive(HEADER.size))
                body = await self._receive(length)
                if kind is Kind.BEGUN:
                    begun = True
                elif kind is Kind.LOG:
                    since = time.monotonic()
                    _log_record(body, None if call == self._calls else self.outputs[0].between)
                    self._logging.note(since)
                    await self._logging.settle()
                elif kind is Kind.PROGRESS:
                    if call == self._calls:  # else of a thread that an earlier run has left
                        _note_progress(body)
                elif kind in {Kind.READY, Kind.FAILED} if asked is Kind.SETUP else kind is Kind.ANSWER:
                    if asked is Kind.RUN and call != self._calls:
                        raise SpoiledError
                    return kind, body
                else:
                    raise SpoiledError
        except (EOFError, OSError) as error:
            raise EndedError(begun=begun) from error

    async def _send(self, data: bytes) -> None:
        view, at = memoryview(data), 0
        while at < len(data):
            try:
                at += self._socket.send(view[at : at + _READ])
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    async def _receive(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            try:
                part = self._socket.recv(min(_READ, length - len(found)))
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            if not part:
                raise EOFError
            found += part
            if length == HEADER.size and found[0] not in KINDS:  # at once: somebody's text may be shorter than a header
                raise SpoiledError
        return bytes(found)

    # --- the end -----------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Has it ended? It is waited for, if it has."""
        if not self._gone:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                self._gone, self._popen.returncode = True, 0
            else:
                if pid:
                    self._gone, self.code = True, os.waitstatus_to_exitcode(status)
                    self._popen.returncode = self.code
        return self._gone

    def kill(self) -> None:
        """End it at once."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def leave(self) -> None:
        """Have it end by itself: it reads the end of its socket."""
        self._socket.close()

    async def wait(self) -> None:
        """Wait until it has ended."""
        pause = 0.001
        while not self.ended:
            await anyio.sleep(pause)
            pause = min(0.05, pause * 2)

    def close(self) -> None:
        """Close what leads to it, but for its output: a program that it has started may have that still."""
        self._socket.close()
        self._lifeline.close()


def _log_record(body: bytes, context: Context | None) -> None:
    """Give a record of a process to the logger of that name here. `context`: that of no run, for one between two.

    Raises SpoiledError for what is none.
    """
    try:
        parts = orjson.loads(body)
        error = parts.pop("error", None)
        record = logging.makeLogRecord({**parts.pop("extra"), **parts})
        logger = logging.getLogger(record.name)
        wanted = logger.isEnabledFor(record.levelno)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpoiledError from error
    if not wanted:
        return
    if error is not None:
        record.exc_info = _exception_of(error)
    try:
        if context is None:
            logger.handle(record)
        else:
            context.run(logger.handle, record)
    except BaseException as error:  # noqa: BLE001 - a filter or a handler of the user's; as in `safe_log`
        log.warning("a line of a process cannot be logged: %s", error, event="internal_error")


def _exception_of(packed: str) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return the exception of a record, as `logging` has it. Raises SpoiledError for what is none."""
    try:
        sent, *_ = unpack_answer(b64decode(packed))
    except Exception as spoiled:
        raise SpoiledError from spoiled
    if not isinstance(sent, SentError):
        raise SpoiledError
    error = error_of(sent)
    return type(error), error, frames_of(error)


def _note_progress(body: bytes) -> None:
    delivery, reports = delivery_var.get(), reporter_var.get(None)
    if delivery is None or reports is None:
        return
    try:
        told = orjson.loads(body)
        must_wake = reports.note(delivery, told["done"], told.get("total"), told.get("note", ""), told.get("data"))
    except (ValueError, KeyError, TypeError, AttributeError, ConfigurationError) as error:
        raise SpoiledError from error
    if must_wake:
        reports.wake()


def _pipe(opened: list[Any], *, blocking: bool = False) -> tuple[Any, Any]:
    reading, writing = os.pipe()
    pipe = os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
    opened += pipe
    os.set_blocking(reading, blocking)
    return pipe


def _fill_standard_files() -> None:
    """Have the first three descriptors open: a pipe with such a number would be lost in the process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _flags() -> list[str]:
    """Return the options of this interpreter (-O, -W, -X), as multiprocessing passes them on."""
    found: Callable[[], list[str]] | None = getattr(subprocess, "_args_from_interpreter_flags", None)
    return [] if found is None else found()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have a process start with SIGINT and SIGTERM blocked: Ctrl-C meets it before it can set them aside."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close_in_child() -> None:
    """Leave the processes of the parent to it, in the child of a fork: they end with the worker, not with its forks."""
    for one in list(_alive):
        one.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
