"""A clock that tests control: hours pass in milliseconds, and all happens exactly when it should.

Theory. An event loop waits only when no task can run, and then until the next deadline at the
latest. With virtual time it does not wait but leaps: time stands still while anything runs,
and when nothing can, it is at once as late as the next deadline. So what a test reads on the
clock is exact, whatever else the machine does, and an hour costs what is done in it.

trio has such a clock (`MockClock`, with autojump). For asyncio there is a selector here that
leaps instead of waiting, and a loop that takes its time from it; uvloop cannot do that.

    virtual = VirtualTime()
    MemoryServer.named("test", clock=virtual.now)
    broker = RedisBroker("memory://test", clock=virtual.clock)
    virtual.run(main, backend="trio")          # or anyio.run(main, backend_options=virtual.options("trio"))

To let time pass in a test, wait: `await anyio.sleep(3600)`. Whoever does something meanwhile does
it at his time. To have work take time, as that of a handler which computes: `virtual.advance(0.02)`.
Threads, processes and sockets live in real time, and a loop that leaps does not wait for them: use
`memory://`, and tasks that run in the loop. `patience` lessens that.
"""

from __future__ import annotations

import selectors
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, TypeVar

import anyio

from streamq.clock import Clock
from streamq.errors import ConfigurationError

START = 1_767_225_600.0  # 2026-01-01T00:00:00Z: a whole number of seconds, minutes, hours and days

R = TypeVar("R")
_RESOLUTION = 1e-8  # seconds; holds for two years and a half


class VirtualTime:
    """Time that leaps from deadline to deadline, under asyncio and trio.

    It is `start` (Unix seconds) when it is made, and goes on in each run that uses its options,
    one at a time. `patience` is how many real seconds nothing must happen before each leap.
    """

    def __init__(self, start: float = START, *, patience: float = 0.0) -> None:
        self.clock = Clock(now=self.now, elapsed=self.elapsed)
        self._start = start
        self._patience = patience
        self._before = 0.0  # what passed in earlier runs
        self._reading: Callable[[], float] = float  # of the present run; 0.0 before the first
        self._jump: Callable[[float], None] | None = None  # of the present run

    def __repr__(self) -> str:
        return f"<VirtualTime {self.elapsed():.6f} s after {self._start:.3f}>"

    def elapsed(self) -> float:
        """Return the seconds since the first run began."""
        return self._before + self._reading()

    def now(self) -> float:
        """Return the Unix time in seconds."""
        return self._start + self.elapsed()

    def advance(self, seconds: float) -> None:
        """Have time pass while something runs: what is due by then goes on when that lets it.

        Raises ConfigurationError before the first run.
        """
        if self._jump is None:
            raise ConfigurationError(f"{self!r}: there is no run in which time could pass")
        self._jump(seconds)

    def options(self, backend: str) -> dict[str, Any]:
        """Return the `backend_options` with which one `anyio.run` goes by this time.

        Raises ConfigurationError for a backend that is neither "asyncio" nor "trio".
        """
        self._before, self._reading = self.elapsed(), float
        match backend:
            case "asyncio":
                leaping = _LeapingSelector(self._patience)
                self._reading, self._jump = leaping.time, leaping.advance
                return {"loop_factory": leaping.loop}
            case "trio":
                # Not imported above: streamq depends on neither backend, and this one may not be installed.
                mock = import_module("trio.testing").MockClock(autojump_threshold=self._patience)
                self._reading, self._jump = mock.current_time, mock.jump
                return {"clock": mock}
        raise ConfigurationError(f"backend={backend!r}: virtual time is for asyncio and trio")

    def run(self, function: Callable[..., Awaitable[R]], *args: Any, backend: str = "asyncio") -> R:
        """Run an async function to its end in this time, as `anyio.run` would."""
        return anyio.run(function, *args, backend=backend, backend_options=self.options(backend))


class _LeapingSelector(selectors.DefaultSelector):
    """Does not wait for time to pass, but has it passed: `loop` makes event loops that go by it."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self._patience = patience
        self._elapsed = 0.0

    def time(self) -> float:
        """Return the seconds that have passed."""
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let seconds pass."""
        self._elapsed += seconds

    def loop(self) -> Any:
        """Return an event loop of asyncio that takes its time from here."""
        # Imported here and by name: nothing in streamq imports a backend, and this is for one of them alone.
        loop = import_module("asyncio").SelectorEventLoop(self)
        loop.time = self.time
        # It looks this much ahead for what is due. Its own nanosecond is, after half a year, less than a float can
        # add to the time: a timer for right now would then never be due.
        loop._clock_resolution = _RESOLUTION  # noqa: SLF001
        return loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; if nothing is, `timeout` seconds have passed."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(min(timeout, self._patience))
        if not ready:
            self._elapsed += timeout
        return ready
