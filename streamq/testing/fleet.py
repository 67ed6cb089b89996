"""The state of the workers and of the server according to the log: which were well, stopping, or gone, and when.

Pure. Decides whether a redelivery is excused, and reports stops and exits that went wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from streamq.testing.findings import Findings, Question
from streamq.testing.recorder import Record
from streamq.testing.report import Limits

NEVER = float("-inf")
_IMPAIRMENT_OF = {"thawed": "frozen", "healed": "cut", "unblocked": "blocked"}


@dataclass(slots=True)
class WorkerState:
    """One worker. An `up` record with the same name replaces it, because it is a new process."""

    number: int
    up: bool = False
    dead: bool = False
    impaired: set[str] = field(default_factory=set)  # what prevents it from renewing its leases: frozen, cut, blocked
    unwell_until: float = NEVER
    stops: int = 0
    stop_requested_at: float = 0.0
    announced_stop: bool = False  # it recorded `stopping`, so it was asked to stop
    left: bool = False  # it has stopped or exited
    code: int | None = None
    ended_at: float = 0.0
    checked: bool = False

    @property
    def well(self) -> bool:
        """Is the worker up, and can it run tasks?"""
        return self.up and not (self.dead or self.impaired or self.left)


class Uptime:
    """Counts the seconds in which a stalled task could be recovered: the server up, and a worker well.

    If no worker ever records `up`, this log has no such records, and the time always counts.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._last = NEVER
        self._running = True

    def __repr__(self) -> str:
        return f"<Uptime {self._total:.3f} running={self._running}>"

    def at(self, now: float) -> float:
        """Return the counted seconds at a time. A time before the last one does not turn it back."""
        if now > self._last:
            if self._running and self._last != NEVER:
                self._total += now - self._last
            self._last = now
        return self._total

    def switch(self, now: float, running: bool) -> None:
        """Start or stop counting."""
        self.at(now)
        self._running = running


