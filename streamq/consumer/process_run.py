"""One run of a handler with `run_in="process"`, seen from the worker, and the error if its process ends before it.

anyio says that the process broke, and not how. The process is a local variable of its functions, which the traceback
of its error has.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import Any

from anyio import BrokenWorkerProcess, CapacityLimiter, EndOfStream, IncompleteRead
from anyio.abc import Process

from streamq.consumer.process_child import call_by_name
from streamq.consumer.process_outcome import pack, receive
from streamq.consumer.shortage import NO_MORE, NotStartedError, Shortage
from streamq.consumer.thread_start import says_no_thread
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import ProcessDiedError

_OF_UVLOOP = -1  # what uvloop says if it gets no pair of sockets for a process
_NONE_LEFT = NO_MORE | {errno.EAGAIN, _OF_UVLOOP}
_UNKNOWN_TO_ASYNCIO = 255  # its return code where somebody else has waited for the process


class Processes:
    """The processes of handlers in one worker. There are as many at a time as the machine has cores, in one event loop.

    A run has its `turn` before its timeout begins: to wait for a process, and for its start, is not the task's fault.
    """

    def __init__(self) -> None:
        self._shortage = Shortage("processes")

    def __repr__(self) -> str:
        return f"<Processes {self._shortage!r}>"

    @property
    def trouble(self) -> str | None:
        """What keeps handlers from their processes, None if nothing does."""
        return self._shortage.trouble

    @asynccontextmanager
    async def turn(self, task: str) -> AsyncIterator[None]:
        """Hold a process that has started; wait for one that the system does not have now.

        Raises ProcessDiedError if it ended as it started.
        """
        from anyio import to_process  # noqa: PLC0415 - it loads pickle, half a MiB

        limiter = to_process.current_default_process_limiter()
        async with limiter:
            pool: Any = getattr(to_process, "_process_pool_workers", None)  # anyio has no public name for it
            while pool is not None and _alive(pool.get(())) < limiter.borrowed_tokens:
                if self._shortage.failures:
                    await self._shortage.wait()
                _hear_children()
                with suppress(NotStartedError):
                    await self._call(task, _nothing)
            if self._shortage.failures:
                await self._shortage.wait()
            yield

    async def run(
        self, task: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *,
        batch: bool = False,
    ) -> Any:  # fmt: skip
        """Return what the function of a task returns in a process; the caller has its `turn`.

        `batch`: each item of a list that it returns has an outcome of its own.

        Raises ProcessDiedError if the process ends before, and NotStartedError if the system has none: the function has
        not begun, and the next turn waits.
        """
        call = partial(call_by_name, function.__module__, function.__qualname__, pack(args, kwargs), batch=batch)
        return receive(await self._call(task, call))

    async def _call(self, task: str, call: Callable[[], Any]) -> Any:
        from anyio import to_process  # noqa: PLC0415

        try:
            sent = await to_process.run_sync(call, cancellable=True, limiter=CapacityLimiter(inf))
        except BrokenWorkerProcess as error:
            raise ProcessDiedError(task, _return_code(error), _reason(error)) from error
        except (OSError, RuntimeError) as error:  # of the start: what the handler raised is in `sent`
            if not _says_none_left(error):
                raise
            raise self._shortage.note(error) from error
        self._shortage.failures = 0
        return sent


def _alive(processes: Iterable[Process]) -> int:
    return sum(process.returncode is None for process in processes)


def _hear_children() -> None:
    """Have this thread hear SIGCHLD: it may inherit a mask, and only by it does uvloop notice that a process ended."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _nothing() -> None:
    """Is the first call of a process."""


def _says_none_left(error: OSError | RuntimeError) -> bool:
    """Is this the error of a system without another process, or without what one needs?

    Before Python 3.12, asyncio starts a thread for each process.
    """
    return error.errno in _NONE_LEFT if isinstance(error, OSError) else says_no_thread(error)


def _reason(error: BrokenWorkerProcess) -> str:
    """Return why a process broke, as far as anyio's error tells."""
    cause = error.__cause__
    if not str_of(error).startswith("Error during worker process init"):
        return str_of(error)
    if isinstance(cause, TimeoutError):
        return "it did not start within 20 s"
    if cause is None or isinstance(cause, BrokenWorkerProcess | EndOfStream | IncompleteRead):
        return "it ended as it started"
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return f"it could not load the main module of the program, {main}: {type_name(cause)}: {str_of(cause)}"


def _return_code(error: BrokenWorkerProcess) -> int | None:
    """Return how the process of anyio's error ended: its exit code, a signal below 0, None if that is not known."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        process = frame.f_locals.get("process")
        if isinstance(process, Process):
            code = process.returncode
            return _reaped_code(process) if code == _UNKNOWN_TO_ASYNCIO else code
    return None


def _reaped_code(process: Process) -> int | None:
    """Return the code of a process that was killed when it had ended already, None if it is not known.

    Before Python 3.12 the kill takes the code from asyncio, which says 255 then; `Popen` has it.
    """
    transport = getattr(getattr(process, "_process", None), "_transport", None)
    popen = None if transport is None else transport.get_extra_info("subprocess")
    code = getattr(popen, "returncode", None)
    return code if isinstance(code, int) else None
