"""What runs in a process of handlers with `run_in="process"`.

It has a socket of its own to its worker (`process_channel`), on which nothing else writes. Its standard input is empty;
its standard output and error are pipes, whose lines the worker logs with the fields of the task. A child that the
handler itself forks keeps neither the socket nor the pipe below, or the worker would wait for it when its parent is
killed. And it ends with the call: it must not answer in its parent's place.

Ctrl-C, and a stop of systemd, reach every process of the worker. The worker drains, so this one goes on. It ends with
the worker: at the latest when the worker's end of the socket is closed, on Linux in the middle of a run, too.
"""

from __future__ import annotations

import importlib
import os
import pickle
import runpy
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from streamq.consumer.process_channel import Channel, Reports, call_var
from streamq.consumer.process_frames import Call, How, Kind, Setup
from streamq.consumer.process_logging import log_to_worker
from streamq.consumer.process_outcome import (
    Sent,
    SentRefusal,
    needs_main_module,
    pack_answer,
    send_error,
    send_result,
    unpack,
)
from streamq.consumer.process_streams import StandardStreams, flush_streams
from streamq.consumer.resident_memory import resident_bytes
from streamq.consumer.run_context import RunContext
from streamq.consumer.unrun_result import PLAIN, refuse_unrun
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import ArgumentsError
from streamq.handlers.context import delivery_var, note_process, reporter_var
from streamq.tasks.arguments import Arguments, SentArguments
from streamq.tasks.batch import ItemArguments
from streamq.tasks.task import Task
from streamq.wire.delivery import Delivery

_SIGNALS = [int(number) for number in signal.valid_signals()]
_TIMERS = [getattr(signal, name) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF") if hasattr(signal, name)]
# Not that of `signal`: it looks for an enum for each handler, 20 times slower.
_handler_of: Callable[[int], Any] = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)
_TRIES = 100

_replaced: dict[int, Any] = {}  # the handlers that were there before `_go_on`
_known: dict[tuple[str, str, str], Arguments] = {}  # of the functions that have run here


class _RefusedError(Exception):
    """The arguments do not fit, for this reason."""


class _MainModuleError(Exception):
    """The main module of the program cannot be loaded here."""


def serve(descriptor: int, lifeline: int) -> None:
    """Run tasks for the worker at the other end of a socket, until that is closed. Is the whole life of a process."""
    channel = Channel(descriptor)
    _set_apart(channel, lifeline)
    _end_with_worker(lifeline)
    (_, _, body) = channel.receive() or sys.exit(0)
    setup = Setup(*pickle.loads(body))  # noqa: S301 - from our own worker
    note_process()
    try:
        _begin(setup, channel)
    except BaseException as error:  # noqa: BLE001 - the user's code
        channel.send(Kind.FAILED, 0, _why(error, setup).encode(errors="backslashreplace"))
        flush_streams()
        sys.exit(1)
    flush_streams()
    streams = StandardStreams()  # after the initializer: what that sets is for all runs
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=streams.leave)
    channel.send(Kind.READY, 0)
    while (told := channel.receive()) is not None:
        _, number, body = told
        channel.send(Kind.BEGUN, number)
        reports = Reports(channel, number)
        run = partial(_outcome, Call(*pickle.loads(body)), setup, reports)  # noqa: S301
        outcome = _numbered(number, run)
        flush_streams()
        spoiled = streams.put_back()
        flush_streams()  # what could not be written where it pointed
        reports.flush()
        channel.send(Kind.ANSWER, number, pack_answer(outcome, resident_bytes(), spoiled=spoiled))


def _numbered(number: int, run: Callable[[], Sent]) -> Sent:
    """Call a function as the call of this number: log lines and progress say whose they are."""
    context = copy_context()
    context.run(call_var.set, number)
    return context.run(run)


def _begin(setup: Setup, channel: Channel) -> None:
    """Do what comes before the first run: log lines, the modules of the tasks, the initializer."""
    log_to_worker(channel, setup.levels, setup.disabled, warnings=setup.warnings)
    if "__main__" in setup.modules:
        _load_main(setup)
    for module in setup.modules:
        with suppress(Exception):  # the run of a task of it raises that again
            importlib.import_module(module)
    if setup.initializer is not None:
        _found(*setup.initializer)()


def _why(error: BaseException, setup: Setup) -> str:
    if isinstance(error, _MainModuleError):
        return str_of(error)
    name = ".".join(setup.initializer or ())
    return f"its initializer, {name}, failed: {type_name(error)}: {str_of(error)}"