class Fleet:
    """The state of all workers and of the server."""

    def __init__(self, limits: Limits, findings: Findings) -> None:
        self.uptime = Uptime()
        self.deaths = 0
        self._limits = limits
        self._findings = findings
        self._workers: dict[str, WorkerState] = {}
        self._names: list[str] = []
        self._any_up = False
        self._server_up = True
        self._server_unwell_until = NEVER
        self._outages: list[tuple[float, float]] = []
        self._down_since = 0.0

    def __repr__(self) -> str:
        return f"<Fleet {len(self._workers)} workers, server {'up' if self._server_up else 'down'}>"

    def worker(self, who: str) -> WorkerState:
        """Return a worker by its name."""
        worker = self._workers.get(who)
        if worker is None:
            worker = self._workers[who] = WorkerState(len(self._names) % 0xFFFF)
            self._names.append(who)
        return worker

    def name(self, number: int) -> str:
        """Return the name of the worker with this number."""
        return self._names[number] if number < len(self._names) else "?"

    # --- excuses ----------------------------------------------------------------------------

    def disturbed(self, who: str, at: float) -> bool:
        """Was this worker or the server unwell at any time in the window before this time?"""
        since = at - self._limits.window
        if not self._server_up or self._server_unwell_until > since:
            return True
        worker = self.worker(who)
        return bool(worker.impaired or worker.unwell_until > since)

    def may_release(self, who: str, at: float) -> bool:
        """May this worker have released its tasks? Stopped twice, or once and its grace period is over."""
        worker = self.worker(who)
        if worker.stops > 1 or worker.left:
            return True
        grace = self._limits.grace
        return worker.stops == 1 and (grace is None or at >= worker.stop_requested_at + grace - self._limits.slack)

    # --- records -----------------------------------------------------------------------------------

    def up(self, record: Record) -> None:
        """A worker starts to read. An earlier process of the same name is gone."""
        old = self.worker(record.who)
        if old.up or old.dead or old.left:
            self._check_end(record.who, old)
            self._workers[record.who] = WorkerState(old.number)
        self._workers[record.who].up = True
        self._any_up = True
        self._update_uptime(record.at)

    def died(self, record: Record) -> bool:
        """A worker was killed, or a signal ended its process. False if that was recorded before."""
        worker = self.worker(record.who)
        first_report, worker.dead = not worker.dead, True
        self.deaths += first_report
        worker.impaired.clear()
        worker.unwell_until = max(worker.unwell_until, record.at)
        self._update_uptime(record.at)
        return first_report

    def exit(self, record: Record) -> None:
        """A worker's process exited."""
        worker = self.worker(record.who)
        worker.code = record.details.get("code", 0)
        worker.ended_at = record.at
        worker.left = True
        self._update_uptime(record.at)

    def impaired(self, record: Record) -> None:
        """A worker is frozen, cut off, or its event loop is blocked."""
        self.worker(record.who).impaired.add(record.what)
        self._update_uptime(record.at)

    def recovered(self, record: Record) -> bool:
        """One of these has ended. Return whether no other remains."""
        worker = self.worker(record.who)
        worker.impaired.discard(_IMPAIRMENT_OF[record.what])
        worker.unwell_until = max(worker.unwell_until, record.at)
        self._update_uptime(record.at)
        return not worker.impaired

    def stop(self, record: Record) -> None:
        """A worker is asked to stop."""
        worker = self.worker(record.who)
        worker.stops += 1
        if worker.stops == 1:
            worker.stop_requested_at = record.at

    def stopping(self, record: Record) -> None:
        """A worker recorded that it stops."""
        worker = self.worker(record.who)
        worker.announced_stop = True
        if not worker.stops:
            worker.stops = 1
            worker.stop_requested_at = record.at

    def stopped(self, record: Record) -> None:
        """A worker recorded that it has stopped."""
        self.worker(record.who).left = True
        self._update_uptime(record.at)

    def down(self, record: Record) -> None:
        """The server is down."""
        if self._server_up:
            self._down_since = record.at
        self._server_up = False
        self._update_uptime(record.at)

    def back(self, record: Record) -> None:
        """The server is up again."""
        if not self._server_up:
            self._outages.append((self._down_since, record.at))
        self._server_up = True
        self._server_unwell_until = max(self._server_unwell_until, record.at)
        self._update_uptime(record.at)

    def lost_data(self, at: float) -> None:
        """The server lost data at this time. Redeliveries are excused as after an outage."""
        self._server_unwell_until = max(self._server_unwell_until, at)

    def _update_uptime(self, at: float) -> None:
        any_well = not self._any_up or any(worker.well for worker in self._workers.values())
        self.uptime.switch(at, self._server_up and any_well)

    # --- at the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Check how the processes ended, after the last record."""
        for who, worker in self._workers.items():
            self._check_end(who, worker)

    def stopped_workers(self) -> Iterator[str]:
        """Yield the workers that were asked to stop, and did."""
        yield from (who for who, worker in self._workers.items() if worker.left and worker.stops and not worker.dead)

    def _check_end(self, who: str, worker: WorkerState) -> None:
        if worker.dead or worker.checked:
            return
        worker.checked = True
        if worker.stops:
            self._check_stop(who, worker)
        elif worker.code:
            self._findings.note(Question.EXITS, f"{who} ended by itself, with code {worker.code}")
        elif worker.code is not None and worker.up and not worker.announced_stop:
            self._findings.note(Question.EXITS, f"{who} ended by itself, though with code 0")

    def _check_stop(self, who: str, worker: WorkerState) -> None:
        if worker.code is None:
            if not worker.left:
                self._findings.note(Question.STOPPING, f"{who} was asked to stop and never ended")
            return
        took = worker.ended_at - worker.stop_requested_at
        if worker.code:
            self._findings.note(Question.STOPPING, f"{who} was asked to stop and ended with code {worker.code}")
        elif (
            self._limits.grace is not None
            and took - self._excused_seconds(worker) > self._limits.grace + self._limits.slack
        ):
            self._findings.note(Question.STOPPING, f"{who} took {took:.3f} s to stop, grace {self._limits.grace:g} s")

    def _excused_seconds(self, worker: WorkerState) -> float:
        """Return the seconds of a stop that outages or disturbances excuse."""
        if worker.impaired or worker.unwell_until > worker.stop_requested_at:
            return float("inf")
        requested, ended = worker.stop_requested_at, worker.ended_at
        return sum(max(0.0, min(until, ended) - max(since, requested)) for since, until in self._outages)
