"""What runs in a child process of a handler with `run_in="process"`.

anyio talks to the child through its standard input and output. A program that the handler starts inherits both, and a
library in C may print: its output would be taken for replies, and unpickled. So the child moves them to other
descriptors, which no program inherits, before anything of the user is imported. A child that the handler itself forks
does not keep them, or the worker would wait for it when its parent is killed. And it ends with the call: it must not
answer in its parent's place.

Ctrl-C, and a stop of systemd, reach every process of the worker. The worker drains, so the child goes on. It ends with
the worker: at the latest when the worker's end of its standard input is closed, on Linux in the middle of a run, too.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from streamq.client.owner import end_child
from streamq.consumer.process_outcome import Sent, SentRefusal, send_error, send_result, unpack
from streamq.consumer.run_context import RunContext
from streamq.consumer.unrun_result import PLAIN, refuse_unrun
from streamq.diagnostics.safe_text import str_of
from streamq.errors import ArgumentsError
from streamq.handlers.context import note_process
from streamq.tasks.arguments import Arguments, SentArguments
from streamq.tasks.batch import ItemArguments
from streamq.tasks.task import Task

_SIGNALS = [int(number) for number in signal.valid_signals()]
_TIMERS = [getattr(signal, name) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF") if hasattr(signal, name)]
# Not that of `signal`: it looks for an enum for each handler, 20 times slower.
_handler_of: Callable[[int], Any] = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)
_TRIES = 100

_pipes: list[int] = []  # anyio's two, once they are no longer the standard descriptors
_replaced: dict[int, Any] = {}  # the handlers that were there before `_go_on`
_known: dict[tuple[str, str, str], Arguments] = {}  # of the functions that have run here


class _RefusedError(Exception):
    """The arguments do not fit, for this reason."""


class How(NamedTuple):
    """How a function is called. `batch`: with a list of items, and each item of a list that it returns has an outcome
    of its own. `validate`: by its annotations.
    """

    batch: bool
    validate: bool


def get_ready(token: int) -> tuple[int, None]:
    """Is the first call of a process."""
    _set_apart()
    return token, None


def call_by_name(token: int, task: str, module: str, qualname: str, packed: bytes, how: How) -> tuple[int, Sent]:
    """Run a task's function: it is looked up by name, no code is sent. Return its outcome, with the token of the call.

    Nothing is raised: what is raised, and what is returned, anyio pickles; a SystemExit would end this process, and
    the next task with it.
    """
    try:
        _set_apart()
        note_process()
        returned, encode = _run(task, module, qualname, packed, how)
    except _RefusedError as refused:
        return token, SentRefusal(str_of(refused))
    except BaseException as error:  # noqa: BLE001 - as in a thread, whatever it is belongs to this run
        return token, send_error(error)
    return token, send_result(returned, encode, batch=how.batch)


def _run(task: str, module: str, qualname: str, packed: bytes, how: How) -> tuple[Any, Callable[[Any], bytes]]:
    process, put_back, outlive_worker = os.getpid(), _state(), _end_with_worker()
    try:
        with warnings.catch_warnings():  # the next run in this process begins as this one did
            args, kwargs = unpack(packed)
            found: Any = importlib.import_module(module)
            for part in qualname.split("."):
                found = getattr(found, part)
            function: Callable[..., Any] = found.function if isinstance(found, Task) else found
            arguments = _arguments(task, module, qualname, function, how)
            encode = arguments.result_type.encode
            try:
                args, kwargs = _fitted(arguments, args, kwargs, how)
            except ArgumentsError as error:
                raise _RefusedError(error.reason) from None
            returned = RunContext().call(function, *args, **kwargs)
            if type(returned) not in PLAIN:
                refuse_unrun(task, returned)
            return returned, encode
    finally:
        if os.getpid() != process:  # the handler forked, and this is the child
            end_child()
        _insist(put_back)
        _insist(outlive_worker)


def _arguments(task: str, module: str, qualname: str, function: Callable[..., Any], how: How) -> Arguments:
    key = (module, qualname, task)
    if key not in _known:
        kind = ItemArguments if how.batch else Arguments
        _known[key] = kind(task, function, validate=how.validate)
    return _known[key]


def _fitted(arguments: Arguments, args: Sequence[Any], kwargs: Mapping[str, Any], how: How) -> SentArguments:
    """Return arguments that were read from JSON as the function takes them. Raises ArgumentsError."""
    converter = arguments.converter
    if how.batch:
        if converter is None:
            return args, kwargs
        return ([[converter((item,), {})[0][0] for item in args[0]]], kwargs)
    arguments.bind(args, kwargs)
    return (args, kwargs) if converter is None else converter(args, kwargs)


# --- what a run leaves behind -----------------------------------------------------------------


def _state() -> Callable[[], None]:
    """Return what puts back how signals and traces are handled now, and ends timers: they would meet the next run."""
    handlers = {number: _handler_of(number) for number in _SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if hasattr(signal, "pthread_sigmask") else None
    traces: list[tuple[Callable[[Any], object], Any]] = [
        (sys.settrace, sys.gettrace()), (sys.setprofile, sys.getprofile()),
        (threading.settrace, threading.gettrace()), (threading.setprofile, threading.getprofile()),
    ]  # fmt: skip

    def put_back() -> None:
        for set_trace, before in traces:
            set_trace(before)
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            if handler is not None and _handler_of(number) is not handler:
                signal.signal(number, handler)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return put_back


def _insist(step: Callable[[], None]) -> None:
    """Carry out a step, although signal handlers of the run may raise in it, until they are put back."""
    for _ in range(_TRIES):
        try:
            return step()
        except BaseException:  # noqa: BLE001, S112
            continue
    return None


# --- apart from the worker's terminal, pipes and life ----------------------------------------------


def _set_apart() -> None:
    if _pipes:
        return
    copies = _copies_of((0, 1, 2))
    for stream, mode in ((sys.__stdin__, "rb"), (sys.__stdout__, "wb")):
        binary: Any = getattr(stream, "buffer", None)
        raw = getattr(binary, "raw", binary)
        _pipes.append(os.dup(raw.fileno()))
        raw.__init__(_pipes[-1], mode)  # the same object, which anyio holds, on another descriptor
    _close((0, 1, 2, *copies))
    sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115 - those of anyio are the pipes
    sys.__stdout__ = sys.__stderr__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    if hasattr(signal, "pthread_sigmask"):  # a program that the handler starts would inherit the mask
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD})
    for number in (signal.SIGINT, signal.SIGTERM):
        if (before := signal.getsignal(number)) != signal.SIG_IGN:
            _replaced[number] = before
            signal.signal(number, _go_on)  # not SIG_IGN: programs that the handler starts would inherit that
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _copies_of(descriptors: tuple[int, ...]) -> list[int]:
    """Return the other descriptors of the same pipes. uvloop leaves some, and a fork that has them holds the pipes."""
    pipes = {_file_of(one) for one in descriptors} - {None}
    try:
        open_now = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 - pathlib is not loaded for this
    except OSError:  # no system without /dev/fd has uvloop
        return []
    return [one for one in open_now if one not in descriptors and _file_of(one) in pipes]


def _file_of(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:  # the one by which the others were listed
        return None
    return found.st_dev, found.st_ino


def _close(descriptors: tuple[int, ...]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor, inheritable=descriptor <= 2)
    os.close(nothing)


def _go_on(number: int, frame: object) -> None:
    """Do nothing: the worker has had the signal as well, and drains."""


def _after_fork_in_child() -> None:
    """Leave the pipes, so that the worker hears of the end of its process, and mind signals as before."""
    _close(tuple(_pipes))
    for number, before in _replaced.items():
        if signal.getsignal(number) is _go_on:
            signal.signal(number, before)


def _end_with_worker() -> Callable[[], None]:
    """Have the system kill this process if the worker ends meanwhile, even by SIGKILL: another one runs the task again.

    A closed pipe sends a signal to whoever asks for that (Linux). Nothing else is written to it during a run. PDEATHSIG
    would do it when the thread ends that started this process; under trio that is any thread. Return what undoes it.
    """
    pipe = _pipes[0]
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
        import select  # noqa: PLC0415

        before = fcntl.fcntl(pipe, fcntl.F_GETFL)
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, before | os.O_ASYNC)
        poll = select.poll()
    except (ImportError, AttributeError, OSError):  # another system: it ends when its run has ended
        return lambda: None
    poll.register(pipe, 0)
    if poll.poll(0):  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)

    def undo() -> None:
        with suppress(OSError):  # the handler has closed it
            fcntl.fcntl(pipe, fcntl.F_SETFL, before)

    return undo
