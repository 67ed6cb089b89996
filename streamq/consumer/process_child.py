"""What runs in a child process of a handler with `run_in="process"`.

anyio talks to the child through its standard input and output. A program that the handler starts inherits both, and a
library in C may print: its output would be taken for replies, and unpickled. So the child moves them to other
descriptors, which no program inherits, before anything of the user is imported. A child that the handler itself forks
ends with the call: it must not answer in its parent's place.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamq.client.owner import end_child
from streamq.consumer.run_context import RunContext
from streamq.tasks.task import Task

_apart: list[bool] = []  # not empty: the standard descriptors are no longer anyio's


def call_by_name(module: str, qualname: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a task's function: it is looked up by name, no code is sent."""
    _move_pipes()
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found.function if isinstance(found, Task) else found
    process = os.getpid()
    try:
        with warnings.catch_warnings():  # the next run in this process begins as this one did
            return RunContext().call(function, *args, **kwargs)
    finally:
        if os.getpid() != process:  # the handler forked, and this is the child
            end_child()


def _move_pipes() -> None:
    if _apart:
        return
    _apart.append(True)
    for stream, mode in ((sys.__stdin__, "rb"), (sys.__stdout__, "wb")):
        binary: Any = getattr(stream, "buffer", None)
        raw = getattr(binary, "raw", binary)
        raw.__init__(os.dup(raw.fileno()), mode)  # the same object, which anyio holds, on another descriptor
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
