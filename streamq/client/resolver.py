"""Looks up host names in threads of its own, so that nothing that fills the program's threads delays a connection.

The event loops look names up in the pool of threads that they give to everyone. Handlers fill it, and then a worker
cannot reconnect, and its leases end. So each name in progress has one thread here, which all that wait for it share: a
resolver that hangs costs one thread for each name, however often a connection is tried. The thread is a daemon, so it
does not keep the process from its exit.

A thread that the system does not have is waited for.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio

from streamq.client.owner import scheduler

Found = Sequence[tuple[Any, ...]]

_FIRST_PAUSE: Final = 0.05  # seconds until a thread is tried again; each pause after that is twice as long
_LONGEST_PAUSE: Final = 1.0
_BEFORE_THE_END: Final = 0.1  # seconds before its caller gives up, a look-up without a thread says why


async def look_up(host: str, port: int) -> Found:
    """Return the addresses of a host, as `socket.getaddrinfo` does. A numeric address needs no thread and no resolver.

    Can be cancelled: the thread then goes on alone. Raises OSError if the name has no address, or if the system has no
    thread for the look-up until shortly before the deadline of the caller.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    except UnicodeError as error:
        raise OSError(f"the name {host!r} cannot be looked up: {error}") from error
    lookup = await _join(host, port)
    ended = anyio.Event()
    schedule = scheduler()
    lookup.wake(lambda: schedule(ended.set))
    await ended.wait()
    return lookup.result()


class _Lookup:
    """One name in progress, with the callbacks of those who wait for it."""

    def __init__(self, host: str, port: int) -> None:
        self._place = (host, port)
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], object]] | None = []  # None: it has ended
        self._found: Found = ()
        self._error: OSError | None = None

    def wake(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the look-up has ended, at once if it has: from any thread."""
        with self._lock:
            if self._waiting is not None:
                self._waiting.append(callback)
                return
        callback()

    def result(self) -> Found:
        """Return the addresses. Raises OSError if there are none."""
        if self._error is not None:
            raise type(self._error)(*self._error.args)  # an exception of one's own for each that waits
        return self._found

    def run(self) -> None:
        """Look the name up, and wake those who wait."""
        host, port = self._place
        try:
            self._found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - those who wait must hear of it, whatever it is
            self._error = OSError(f"the name {host!r} cannot be looked up: {error}")
        with _lock:
            _in_progress.pop(self._place, None)
        with self._lock:
            waiting, self._waiting = self._waiting or [], None
        for callback in waiting:
            callback()


async def _join(host: str, port: int) -> _Lookup:
    """Return the look-up of a name that is in progress, or a new one. Wait while the system has no thread for it."""
    pause = _FIRST_PAUSE
    while True:
        with _lock:
            lookup = _in_progress.get((host, port))
            if lookup is not None:
                return lookup
            lookup = _Lookup(host, port)
            try:
                threading.Thread(target=lookup.run, name=f"streamq resolver {host}", daemon=True).start()
            except RuntimeError as error:
                why = str(error)
            else:
                _in_progress[host, port] = lookup
                return lookup
        if anyio.current_effective_deadline() - anyio.current_time() <= pause + _BEFORE_THE_END:
            raise OSError(f"the system has no thread to look up {host!r} ({why})")
        await anyio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


_lock = threading.RLock()  # a look-up may end before `_join` has noted it
_in_progress: dict[tuple[str, int], _Lookup] = {}


def _after_fork_in_child() -> None:
    """Forget the look-ups of the parent: their threads are not in the child."""
    global _lock  # noqa: PLW0603 - a thread of the parent may hold it
    _lock = threading.RLock()
    _in_progress.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