def _load_main(setup: Setup) -> None:
    """Load the main module of the program, under another name, as multiprocessing does. Once."""
    if setup.main is None or "__mp_main__" in sys.modules:
        return
    by, where = setup.main
    sys.modules.pop("__main__", None)  # see `refuse_in_loading_process`
    load: Callable[..., dict[str, Any]] = runpy.run_module if by == "name" else runpy.run_path
    options: dict[str, Any] = {"alter_sys": True} if by == "name" else {}
    try:
        found = load(where, run_name="__mp_main__", **options)
    except BaseException as error:
        text = f"it could not load the main module of the program, {where}: {type_name(error)}: {str_of(error)}"
        raise _MainModuleError(text) from error
    main = types.ModuleType("__mp_main__")
    main.__dict__.update(found)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


def _found(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _outcome(call: Call, setup: Setup, reports: Reports) -> Sent:
    """Run a task's function: it is looked up by name, no code is sent. Return its outcome. Never raises."""
    try:
        if call.module == "__main__" or needs_main_module(call.packed):
            _load_main(setup)
        returned, encode = _run(call, reports)
    except _RefusedError as refused:
        return SentRefusal(str_of(refused))
    except BaseException as error:  # noqa: BLE001 - as in a thread, whatever it is belongs to this run
        return send_error(error)
    return send_result(returned, encode, batch=call.how.batch)


def _run(call: Call, reports: Reports) -> tuple[Any, Callable[[Any], bytes]]:
    process, put_back = os.getpid(), _state()
    try:
        with warnings.catch_warnings():  # the next run in this process begins as this one did
            args, kwargs = unpack(call.packed)
            found = _found(call.module, call.qualname)
            function: Callable[..., Any] = found.function if isinstance(found, Task) else found
            arguments = _arguments(call.task, call.module, call.qualname, function, call.how)
            encode = arguments.result_type.encode
            try:
                args, kwargs = _fitted(arguments, args, kwargs, call.how)
            except ArgumentsError as error:
                raise _RefusedError(error.reason) from None
            returned = RunContext().call(partial(_with_delivery, call, reports, function), *args, **kwargs)
            if type(returned) not in PLAIN:
                refuse_unrun(call.task, returned)
            return returned, encode
    finally:
        if os.getpid() != process:  # the handler forked, and this is the child: it must not answer for its parent
            os._exit(0 if sys.exc_info()[0] is None else 1)
        _insist(put_back)


def _with_delivery(call: Call, reports: Reports, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    if call.delivery is not None:
        tier, name, entry_id, flat, redelivered, crashed = call.delivery
        delivery_var.set(Delivery(tier, name, entry_id, flat, redelivered=redelivered, crashed_workers=crashed))
        reporter_var.set(reports)
    return function(*args, **kwargs)


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


# --- apart from the worker's terminal and life ------------------------------------------------------


def _set_apart(channel: Channel, lifeline: int) -> None:
    """Let no program that the handler starts have the way to the worker; mind no signal that is meant for that."""
    for descriptor in (channel.descriptor, lifeline):
        os.set_inheritable(descriptor, False)
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True, errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM):
        if (before := signal.getsignal(number)) != signal.SIG_IGN:
            _replaced[number] = before
            signal.signal(number, _go_on)  # not SIG_IGN: programs that the handler starts would inherit that
    if hasattr(signal, "pthread_sigmask"):  # the worker has blocked them for the time of the start
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD})
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(_after_fork_in_child, channel, lifeline))


def _go_on(number: int, frame: object) -> None:
    """Do nothing: the worker has had the signal as well, and drains."""


def _after_fork_in_child(channel: Channel, lifeline: int) -> None:
    """Leave the way to the worker, so that it hears of the end of its process, and mind signals as before."""
    channel.leave()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, lifeline, inheritable=False)
    os.close(nothing)
    for number, before in _replaced.items():
        if signal.getsignal(number) is _go_on:
            signal.signal(number, before)


def _end_with_worker(lifeline: int) -> None:
    """Have the system kill this process when the worker ends, even by SIGKILL: another one runs the task again.

    A pipe whose other end is closed sends a signal to whoever asks for that (Linux). Nothing is ever written to this
    one: the signal of a write may come after its bytes were read, and killed runs that had just begun. PDEATHSIG would
    do it when the thread ends that started this process; under trio that is any thread.
    """
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
        import select  # noqa: PLC0415

        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        poll = select.poll()
    except (ImportError, AttributeError, OSError):  # another system: it ends when its run has ended
        return
    poll.register(lifeline, 0)
    if poll.poll(0):  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)
