"""Replaces a worker process that has grown too large, or has run many tasks (`--max-rss`, `--max-tasks`).

The old process works until its replacement reads. Then it drains, as with SIGTERM. So one of the two works at any time,
and no run is cut off that ends within the grace period. A replacement that does not come to read changes nothing: the
old process goes on, and another one is tried after a pause that grows.

What bounds the number of processes and of starts: a slot has two processes at most, since the next replacement waits
until the one before has drained; one replacement starts at a time; and a process works for at least as long as its
start took, however low its limits are.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

import anyio

from streamq.cli.child_process import KILL, WorkerProcess, any_of, cancel_after, exit_reason
from streamq.cli.process_limits import mebibytes
from streamq.cli.worker_settings import Settings
from streamq.diagnostics.safe_log import SafeLog
from streamq.tasks.retry_policy import Backoff

log = SafeLog("streamq.cli")

EXIT_TIMEOUT = 10.0  # seconds that a child may take to exit, beyond the grace period
_START_TIMEOUT = 600.0  # seconds until a replacement must read: its lifespan may load a model; the old one works
_PAUSES = Backoff(base=1.0, factor=2.0, cap=60.0, jitter=False)  # between two tries to start a replacement


class Recycler:
    """Replaces the processes of one supervisor.

    `start` starts a process in a slot. `stopped` is set when the supervisor stops.
    """

    def __init__(
        self, settings: Settings, start: Callable[[int], Awaitable[WorkerProcess]], stopped: anyio.Event
    ) -> None:
        self._settings = settings
        self._start = start
        self._stopped = stopped
        self._turn = anyio.Lock()  # one replacement starts at a time
        self._draining: dict[int, WorkerProcess] = {}  # by slot: the process that is replaced, or was last
        self._hasty = 0  # how many processes in a row passed a limit before they had worked long enough

    def __repr__(self) -> str:
        return f"<Recycler, {len(self._draining)} draining>"

    async def replace(self, slot: int, old: WorkerProcess, outgrown: Mapping[str, int]) -> None:
        """Start a replacement for a process that has reported what it has outgrown. End once the old one has ended."""
        async with anyio.create_task_group() as group:
            for event in (self._stopped, old.ended):
                group.start_soon(cancel_after, event, group.cancel_scope)
            await self._wait_for_turn(slot, old, outgrown)
            await self._until_replaced(slot, old, outgrown)
            group.cancel_scope.cancel()
        if old.replaced.is_set():
            await self._retire(slot, old)

    async def _wait_for_turn(self, slot: int, old: WorkerProcess, outgrown: Mapping[str, int]) -> None:
        """Wait until the process has worked long enough, and the one before it has drained."""
        early = 2 * old.start_took - (time.monotonic() - old.started)  # it has worked for less than its start took
        self._hasty = self._hasty + 1 if early > 0 else 0
        if self._hasty.bit_count() == 1:  # a power of two, so not for each
            log.warning(
                "worker %d (pid %d) needs a replacement so soon after its start (%s): most of the time would be spent "
                "on starts, so it comes later; give a higher limit",
                slot + 1, old.process.pid, self._reason(outgrown), event="recycle_failed", extra=outgrown,
            )  # fmt: skip
        await anyio.sleep(max(0.0, early))
        if (before := self._draining.get(slot)) is not None:
            await before.ended.wait()

    async def _until_replaced(self, slot: int, old: WorkerProcess, outgrown: Mapping[str, int]) -> None:
        """Start processes until one reads, or the old one is to stop."""
        failures = 0
        while not old.stop_level:
            async with self._turn:
                log.info(
                    "worker %d (pid %d): %s; starting its replacement",
                    slot + 1, old.process.pid, self._reason(outgrown), event="recycle", extra=outgrown,
                )  # fmt: skip
                failure = await self._try(slot, old)
            if failure is None:
                return
            failures += 1
            pause = _PAUSES.ceiling(failures)
            log.warning(
                "worker %d: a replacement %s; pid %d goes on; the next try is in %g s",
                slot + 1, failure, old.process.pid, pause, event="recycle_failed",
            )  # fmt: skip
            await anyio.sleep(pause)

    async def _try(self, slot: int, old: WorkerProcess) -> str | None:
        """Start one replacement. Return None once it reads, or is not needed any more; else how it failed."""
        try:
            new = await self._begin(slot, old)
        except OSError as error:  # the system has no more memory or processes
            return f"cannot be started: {error}"
        if new is None:
            return None
        with anyio.move_on_after(_START_TIMEOUT):
            await any_of(new.ready, new.ended)
        if new.ready.is_set() and not new.ended.is_set():
            old.replaced.set()
            log.info(
                "worker %d: pid %d reads; pid %d drains", slot + 1, new.process.pid, old.process.pid, event="recycle"
            )
            return None
        old.replacement = None
        self._draining.pop(slot, None)
        if new.stop_level:  # the supervisor stops both: a signal, or a changed source file
            return None
        if (code := new.process.returncode) is not None:
            return None if code == 0 and self._settings.burst else exit_reason(code)  # 0: the queue is empty
        await new.send_stop(KILL)
        return f"(pid {new.process.pid}) does not read after {_START_TIMEOUT:g} s: killed"

    async def _begin(self, slot: int, old: WorkerProcess) -> WorkerProcess | None:
        """Start a replacement; None if the old one has ended meanwhile, or is to stop."""
        with anyio.CancelScope(shield=True):  # a process that has been started must be known
            new = await self._start(slot)
            if old.ended.is_set() or old.stop_level:
                await new.send_stop(1)
            else:
                old.replacement = new
                self._draining[slot] = old  # now: the new one may ask for its own replacement at once
        return old.replacement

    async def _retire(self, slot: int, old: WorkerProcess) -> None:
        """Have a process drain that was replaced. Kill it if it does not exit in time."""
        await old.send_stop(1)
        patience = self._settings.grace + EXIT_TIMEOUT
        with anyio.move_on_after(patience):
            await old.ended.wait()
        if not old.ended.is_set():
            log.warning("pid %d did not exit within %g s: killed", old.process.pid, patience, event="process_killed")
            await old.send_stop(KILL)
            await old.ended.wait()
        if self._draining.get(slot) is old:
            del self._draining[slot]
        if code := old.process.returncode:
            log.warning("worker %d: the replaced pid %d %s", slot + 1, old.process.pid, exit_reason(code),
                        event="process_ended")  # fmt: skip
        else:
            log.info("worker %d: pid %d has drained", slot + 1, old.process.pid, event="recycle")

    def _reason(self, outgrown: Mapping[str, int]) -> str:
        limit = self._settings.max_rss
        if limit is not None and outgrown["rss"] > limit:
            return f"{mebibytes(outgrown['rss'])} of memory, --max-rss {mebibytes(limit)}"
        runs = outgrown["runs"]
        return f"{runs:,} run{'s' * (runs != 1)}, --max-tasks {self._settings.max_tasks:,}"
