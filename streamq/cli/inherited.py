"""What a process has from whoever started it, made usable: closed standard files, and signals that it cannot hear.

A program inherits the signal mask and the ignored signals of its parent through exec. This knows no command.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

_STANDARD: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
_closed: set[int] = set()  # the standard descriptors that were closed when this process began


def was_closed(descriptor: int) -> bool:
    """Was this standard file closed when the process began? It is `/dev/null` now."""
    return descriptor in _closed


def make_usable() -> None:
    """Open standard files that are closed, and hear the signals that end a worker or its processes. Main thread."""
    _open_standard_files()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
    if hasattr(signal, "SIGCHLD") and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the system forgets how a child has ended


def _open_standard_files() -> None:
    """Or a socket has such a number, and uvloop aborts at its end. Processes that this one starts inherit them."""
    for descriptor, (name, mode) in enumerate(_STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
            _closed.add(descriptor)
        if getattr(sys, name) is None:  # so Python has it for a file that was closed
            stream = open(descriptor, mode, closefd=False)  # noqa: SIM115 - it stays open
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
