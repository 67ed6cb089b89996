"""Where a client was opened: its process, thread and event loop. Nothing else may use it.

An event loop wakes only its own tasks, in its own thread. A caller from elsewhere would wait for ever, or would break
the loop of the others. After a fork both processes hold one socket: each would read replies of the other. So every call
asks first, with two C calls and no Python one. In the child of a fork each socket of the parent is closed, so that
nothing the child does, and no way in which it ends, can reach the server or the parent's selector. A child that comes
back from the handler that forked it ends there.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import get_ident
from typing import Any, Final, NoReturn, Protocol

from anyio.lowlevel import current_token

from streamq.errors import ConfigurationError, WrongLoopError

NOWHERE: Final = -1  # the id of no thread: that of an owner in the child of a fork
_EPOLL: Final = "anon_inode:[eventpoll]"


class ForkedSocket(Protocol):
    """A socket that a fork must not leave open in the child."""

    def close_in_child(self) -> None: ...


def refuse_in_loading_process(what: str) -> None:
    """Raise ConfigurationError in a process of `run_in="process"` that loads the main module of its program again.

    What a script without a guard does there would be done twice: tasks sent, a worker run in the process of a handler.
    It has no main module while it loads that.
    """
    if sys.modules.get("__main__") is None:
        raise ConfigurationError(
            f'a process of run_in="process" loads the main module of its program again, which must not open {what} '
            'then: guard what the script does with `if __name__ == "__main__":`'
        )


class Owner:
    """The process, the thread and the event loop that this was made in. `what` they own, for messages.

    A call that must be quick asks `get_ident() != owner.thread or not owner.is_running()` itself.
    """

    __slots__ = ("__weakref__", "_pid", "_where", "is_running", "loop", "thread", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.thread = get_ident()
        self._pid = os.getpid()
        self._where = _here()
        self.loop: Any = current_token().native_token
        # In one thread one loop of asyncio may follow another. A run of trio has left its clients before it ends.
        self.is_running: Callable[[], bool] = getattr(self.loop, "is_running", None) or True.__bool__
        _owners.add(self)

    def __repr__(self) -> str:
        return f"<Owner of {self.what}: {self._where}>"

    @property
    def is_here(self) -> bool:
        """Whether this is its process, its thread and its event loop."""
        return get_ident() == self.thread and self.is_running()

    @property
    def was_forked(self) -> bool:
        """Whether this process is a child of the one that it belongs to."""
        return self.thread == NOWHERE

    def check(self) -> None:
        """Raise WrongLoopError unless this is its process, its thread and its event loop."""
        if get_ident() != self.thread or not self.is_running():
            raise self.error()

    def error(self) -> WrongLoopError:
        """Return the error of a use from here."""
        return WrongLoopError(self.what, opened=self._where, used=_here(), forked=self._pid != os.getpid())

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the event loop call a function, from any thread or signal handler. Do nothing if the loop has ended."""
        _schedule(self.loop, function)


def scheduler() -> Callable[[Callable[[], object]], None]:
    """Return what has the current event loop call a function, from any thread. It does nothing once the loop ended."""
    loop = current_token().native_token
    return lambda function: _schedule(loop, function)


def _schedule(loop: Any, function: Callable[[], object]) -> None:
    schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    with suppress(RuntimeError):
        schedule(function)


def _here() -> str:
    return f"thread {threading.current_thread().name!r} of process {os.getpid()}"


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_sockets: weakref.WeakSet[ForkedSocket] = weakref.WeakSet()


def close_after_fork(sock: ForkedSocket) -> None:
    """Have a socket closed in every child that this process forks."""
    _sockets.add(sock)


def end_child() -> NoReturn:
    """End this process, the child of a fork in a handler: what it would do next is the work of its parent."""
    os._exit(0 if sys.exc_info()[0] is None else 1)


def _after_fork_in_child() -> None:
    if _owners:
        _leave_selectors()
    for owner in list(_owners):
        _end_at_next_step(owner.loop)
        owner.thread = NOWHERE
    for sock in list(_sockets):
        sock.close_in_child()


class _EndsChild:
    """An instrument of trio that ends the process before the next step of any task."""

    def before_task_step(self, task: object) -> None:  # noqa: ARG002 - a name of trio's
        end_child()


def _end_at_next_step(loop: Any) -> None:
    """Have the child end once its code awaits: the tasks that are ready then are those of its parent, too.

    uvloop gives no way to do that: there a worker's runner notices it.
    """
    with suppress(Exception):  # the fork was made in another thread, whose child has no event loop
        if (ready := getattr(loop, "_ready", None)) is not None:
            ready.appendleft(sys.modules["asyncio"].Handle(end_child, (), loop))
        elif "trio" in sys.modules:
            sys.modules["trio"].lowlevel.add_instrument(_EndsChild())


def _leave_selectors() -> None:
    """Put a new epoll in the place of each one: parent and child share them, and what one registers both have."""
    with suppress(OSError, AttributeError):  # another system than Linux
        for link in list(Path("/proc/self/fd").iterdir()):
            with suppress(OSError):
                if str(link.readlink()) == _EPOLL:
                    with select.epoll() as own:
                        os.dup2(own.fileno(), int(link.name), inheritable=False)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
