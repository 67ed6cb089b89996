"""`streamq worker --processes N`, `--reload`: child processes that do the work, and are replaced when they die.

Each child has a slot. A slot starts a child, waits for its end and starts the next, after a
pause that grows while they end soon. The first child goes ahead alone: if it cannot start for
an error of use, nothing else is tried and the error is printed once.
"""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import replace
from typing import Any

import anyio

from streamq.cli import logs
from streamq.cli.child_process import WorkerProcess
from streamq.cli.source_watch import Changes, short
from streamq.cli.usage_errors import USAGE
from streamq.cli.worker_settings import Settings
from streamq.tasks.retry_policy import Backoff

log = logging.getLogger("streamq.cli")

_LOOK = 0.4  # seconds between two looks for changed files
_SETTLED = 10.0  # seconds after which a child counts as one that works
_LEAVING = 10.0  # seconds that a child may take beyond what it was told
_RELOAD_GRACE = 2.0  # seconds for running tasks when the code has changed
_PAUSES = Backoff(base=0.5, factor=2.0, cap=30.0, jitter=False)


def supervise(settings: Settings) -> int:
    """Run child processes until told to stop, or until a burst is over; return the exit code."""
    logs.set_up(settings.log_format, settings.log_level)
    return anyio.run(_Supervisor(settings).run)


class _Supervisor:
    """The slots, and what makes them stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.level = 0
        self.code = 0
        self._children: dict[int, WorkerProcess] = {}
        self._went_well = anyio.Event()  # a child was ready once, so later failures are not errors of use
        self._stopped = anyio.Event()
        self._changed = anyio.Event()
        self._changes = Changes()

    def __repr__(self) -> str:
        return f"<_Supervisor of {self.settings.processes} level={self.level} children={list(self._children.values())}>"

    async def run(self) -> int:
        """Run every slot to its end."""
        async with anyio.create_task_group() as around:
            around.start_soon(self._obey_signals)
            if self.settings.reload:
                around.start_soon(self._watch)
            async with anyio.create_task_group() as slots:
                self._slots = slots
                slots.start_soon(self._fill, 0)
            around.cancel_scope.cancel()
        return self.code

    # --- one slot ----------------------------------------------------------------------------

    async def _fill(self, slot: int) -> None:
        """Keep a child running in this slot for as long as there is to be one."""
        failures = 0
        while not self.level:
            child = await WorkerProcess.start(self._settings_for(slot))
            self._children[slot] = child
            if self.level:
                await child.tell(self.level)
            code = await self._until_it_ends(slot, child)
            del self._children[slot]
            if self.level or (self.settings.burst and code == 0):
                return
            if child.replaced:
                failures = 0
                continue
            if code == USAGE and not self._went_well.is_set() and not self.settings.reload:
                self.code = USAGE
                return
            failures = 1 if time.monotonic() - child.started > _SETTLED else failures + 1
            await self._pause(slot, child, code, failures)

    def _settings_for(self, slot: int) -> Settings:
        settings = self.settings
        name = settings.name if settings.name is None or settings.processes == 1 else f"{settings.name}/{slot + 1}"
        return replace(settings, name=name, first=not self._went_well.is_set())

    async def _until_it_ends(self, slot: int, child: WorkerProcess) -> int:
        async with child.stream, anyio.create_task_group() as group:
            group.start_soon(self._listen, slot, child)
            await child.process.wait()
            # What it said last is still read: the stream ends because its process has.
            group.cancel_scope.deadline = anyio.current_time() + 0.5
        return await child.process.wait()

    async def _listen(self, slot: int, child: WorkerProcess) -> None:
        async for said in child.words():
            self._heard(slot, said)

    def _heard(self, slot: int, said: dict[str, Any]) -> None:
        self._changes.watch(said.get("files", ()))
        if said.get("ready") and not self._went_well.is_set():
            self._went_well.set()
            for other in range(self.settings.processes):
                if other != slot:
                    self._slots.start_soon(self._fill, other)

    async def _pause(self, slot: int, child: WorkerProcess, code: int, failures: int) -> None:
        """Wait before the next start: for a while, or for the code to change if it cannot start."""
        pause = _PAUSES.ceiling(failures)
        waits_for_code = self.settings.reload and code == USAGE
        then = "waiting for a change" if waits_for_code else f"a new one in {pause:g} s"
        log.warning("worker %d (pid %d) %s; %s", slot + 1, child.process.pid, _ending(code), then)
        async with anyio.create_task_group() as group:
            for event in (self._stopped, self._changed):
                group.start_soon(_cancel_after, event, group.cancel_scope)
            await (anyio.sleep_forever() if waits_for_code else anyio.sleep(pause))
            group.cancel_scope.cancel()

    # --- all of them ---------------------------------------------------------------------------

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                self.level += 1
                self._stopped.set()
                words = {1: "draining", 2: "handing back what runs in"}.get(self.level, "killing")
                log.info("%s %d processes%s", words, len(self._children), "; once more to stop now" * (self.level == 1))
                if self.level > 2:
                    self.code = 128 + number
                self._slots.start_soon(self._stop, self.level)

    async def _stop(self, level: int) -> None:
        """Tell every child, and end those by force that do not listen."""
        children = list(self._children.values())
        for child in children:
            await child.tell(level)
        patience = _LEAVING + (self.settings.grace if level == 1 else 0.0)
        with anyio.move_on_after(patience):
            for child in children:
                await child.process.wait()
        for child in children:
            if child.process.returncode is None:
                log.warning("pid %d did not end within %g s: killed", child.process.pid, patience)
                await child.tell(3)

    async def _watch(self) -> None:
        """Replace all children when a file of theirs has changed."""
        while True:
            await anyio.sleep(_LOOK)
            changed = self._changes.look()
            if not changed or self.level:
                continue
            names = ", ".join(map(short, changed[:3]))
            log.info("%s changed: restarting", names)
            event, self._changed = self._changed, anyio.Event()
            event.set()
            for child in list(self._children.values()):
                child.replaced = True
                self._slots.start_soon(self._replace, child)

    async def _replace(self, child: WorkerProcess) -> None:
        for level, patience in ((1, _RELOAD_GRACE), (2, _LEAVING), (3, _LEAVING)):
            await child.tell(level)
            with anyio.move_on_after(patience):
                await child.process.wait()
                return


async def _cancel_after(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
