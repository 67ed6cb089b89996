"""One run of a handler with `run_in="process"`, seen from the worker, and the error if its process ends before it.

anyio says that the process broke, and not how. The process is a local variable of its functions, which the traceback
of its error has.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import Any

from anyio import BrokenWorkerProcess, CancelScope, CapacityLimiter, DelimiterNotFound, EndOfStream, IncompleteRead
from anyio.abc import Process

from streamq.consumer.process_child import How, call_by_name, get_ready
from streamq.consumer.process_outcome import pack, receive
from streamq.consumer.shortage import NO_MORE, NotStartedError, Shortage
from streamq.consumer.thread_start import says_no_thread
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import ProcessDiedError
from streamq.tasks.task import Task

_OF_UVLOOP = -1  # what uvloop says if it gets no pair of sockets for a process
_NO_DESCRIPTOR = OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # what it means
_NONE_LEFT = NO_MORE | {errno.EAGAIN, _OF_UVLOOP}
_AS_IT_STARTED = "it ended as it started"
_SPOILED = "it wrote into the pipe by which it answers its worker, and was killed"
_STARTS = 3  # of processes that end as they start, one after the other, until that fails the run
_UNKNOWN_TO_ASYNCIO = 255  # its return code where somebody else has waited for the process


class Processes:
    """The processes of handlers in one worker. There are as many at a time as the machine has cores, in one event loop.

    A run has its `turn` before its timeout begins: to wait for a process, and for its start, is not the task's fault.
    """

    def __init__(self) -> None:
        self._shortage = Shortage("processes")
        self._calls = 0

    def __repr__(self) -> str:
        return f"<Processes {self._shortage!r}>"

    @property
    def trouble(self) -> str | None:
        """What keeps handlers from their processes, None if nothing does."""
        return self._shortage.trouble

    @asynccontextmanager
    async def turn(self, task: str) -> AsyncIterator[None]:
        """Hold a process that has started; wait for one that the system does not have now.

        Raises ProcessDiedError if it ended as it started, several times.
        """
        from anyio import to_process  # noqa: PLC0415 - it loads pickle, half a MiB

        limiter = to_process.current_default_process_limiter()
        async with limiter:
            failures = 0
            while _alive(_workers()) < limiter.borrowed_tokens:
                if self._shortage.failures:
                    await self._shortage.wait()
                _hear_children()
                try:
                    await self._call(task, get_ready)
                except NotStartedError:
                    continue
                except ProcessDiedError:  # Ctrl-C, for one, reaches it before it sets that aside
                    failures += 1
                    if failures == _STARTS:
                        raise
            if self._shortage.failures:
                await self._shortage.wait()
            yield

    async def run(
        self, task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, batch: bool = False
    ) -> Any:
        """Return what the function of a task returns in a process, encoded; the caller has its `turn`.

        `args` and `kwargs` are as they were read from JSON. `batch`: the function takes a list of items, and each item
        of a list that it returns has an outcome of its own.

        Raises ProcessDiedError if the process ends before, and NotStartedError if the system has none: the function has
        not begun, and the next turn waits.
        """
        function, how = task.function, How(batch, task.arguments.validates)
        call = partial(self._call, task.name, call_by_name, task.name, function.__module__, function.__qualname__)
        return receive(task.name, await call(pack(args, kwargs), how))

    async def _call(self, task: str, function: Callable[..., tuple[int, Any]], *args: Any) -> Any:
        from anyio import to_process  # noqa: PLC0415

        self._calls += 1
        token = self._calls
        try:
            answer = await to_process.run_sync(
                partial(function, token, *args), cancellable=True, limiter=CapacityLimiter(inf)
            )
        except BrokenWorkerProcess as error:
            code, reason = _return_code(error), _reason(error)
            await _close(_process_of(error))
            raise ProcessDiedError(task, None if reason == _SPOILED else code, reason) from error
        except BaseException as error:
            if (process := _answered_with(error)) is not None:
                raise await _given_up(process, task, type_name(error)) from None
            if isinstance(error, ProcessLookupError):  # anyio kills a process that has ended as it started
                await _close(_process_of(error))
                raise ProcessDiedError(task, None, _AS_IT_STARTED) from error
            if not isinstance(error, OSError | RuntimeError) or not _says_none_left(error):
                raise
            of_uvloop = isinstance(error, OSError) and error.errno == _OF_UVLOOP
            raise self._shortage.note(_NO_DESCRIPTOR if of_uvloop else error) from error
        if type(answer) is not tuple or answer[0] != token:
            raise await _given_up(_idle()[-1][0], task, "the answer of another call")
        self._shortage.failures = 0
        return answer[1]


async def _given_up(process: Process, task: str, answer: str) -> ProcessDiedError:
    """Kill a process that gave an answer that is none, and return the error of its run.

    A signal that meets it between two calls makes it answer once more. Each later answer would go to another run.
    """
    _workers().discard(process)
    idle = _idle()
    for one in [one for one in idle if one[0] is process]:
        idle.remove(one)
    await _close(process)
    return ProcessDiedError(task, None, f"it answered with what is not the outcome of this run: {answer}")


async def _close(process: Process | None) -> None:
    """End a process, and close its pipes: anyio leaves those of one that did not start to the garbage collector."""
    if process is not None:
        with suppress(ProcessLookupError):
            process.kill()
        with CancelScope(shield=True):
            await process.aclose()


def _answered_with(error: BaseException) -> Process | None:
    """Return the process that answered with an exception; None if it was raised here."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        process = frame.f_locals.get("process")
        if frame.f_locals.get("retval") is error and isinstance(process, Process):
            return process
    return None


