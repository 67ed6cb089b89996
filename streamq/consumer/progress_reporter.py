"""The reports of a worker's runs, on their way to the server.

A report is noted, and one loop per worker writes what was noted last, of all its tasks in one step
and at most every 0.1 s. The last report of a run is written when the run ends, before its
outcome is settled. A string key with a TTL holds it, and the same JSON is published on a channel
of the key's name.
"""

from __future__ import annotations

import logging
from typing import Any

import anyio

from streamq.errors import BrokerError
from streamq.handlers.progress import Report
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.wire.delivery import Delivery

log = logging.getLogger("streamq")

PACE = 0.1  # seconds between two writes of one worker's reports
KEPT = 3600.0  # seconds that a report is kept while its task runs
KEPT_AFTER = 60.0  # seconds that the last report of a run is kept after the run
_AGAIN = 1.0  # seconds until what could not be written is tried again
_LAST_WORD = 1.0  # seconds that the end of a run waits for its last report
_AT_ONCE = 500  # reports for one script


class Reporter:
    """The reports of one worker's runs, on their way to the server.

    `open` has what each run that reports said last; `note` may be called in any thread.
    """

    def __init__(self, store: Store) -> None:
        self.open: dict[Delivery, Report] = {}
        self._store = store
        self._unwritten: dict[Delivery, None] = {}
        self._asleep = False
        self._wake = anyio.Event()
        self._looked = 0.0
        self._trouble = False
        self._writing = anyio.Lock()  # one step at a time: one that is sent again must not come after a newer one

    def __repr__(self) -> str:
        return f"<Reporter {len(self.open)} runs report, {len(self._unwritten)} reports unwritten>"

    def note(self, delivery: Delivery, done: float, total: float | None, note: str, data: Any) -> bool:
        """Note a report in place of the one before; return whether the loop sleeps and must be woken.

        Raises ConfigurationError for what cannot be reported.
        """
        self.open[delivery] = Report.of(done, total, note, data, self._store.clock.now())
        self._unwritten[delivery] = None
        # The order matters: the loop says that it sleeps, and looks then; see report_forever.
        must_wake, self._asleep = self._asleep, False
        return must_wake

    def forget(self, delivery: Delivery) -> None:
        """Drop what was noted of a run that is over; in any thread."""
        self.open.pop(delivery, None)
        self._unwritten.pop(delivery, None)

    def wake(self) -> None:
        """Wake the loop; in the event loop's thread."""
        self._wake.set()

    def due(self) -> bool:
        """Has a handler that reports all the time gone on for long enough without a pause?"""
        now = self._store.clock.elapsed()
        if now - self._looked < PACE:
            return False
        self._looked = now
        return True

    async def report_forever(self) -> None:
        """Write what was noted, at once and then every 0.1 s at most; sleep while there is nothing."""
        while True:
            self._wake = anyio.Event()
            self._asleep = True
            if not self._unwritten:
                await self._wake.wait()
            self._asleep = False
            async with self._writing:
                written = await self._write()
            await anyio.sleep(PACE if written else _AGAIN)

    async def close(self, delivery: Delivery) -> None:
        """Write the last report of a run that has ended; at most a second, and not while the server is away."""
        report = self.open.pop(delivery, None)
        self._unwritten.pop(delivery, None)
        if report is None or self._trouble:
            return
        with anyio.move_on_after(_LAST_WORD, shield=True):
            async with self._writing:
                await self._say([(delivery, report)], KEPT_AFTER)

    async def _write(self) -> bool:
        batch: list[tuple[Delivery, Report]] = []
        while self._unwritten and len(batch) < _AT_ONCE:
            delivery, _ = self._unwritten.popitem()  # a thread may put it in again, which writes it again
            if (report := self.open.get(delivery)) is not None:
                batch.append((delivery, report))
        if not batch or await self._say(batch, KEPT):
            return True
        self._unwritten.update((delivery, None) for delivery, _ in batch if delivery in self.open)
        return False

    async def _say(self, batch: list[tuple[Delivery, Report]], kept: float) -> bool:
        """Write reports in one step; return whether the server took them. Never fails a task."""
        keys = [self._store.keys.progress(delivery.task_id) for delivery, _ in batch]
        flat = [part for _, report in batch for part in (round(kept * 1000), report.packed())]
        try:
            await self._store.one(step("progress")(keys, *flat))
        except BrokerError as error:
            if not self._trouble:
                log.warning("progress cannot be written, the tasks go on: %s", error)
            self._trouble = True
            return False
        self._trouble = False
        return True
