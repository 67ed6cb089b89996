"""The progress reporter: writes what running tasks report of their progress.

A report is noted in memory. One loop per worker writes the latest report of each task, all in one step, at most every
0.1 s. The last report of a run is written when the run ends, before its outcome is settled. A report is a string key
with a TTL, and the same JSON is published on the channel of that name.
"""

from __future__ import annotations

from typing import Any

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.handlers.progress import Report
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

_WRITING = "writing progress"
WRITE_EVERY = 0.1  # seconds between two writes of one worker's reports
KEPT = 3600.0  # seconds that a report is kept while its task runs
KEPT_AFTER = 60.0  # seconds that the last report of a run is kept after the run
_RETRY_AFTER = 1.0  # seconds until reports that could not be written are tried again
_WAIT_FOR_LAST = 1.0  # seconds that the end of a run waits for its last report
_MOST_REPORTS = 500  # reports for one script


class ProgressReporter:
    """Writes the reports of one worker's runs.

    `open` has the latest report of each run that reports. `note` may be called in any thread.
    """

    def __init__(self, store: Store) -> None:
        self.open: dict[Delivery, Report] = {}
        self._store = store
        self._unwritten: dict[Delivery, None] = {}
        self._asleep = False
        self._wake = anyio.Event()
        self._paused_at = 0.0
        self._trouble = False
        self._writing = anyio.Lock()  # one write at a time: one that is sent again must not arrive after a newer one

    def __repr__(self) -> str:
        return f"<ProgressReporter {len(self.open)} runs report, {len(self._unwritten)} reports unwritten>"

    def note(self, delivery: Delivery, done: float, total: float | None, note: str, data: Any) -> bool:
        """Note a report, which replaces the one before; return whether the loop sleeps and must be woken.

        Raises ConfigurationError for values that cannot be reported.
        """
        self.open[delivery] = Report.of(done, total, note, data, self._store.clock.now())
        self._unwritten[delivery] = None
        # The order matters: report_forever sets `_asleep` first, and looks for reports then.
        must_wake, self._asleep = self._asleep, False
        return must_wake

    def forget(self, delivery: Delivery) -> None:
        """Drop the report of a run that has ended; in any thread."""
        self.open.pop(delivery, None)
        self._unwritten.pop(delivery, None)

    def wake(self) -> None:
        """Wake the loop; in the event loop's thread."""
        self._wake.set()

    def due(self) -> bool:
        """Must a handler that reports all the time pause now, so that the loop can write?"""
        now = self._store.clock.elapsed()
        if now - self._paused_at < WRITE_EVERY:
            return False
        self._paused_at = now
        return True

    async def report_forever(self) -> None:
        """Write reports, at once and then every 0.1 s at most; sleep while there is none."""
        while True:
            self._wake = anyio.Event()
            self._asleep = True
            if not self._unwritten:
                await self._wake.wait()
            self._asleep = False
            async with self._writing:
                written = await self._write()
            await anyio.sleep(WRITE_EVERY if written else _RETRY_AFTER)

    async def close(self, delivery: Delivery) -> None:
        """Write the last report of a run that has ended: for at most 1 s, and not while the server is away."""
        report = self.open.pop(delivery, None)
        self._unwritten.pop(delivery, None)
        if report is None or self._trouble:
            return
        with anyio.move_on_after(_WAIT_FOR_LAST, shield=True):
            async with self._writing:
                await self._send([(delivery, report)], KEPT_AFTER)

    async def _write(self) -> bool:
        batch: list[tuple[Delivery, Report]] = []
        while self._unwritten and len(batch) < _MOST_REPORTS:
            delivery, _ = self._unwritten.popitem()  # a thread may add it again: then it is written again
            if (report := self.open.get(delivery)) is not None:
                batch.append((delivery, report))
        if not batch or await self._send(batch, KEPT):
            return True
        self._unwritten.update((delivery, None) for delivery, _ in batch if delivery in self.open)
        return False

    async def _send(self, batch: list[tuple[Delivery, Report]], kept: float) -> bool:
        """Write reports in one step; return whether the server took them. Never fails a task."""
        keys = [self._store.keys.progress(delivery.task_id) for delivery, _ in batch]
        flat = [part for _, report in batch for part in (round(kept * 1000), report.encode())]
        try:
            await self._store.one(step("progress")(keys, *flat))
        except BrokerError as error:
            refused = self._store.refusals.note_failed(_WRITING, error, then="the tasks go on")
            if not self._trouble and not refused:
                log.warning("progress cannot be written; the tasks go on: %s", error, event="refused")
            self._trouble = True
            return False
        if self._trouble:
            self._store.refusals.note_accepted(_WRITING)
        self._trouble = False
        return True
