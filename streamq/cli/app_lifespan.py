"""The lifespan of an app's module, as `streamq worker` runs it: says by its name what fails, or does not end.

`Worker` lets out whatever a lifespan raises. On the command line nobody sees who raised it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final

from streamq.consumer.lifespan import check_manager
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.worker import Lifespan, Worker

log = SafeLog("streamq.cli")

_NOT_SHOWN: Final = frozenset({__file__, contextlib.__file__})  # their frames


class LifespanFailedError(Exception):
    """The lifespan of the app raised. `when` is "start" or "end"."""

    def __init__(self, name: str, when: str, error: BaseException) -> None:
        self.error = error
        self._trace = error.__traceback__
        while self._trace is not None and self._trace.tb_frame.f_code.co_filename in _NOT_SHOWN:
            self._trace = self._trace.tb_next
        super().__init__(f"{name} failed at its {when}: {type_name(error)}: {str_of(error)}")

    def log(self) -> None:
        """Log it, with the frames of the app alone."""
        error = self.error
        if error.__cause__ is None and not isinstance(error.__context__, Exception):
            error.__suppress_context__ = True  # a cancellation
        own = error.with_traceback(self._trace)
        log.exception("%s", str(self), event="lifespan_failed", error=own)  # noqa: LOG004 - it is given


class AppLifespan(AbstractAsyncContextManager[Any]):
    """Called with the worker, it is the context manager around its run. `failure` says what it raised.

    `on_end` is called as it begins to end. `patience` returns the seconds until the log names it if it has not ended.
    """

    def __init__(self, name: str, lifespan: Lifespan) -> None:
        self.name = name
        self.failure: LifespanFailedError | None = None
        self.on_end: Callable[[], None] = _nothing
        self.patience: Callable[[], float] = float
        self._lifespan = lifespan
        self._worker: Worker | None = None
        self._phase = ""
        self._ended = threading.Event()

    def __repr__(self) -> str:
        return f"<AppLifespan {self.name} {self._phase or 'open'}>"

    def __call__(self, worker: Worker) -> AbstractAsyncContextManager[Any]:
        """Return the context manager for this worker."""
        self._worker = worker
        return self

    @property
    def is_ending(self) -> bool:
        """Has the worker ended, and the lifespan not?"""
        return self._phase == "ending"

    def obstacle(self) -> str:
        """Return what keeps the process, as the end of a sentence; nothing if it is not the lifespan."""
        return f", while {self.name} is {self._phase}" if self._phase else ""

    async def __aenter__(self) -> Any:
        """Start it."""
        assert self._worker is not None  # noqa: S101 - a worker calls it first
        self._phase = "starting"
        with self._failing("start"):
            returned = self._lifespan(self._worker)
        self._manager = check_manager(returned)
        with self._failing("start"):
            state = await self._manager.__aenter__()
        self._phase = ""
        return state

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """End it."""
        self._phase = "ending"
        self.on_end()
        with contextlib.suppress(RuntimeError):  # no thread to be had: it is not named
            threading.Thread(target=self._name_if_late, name="streamq lifespan", daemon=True).start()
        try:
            if isinstance(error, Exception | SystemExit):  # what is raised may be the worker's
                return await self._manager.__aexit__(kind, error, trace)
            with self._failing("end"):
                return await self._manager.__aexit__(kind, error, trace)
        finally:
            self._phase = ""
            self._ended.set()

    @contextlib.contextmanager
    def _failing(self, when: str) -> Iterator[None]:
        """Note what a step of it raises. `sys.exit()` in it is a failure, too: it would say that all is well.

        So is KeyboardInterrupt: `streamq worker` hears Ctrl-C in another way.
        """
        try:
            yield
        except Exception as error:
            self.failure = LifespanFailedError(self.name, when, error)
            raise
        except (SystemExit, KeyboardInterrupt) as error:
            self.failure = LifespanFailedError(self.name, when, error)
            raise self.failure from error

    def _name_if_late(self) -> None:
        """In a thread: the lifespan may block the event loop."""
        if not self._ended.wait(self.patience()):
            log.warning(
                "%s has not ended, and the grace period is over; a second stop signal cancels it",
                self.name,
                event="lifespan_late",
            )


def _nothing() -> None:
    """Do nothing."""
