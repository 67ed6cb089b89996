"""A virtual clock for tests: nobody waits, and every timer fires exactly at its time.

Theory. An event loop waits only if no task can run, and then until the next deadline. With virtual time it
does not wait: time stands still while a task runs, and jumps to the next deadline if none can run.
So the times that a test reads are exact on a busy machine too, and an hour costs only the work done in it: that of an
idle worker is most of a second.

trio has such a clock (`MockClock` with autojump). For asyncio this module has a selector that jumps instead of
waiting, and an event loop that reads its time. uvloop cannot do that.

    virtual = VirtualTime()
    MemoryServer.named("test", clock=virtual.now)
    broker = RedisBroker("memory://test", clock=virtual.clock)
    virtual.run(main, backend="trio")          # or anyio.run(main, backend_options=virtual.options("trio"))

To let time pass in a test, sleep: `await anyio.sleep(3600)`. Other tasks run at their own times meanwhile. To
simulate work that takes time, such as a computation in a handler: `virtual.advance(0.02)`. Threads,
processes and sockets use real time, and the loop does not wait for them: use `memory://`, and tasks that
run in the event loop. `patience` makes the loop wait for them for a short real time.
"""

from __future__ import annotations

import selectors
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, TypeVar

import anyio

from streamq.clock import Clock
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError

START = 1_767_225_600.0  # 2026-01-01T00:00:00Z: a whole number of seconds, minutes, hours and days

R = TypeVar("R")
_RESOLUTION = 1e-8  # seconds; enough for two and a half years of virtual time


class VirtualTime:
    """Virtual time that jumps from deadline to deadline, under asyncio and trio.

    It begins at `start` (Unix seconds) and continues in each run that uses its options. Only one run may be
    active at a time. `patience` is how many real seconds the loop waits for an event before each jump.
    """

    def __init__(self, start: float = START, *, patience: float = 0.0) -> None:
        self.clock = Clock(now=self.now, elapsed=self.elapsed)
        self._start = start
        self._patience = patience
        self._elapsed_before = 0.0  # virtual seconds of earlier runs
        self._run_elapsed: Callable[[], float] = float  # of the current run; returns 0.0 before the first
        self._jump: Callable[[float], None] | None = None  # of the current run

    def __repr__(self) -> str:
        return f"<VirtualTime {self.elapsed():.6f} s after {self._start:.3f}>"

    def elapsed(self) -> float:
        """Return the seconds since the first run began."""
        return self._elapsed_before + self._run_elapsed()

    def now(self) -> float:
        """Return the Unix time in seconds."""
        return self._start + self.elapsed()

    def advance(self, seconds: float) -> None:
        """Let time pass while the current task runs. Timers that are due fire when it yields.

        Raises ConfigurationError before the first run.
        """
        if self._jump is None:
            raise ConfigurationError(f"{self!r}: there is no run whose time could advance; call it inside run()")
        self._jump(seconds)

    def options(self, backend: str) -> dict[str, Any]:
        """Return the `backend_options` for one `anyio.run` that uses this time.

        Raises ConfigurationError for a backend that is neither "asyncio" nor "trio".
        """
        self._elapsed_before, self._run_elapsed = self.elapsed(), float
        match backend:
            case "asyncio":
                selector = _VirtualSelector(self._patience)
                self._run_elapsed, self._jump = selector.time, selector.advance
                return {"loop_factory": selector.loop}
            case "trio":
                # Imported by name: streamq depends on no backend, and trio may not be installed.
                mock = import_module("trio.testing").MockClock(autojump_threshold=self._patience)
                self._run_elapsed, self._jump = mock.current_time, mock.jump
                return {"clock": mock}
        raise ConfigurationError(f"backend={repr_of(backend)}: give 'asyncio' or 'trio'")

    def run(self, function: Callable[..., Awaitable[R]], *args: Any, backend: str = "asyncio") -> R:
        """Run an async function in this time, as `anyio.run` does, and return its result."""
        return anyio.run(function, *args, backend=backend, backend_options=self.options(backend))


class _VirtualSelector(selectors.DefaultSelector):
    """A selector that jumps to the next deadline instead of waiting. `loop` makes event loops that use it."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self._patience = patience
        self._elapsed = 0.0

    def time(self) -> float:
        """Return the virtual seconds that have passed."""
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let seconds pass."""
        self._elapsed += seconds

    def loop(self) -> Any:
        """Return an asyncio event loop that reads its time from this selector."""
        # Imported by name: nothing in streamq imports a backend.
        loop = import_module("asyncio").SelectorEventLoop(self)
        loop.time = self.time
        # The loop fires timers that are due within this resolution. After half a year of virtual time the loop's
        # own nanosecond is too small to add to a float, and a timer for right now would never be due.
        loop._clock_resolution = _RESOLUTION  # noqa: SLF001
        return loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return ready events. If there are none, advance the time by `timeout` seconds."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(min(timeout, self._patience))
        if not ready:
            self._elapsed += timeout
        return ready
