"""One run of a handler with `run_in="process"`, seen from the worker, and the error if its process ends before it.

anyio says that the process broke, and not how. The process is a local variable of its functions, which the traceback
of its error has.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

from anyio import BrokenWorkerProcess, CapacityLimiter
from anyio.abc import Process

from streamq.consumer.process_child import call_by_name
from streamq.consumer.process_outcome import pack, receive
from streamq.diagnostics.safe_text import str_of
from streamq.errors import ProcessDiedError

_UNKNOWN_TO_ASYNCIO = 255  # its return code where somebody else has waited for the process


def processes() -> CapacityLimiter:
    """Return what a run holds while it has a process: there are as many as the machine has cores, in one event loop.

    It is taken before a timeout begins: to wait for a process is not the task's fault.
    """
    from anyio import to_process  # noqa: PLC0415 - it loads pickle, half a MiB

    return to_process.current_default_process_limiter()


async def run_in_process(
    task: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, batch: bool = False
) -> Any:
    """Return what the function of a task returns in a process; the caller holds one of `processes`.

    Raises ProcessDiedError if that ends before.

    `batch`: each item of a list that it returns has an outcome of its own.
    """
    from anyio import to_process  # noqa: PLC0415 - it loads pickle, half a MiB

    call = partial(call_by_name, function.__module__, function.__qualname__, pack(args, kwargs), batch=batch)
    try:
        sent = await to_process.run_sync(call, cancellable=True, limiter=CapacityLimiter(inf))
    except BrokenWorkerProcess as error:
        raise ProcessDiedError(task, _return_code(error), str_of(error)) from error
    return receive(sent)


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