def _workers() -> set[Process]:
    """Return anyio's processes in this event loop. It has no public name for them."""
    return _variable_of_anyio("_process_pool_workers") or set()


def _idle() -> deque[tuple[Process, float]]:
    """Return those that have no call, the one that had the last call at the end."""
    return _variable_of_anyio("_process_pool_idle_workers") or deque()


def _variable_of_anyio(name: str) -> Any:
    """Return what a variable of anyio's module holds in this event loop, None before the first process."""
    from anyio import to_process  # noqa: PLC0415

    return getattr(to_process, name).get(None)


def _alive(processes: Iterable[Process]) -> int:
    return sum(process.returncode is None for process in processes)


def _hear_children() -> None:
    """Have this thread hear SIGCHLD: it may inherit a mask, and only by it does uvloop notice that a process ended."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _says_none_left(error: OSError | RuntimeError) -> bool:
    """Is this the error of a system without another process, or without what one needs?

    Before Python 3.12, asyncio starts a thread for each process.
    """
    return error.errno in _NONE_LEFT if isinstance(error, OSError) else says_no_thread(error)


def _reason(error: BrokenWorkerProcess) -> str:
    """Return why a process broke, as far as anyio's error tells."""
    cause = error.__cause__
    if not str_of(error).startswith("Error during worker process init"):
        return _SPOILED if isinstance(cause, ValueError | RuntimeError | DelimiterNotFound) else str_of(error)
    if isinstance(cause, TimeoutError):
        return "it did not start within 20 s"
    if cause is None or isinstance(cause, BrokenWorkerProcess | EndOfStream | IncompleteRead):
        return _AS_IT_STARTED
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return f"it could not load the main module of the program, {main}: {type_name(cause)}: {str_of(cause)}"


def _return_code(error: BrokenWorkerProcess) -> int | None:
    """Return how the process of anyio's error ended: its exit code, a signal below 0, None if that is not known."""
    process = _process_of(error)
    code = None if process is None else process.returncode
    return code if process is None or code != _UNKNOWN_TO_ASYNCIO else _reaped_code(process)


def _process_of(error: BaseException) -> Process | None:
    """Return the process that an error of anyio is about, None if it has none."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        process = frame.f_locals.get("process")
        if isinstance(process, Process):
            return process
    return None


def _reaped_code(process: Process) -> int | None:
    """Return the code of a process that was killed when it had ended already, None if it is not known.

    Before Python 3.12 the kill takes the code from asyncio, which says 255 then; `Popen` has it.
    """
    transport = getattr(getattr(process, "_process", None), "_transport", None)
    popen = None if transport is None else transport.get_extra_info("subprocess")
    code = getattr(popen, "returncode", None)
    return code if isinstance(code, int) else None
