"""What a run could leave to the next one in its process: standard streams, directory, umask, limits of the system.

A handler may close the streams, replace them, or point their descriptors elsewhere: as daemons do, and code that
captures output. They are put back, so that the process can end its run. But a wrapper that a run has made around one of
them closes its descriptor when it is freed, at any time. So after such a run the process is replaced: the next run must
not print into a file of its own.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_NAMES: Final = ("stdin", "stdout", "stderr")  # by their descriptors
_ALL: Final = (*_NAMES, *(f"__{name}__" for name in _NAMES))


class StandardStreams:
    """Puts back what was there when it was made. Its copies of the descriptors reach no child.

    It asks nothing of what a handler has put in place of a stream: that may raise anything.
    """

    def __init__(self) -> None:
        self._copies = [_copy(number) for number in range(len(_NAMES))]
        self._files = [_identity(number) for number in range(len(_NAMES))]
        self._blocking = [_blocks(number) for number in range(len(_NAMES))]
        self._streams = {name: sys.__dict__.get(name) for name in _ALL}
        self._settings = {name: _settings(stream) for name, stream in self._streams.items()}
        self._directory = _working_directory()
        self._umask = _umask()
        self._limits = _limits()

    def __repr__(self) -> str:
        return f"<StandardStreams {self._copies}>"

    def put_back(self) -> bool:
        """Put back what is not as it was. Return whether another run must not begin here.

        So it is if a stream was changed, or a limit of the system: who lowers one may not be able to raise it again.
        """
        spoiled = False
        for number, (copy, file) in enumerate(zip(self._copies, self._files, strict=True)):
            if copy is not None and _identity(number) != file:
                spoiled = True
                with suppress(OSError):  # the copy was closed as well: there is nothing to put back
                    os.dup2(copy, number, inheritable=True)
            if _blocks(number) != self._blocking[number]:  # asyncio's pipes; a write of much would raise
                with suppress(OSError):
                    os.set_blocking(number, bool(self._blocking[number]))
        for name, settings in self._settings.items():
            if _settings(self._streams[name]) != settings:  # closed, detached, reconfigured
                spoiled = True
                self._streams[name] = _opened(_NAMES.index(name.strip("_")), settings)
            if sys.__dict__.get(name) is not self._streams[name]:
                spoiled = True
                setattr(sys, name, self._streams[name])
        if self._directory is not None and _working_directory() != self._directory:
            with suppress(OSError):
                os.chdir(self._directory)
        os.umask(self._umask)
        return spoiled or _limits() != self._limits

    def leave(self) -> None:
        """In a child that a handler has forked: keep no copy, or the worker would wait for that child's output."""
        for number, copy in enumerate(self._copies):
            if copy is not None:
                self._copies[number] = None
                with suppress(OSError):
                    os.close(copy)


def flush_streams() -> None:
    """Send what was printed: it belongs to the run that ends. What a handler has put there may raise anything."""
    for name in _ALL[1:]:
        with suppress(BaseException):
            sys.__dict__[name].flush()


def _settings(stream: Any) -> tuple[Any, ...] | None:
    """Return how a stream of Python's own writes; None for one that cannot be used any more, or is another kind."""
    try:
        if type(stream) is not io.TextIOWrapper or stream.closed:
            return None
        return stream.encoding, stream.errors, stream.line_buffering, stream.write_through
    except ValueError:  # its buffer was detached
        return None


def _opened(number: int, settings: tuple[Any, ...] | None) -> Any:
    """Return a stream as it was, over a descriptor that is there again."""
    if settings is None:
        return None
    encoding, errors, line_buffering, write_through = settings
    with suppress(OSError, ValueError, LookupError):
        file = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115 - as long as the process lives
        return io.TextIOWrapper(
            file, encoding=encoding, errors=errors, line_buffering=line_buffering, write_through=write_through
        )
    return None


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


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it has been removed
        return None


def _limits() -> tuple[object, ...]:
    """Return the limits of resources, the priority, and the cores of this process."""
    import resource  # noqa: PLC0415 - not on Windows

    affinity = getattr(os, "sched_getaffinity", None)
    limits = [resource.getrlimit(number) for name, number in vars(resource).items() if name.startswith("RLIMIT_")]
    return limits, os.getpriority(os.PRIO_PROCESS, 0), affinity and affinity(0)


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found
