"""The standard streams and the working directory of a process of handlers: each run has those that the first one had.

A handler may close them, replace them, or point their descriptors elsewhere: as daemons do, and code that captures
output and fails. The next run would print into that, or fail where it prints; a file that it opens would be "standard
output" to the programs that it starts.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_NAMES: Final = ("stdin", "stdout", "stderr")  # by their descriptors


class StandardStreams:
    """What is there when it is made, and puts it back. Its copies of the descriptors reach no child."""

    def __init__(self) -> None:
        self._copies = [_copy(number) for number in range(len(_NAMES))]
        self._files = [_identity(number) for number in range(len(_NAMES))]
        self._blocking = [_blocks(number) for number in range(len(_NAMES))]
        self._streams = {name: getattr(sys, name) for name in _all_names()}

    def __repr__(self) -> str:
        return f"<StandardStreams {self._copies}>"

    def put_back(self) -> None:
        """Put back what is not as it was, first the descriptors."""
        for number, (copy, file) in enumerate(zip(self._copies, self._files, strict=True)):
            if copy is not None and _identity(number) != file:
                with suppress(OSError):  # the copy was closed as well: there is nothing to put back
                    os.dup2(copy, number, inheritable=True)
            if _blocks(number) != self._blocking[number]:  # asyncio's pipes; a write of much would raise
                with suppress(OSError):
                    os.set_blocking(number, bool(self._blocking[number]))
        for name in _all_names():
            stream = self._streams[name]
            if getattr(stream, "closed", False):
                stream = self._streams[name] = _opened(_NAMES.index(name.strip("_")), stream)
            if getattr(sys, name) is not stream:
                setattr(sys, name, stream)

    def leave(self) -> None:
        """In a child that a handler has forked: keep no copy, or the worker would wait for that child's output."""
        for number, copy in enumerate(self._copies):
            if copy is not None:
                self._copies[number] = None
                with suppress(OSError):
                    os.close(copy)


def working_directory() -> str | None:
    """Return the working directory, None if it has been removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def back_to(directory: str | None) -> None:
    """Go back to a directory, if there is another one now and it is still there."""
    if directory is not None and working_directory() != directory:
        with suppress(OSError):
            os.chdir(directory)


def _all_names() -> tuple[str, ...]:
    return (*_NAMES, *(f"__{name}__" for name in _NAMES))


def _copy(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:
        return None


def _identity(number: int) -> tuple[int, int, int] | None:
    """Return which file a descriptor stands for, None if it is closed."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_rdev


def _blocks(number: int) -> bool | None:
    try:
        return os.get_blocking(number)
    except OSError:
        return None


def _opened(number: int, closed: Any) -> Any:
    """Return a stream like one that was closed."""
    mode = "w" if number else "r"
    with suppress(OSError, ValueError, AttributeError, LookupError):
        return open(
            number, mode, encoding=closed.encoding, errors=closed.errors, buffering=1 if number else -1, closefd=False
        )
    return closed
