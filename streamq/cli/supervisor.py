"""`streamq worker --processes N`, `--reload`, `--max-rss`: runs worker processes and replaces those that end.

Each child has a slot. A slot starts a child, waits for its end, and starts the next one after a delay. The
delay grows while children end soon after their start. The first child starts alone: if a usage error ends
it, no other child starts, and the error is printed once. A child with a replacement (see `recycling`) leaves its
slot to that, once that reads or the child has ended.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio

from streamq.cli import logs
from streamq.cli.child_process import WorkerProcess, any_of, cancel_after, exit_reason
from streamq.cli.recycling import EXIT_TIMEOUT, Recycler
from streamq.cli.source_watch import SourceWatch, relative_name
from streamq.cli.stop_signals import exit_now, ignore
from streamq.cli.usage_errors import FAILED, USAGE
from streamq.cli.worker_settings import Settings
from streamq.diagnostics.safe_log import SafeLog
from streamq.tasks.retry_policy import Backoff

log = SafeLog("streamq.cli")

_WATCH_INTERVAL = 0.4  # seconds between two checks for changed files
_HEALTHY_AFTER = 10.0  # seconds of uptime after which earlier failures of a slot no longer count
_LAST_WORDS = 1.0  # seconds that a reader of the log gets at the end
_RELOAD_GRACE = 2.0  # seconds for running tasks when source files changed
_RESTART_BACKOFF = Backoff(base=0.5, factor=2.0, cap=30.0, jitter=False)


def supervise(settings: Settings) -> int:
    """Run child processes until stopped, or with --burst until the queue is empty. Return the exit code."""
    written = logs.set_up_aside(settings.log_format, settings.log_level)  # its loop must hear signals
    code = anyio.run(_Supervisor(settings).run)
    if not written(_LAST_WORDS):
        exit_now(code)
    return code


class _Supervisor:
    """Runs the slots, and stops them on a signal or when source files change."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stop_level = 0
        self.exit_code = 0
        self._children: list[WorkerProcess] = []  # that have not ended, those that drain or start included
        self._first_ready = anyio.Event()  # set once a child was ready: later failures are no usage errors
        self._stopped = anyio.Event()
        self._changed = anyio.Event()
        self._sources = SourceWatch()
        self._recycler = Recycler(settings, self._start, self._stopped)

    def __repr__(self) -> str:
        return f"<_Supervisor of {self.settings.processes} stop_level={self.stop_level} children={self._children}>"

    async def run(self) -> int:
        """Run all slots until each has ended."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await self._run_slots(signals)
        ignore()  # all have ended: a signal must not change the exit code
        return self.exit_code

    async def _run_slots(self, signals: AsyncIterator[signal.Signals]) -> None:
        async with anyio.create_task_group() as background:
            background.start_soon(self._handle_signals, signals)
            if self.settings.reload:
                background.start_soon(self._watch_sources)
            async with anyio.create_task_group() as slots:
                self._slots = slots
                slots.start_soon(self._run_slot, 0)
            background.cancel_scope.cancel()

    # --- one slot ----------------------------------------------------------------------------

    async def _run_slot(self, slot: int) -> None:
        """Run one child after the other in this slot until the supervisor stops."""
        failures, child = 0, await self._start_in_the_end(slot)
        while child is not None:
            await any_of(child.ended, child.replaced)
            exit_code = child.process.returncode
            over = self.settings.burst and exit_code == 0 and not child.replaced.is_set()
            if over and child.replacement is not None:
                await child.replacement.send_stop(1)
            if self.stop_level or over:
                return
            if child.replacement is not None:
                if not (child.replaced.is_set() or child.stale):
                    self._log_end(slot, child, "its replacement is starting")
                failures, child = 0, child.replacement
                continue
            if child.stale:
                failures, child = 0, await self._start_in_the_end(slot)
                continue
            if exit_code == USAGE and not self._first_ready.is_set() and not self.settings.reload:
                self.exit_code = USAGE
                return
            failures = 1 if time.monotonic() - child.started > _HEALTHY_AFTER else failures + 1
            await self._wait_before_restart(slot, child, failures)
            if self.stop_level:
                return
            child = await self._start_in_the_end(slot)

    async def _start_in_the_end(self, slot: int) -> WorkerProcess | None:
        """Start a child for a slot, once the system has a process for it; None if the supervisor stops before.

        A lack of processes, memory or descriptors passes: the children that run must not end for it.
        """
        failures = 0
        while not self.stop_level:
            try:
                return await self._start(slot)
            except OSError as error:
                failures += 1
                delay = _RESTART_BACKOFF.ceiling(failures)
                log.warning(
                    "worker %d cannot be started: %s; the next try is in %g s", slot + 1, error, delay, event="shortage"
                )
                with anyio.move_on_after(delay):
                    await self._stopped.wait()
        return None

    async def _start(self, slot: int) -> WorkerProcess:
        """Start a child for a slot. The supervisor knows it until it has ended."""
        child = await WorkerProcess.start(self._settings_for(slot))
        self._children.append(child)
        self._slots.start_soon(self._attend, slot, child)
        if self.stop_level:
            await child.send_stop(self.stop_level)
        return child

    def _settings_for(self, slot: int) -> Settings:
        settings = self.settings
        name = settings.name if settings.name is None or settings.processes == 1 else f"{settings.name}/{slot + 1}"
        metrics = settings.metrics
        if metrics is not None and metrics[1]:  # 0: the system chooses for each
            metrics = (metrics[0], metrics[1] + slot)
        return replace(settings, name=name, metrics=metrics, first=not self._first_ready.is_set())

    async def _attend(self, slot: int, child: WorkerProcess) -> None:
        """Read the messages of a child until it has ended."""
        async with child.stream, anyio.create_task_group() as group:
            group.start_soon(self._read_messages, slot, child)
            await child.process.wait()
            # Read its last messages as well: the stream ends soon, because the process has ended.
            group.cancel_scope.deadline = anyio.current_time() + 0.5
        self._children.remove(child)
        if self.stop_level and child.process.returncode == FAILED:  # it says so: it failed, or could not stop in time
            self.exit_code = self.exit_code or FAILED
        child.ended.set()

    async def _read_messages(self, slot: int, child: WorkerProcess) -> None:
        async for message in child.messages():
            self._handle_message(slot, child, message)

    def _handle_message(self, slot: int, child: WorkerProcess, message: dict[str, Any]) -> None:
        self._sources.watch(message.get("files", ()))
        if message.get("ready"):
            child.note_ready()
            if not self._first_ready.is_set():
                self._first_ready.set()
                for other in range(self.settings.processes):
                    if other != slot:
                        self._slots.start_soon(self._run_slot, other)
        if outgrown := message.get("outgrown"):
            self._slots.start_soon(self._recycler.replace, slot, child, outgrown)

    async def _wait_before_restart(self, slot: int, child: WorkerProcess, failures: int) -> None:
        """Wait before the next start: for a delay, or with --reload after a usage error for changed source files."""
        delay = _RESTART_BACKOFF.ceiling(failures)
        waits_for_code = self.settings.reload and child.process.returncode == USAGE
        next_step = "waiting for changed source files" if waits_for_code else f"restart in {delay:g} s"
        self._log_end(slot, child, next_step)
        async with anyio.create_task_group() as group:
            for event in (self._stopped, self._changed):
                group.start_soon(cancel_after, event, group.cancel_scope)
            await (anyio.sleep_forever() if waits_for_code else anyio.sleep(delay))
            group.cancel_scope.cancel()

    def _log_end(self, slot: int, child: WorkerProcess, next_step: str) -> None:
        reason = exit_reason(child.process.returncode or 0)
        log.warning(
            "worker %d (pid %d) %s; %s", slot + 1, child.process.pid, reason, next_step, event="process_ended"
        )  # fmt: skip

    # --- all of them ---------------------------------------------------------------------------

    async def _handle_signals(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            self.stop_level += 1
            self._stopped.set()
            action = {1: "draining", 2: "releasing the running tasks of"}.get(self.stop_level, "killing")
            log.info(
                "%s %d process%s%s",
                action,
                len(self._children),
                "es" * (len(self._children) != 1),
                "; press Ctrl-C or send SIGTERM again to stop now" * (self.stop_level == 1),
                event="supervisor",
            )
            if self.stop_level > 2:
                self.exit_code = 128 + number
            self._slots.start_soon(self._stop, self.stop_level)

    async def _stop(self, stop_level: int) -> None:
        """Send every child this stop level, and kill those that do not exit in time."""
        children = self._children.copy()
        for child in children:
            await child.send_stop(stop_level)
        timeout = EXIT_TIMEOUT + (self.settings.grace if stop_level == 1 else 0.0)
        with anyio.move_on_after(timeout):
            for child in children:
                await child.process.wait()
        for child in children:
            if child.process.returncode is None:
                log.warning(
                    "pid %d did not exit within %g s: killed", child.process.pid, timeout, event="process_killed"
                )
                self.exit_code = self.exit_code or FAILED
                await child.send_stop(3)

    async def _watch_sources(self) -> None:
        """Replace all children when a source file has changed."""
        while True:
            await anyio.sleep(_WATCH_INTERVAL)
            changed = self._sources.changed_files()
            if not changed or self.stop_level:
                continue
            names = ", ".join(map(relative_name, changed[:3]))
            log.info("%s changed: restarting", names, event="reload")
            event, self._changed = self._changed, anyio.Event()
            event.set()
            for child in self._children.copy():
                child.stale = True
                self._slots.start_soon(self._end_stale, child)

    async def _end_stale(self, child: WorkerProcess) -> None:
        for stop_level, timeout in ((1, _RELOAD_GRACE), (2, EXIT_TIMEOUT), (3, EXIT_TIMEOUT)):
            await child.send_stop(stop_level)
            with anyio.move_on_after(timeout):
                await child.process.wait()
                return
