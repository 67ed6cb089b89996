"""Processes of a simulated world, and the one door to trio through which they can be suspended.

A process is a tree of tasks that carry its name in a context variable. Suspended, as by
SIGSTOP, none of its tasks runs: what would make one run is kept until it goes on. Killed, as
by SIGKILL, its streams are cut and it is not heard of any more; its tasks are then cancelled,
and what they do in their last moments reaches nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import trio
from trio._core._run import Runner, TheIOManager

if TYPE_CHECKING:
    from tests.simulation.seam import Cable
    from tests.simulation.world import World

LONGEST_INSTANT = 300_000  # steps of tasks after which time ought to have passed
MOST_IDLE_TURNS = 100_000  # turns of the loop in which no task was made to run

current: ContextVar[Process | None] = ContextVar("simulated_process", default=None)


class Spin(BaseException):
    """Tasks go on and on and no time passes."""


class Process:
    """One process of a world; a worker has its name."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.dead = False
        self.told = False  # to stop
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.cables: list[Cable] = []  # its connections, oldest first
        self.suspended = 0
        self.impairments: Counter[str] = Counter()
        self._kept: list[Any] = []

    def __repr__(self) -> str:
        state = "dead" if self.dead else "suspended" if self.suspended else "running"
        return f"<Process {self.name} {state}>"

    @property
    def running(self) -> bool:
        """Could it do something now, or once it is resumed?"""
        return not self.dead and not self.ended.is_set()

    def kill(self) -> None:
        """End it without a goodbye."""
        self.dead = True
        for cable in list(self.cables):
            cable.cut()
        self._release()
        self.scope.cancel()

    def suspend(self) -> None:
        """Have none of its tasks run until as many `resume` have been called."""
        if not self.dead:
            self.suspended += 1

    def resume(self) -> None:
        """Go on."""
        self.suspended = max(0, self.suspended - 1)
        if not self.suspended:
            self._release()

    def keep(self, task: Any) -> None:
        """A task would run, but must not now."""
        self._kept.append(task)

    def _release(self) -> None:
        self.suspended = 0
        kept, self._kept = self._kept, []
        for task in kept:
            task._runner.runq.append(task)


@contextmanager
def suspendable() -> Iterator[None]:
    """Have trio heed suspended processes, rarely ask the kernel, and notice when nothing goes on any more.

    There are no sockets here, and trio would ask for them at every turn of its loop.
    """
    plain, ask = Runner.reschedule, TheIOManager.get_events
    steps, turns, instant = 0, 0, 0.0

    def reschedule(runner: Any, task: Any, *value: Any) -> None:
        nonlocal steps, turns, instant
        plain(runner, task, *value)
        process = task.context.get(current)
        if process is not None and process.suspended:
            process.keep(runner.runq.pop())
        turns = 0
        steps += 1
        if steps > LONGEST_INSTANT:
            now = runner.clock.current_time()
            if now == instant:
                raise Spin(f"{steps} steps at {now} s")
            steps, instant = 0, now

    def get_events(manager: Any, timeout: float) -> Any:
        nonlocal turns
        turns += 1
        if turns > MOST_IDLE_TURNS:
            raise Spin("everybody waits, and no time will end it")
        return ask(manager, timeout) if timeout > 0 or turns % 16 == 0 else []

    with patch.object(Runner, "reschedule", reschedule), patch.object(TheIOManager, "get_events", get_events):
        yield
