"""Tasks that this worker does not know, as during a rolling deploy: how long they wait for one that does. No I/O."""

from __future__ import annotations

from collections.abc import Collection

from streamq.diagnostics.safe_log import SafeLog
from streamq.tasks.outcome import DeadLetter, Outcome, Postpone, Reason
from streamq.wire.dead_letter_fields import Failure
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

FIRST_PAUSE = 2.0  # seconds until a task that is unknown here is delivered again, at first;
LONGEST_PAUSE = 5.0  # then half of the time that it has waited, and no more: others may take it again and again
_MOST_NAMES = 1_000  # that are logged


class UnknownTasks:
    """What becomes of deliveries whose task is none of `known`: they wait up to `wait` seconds, then they are dead."""

    def __init__(self, known: Collection[bytes], wait: float) -> None:
        self._known = known
        self._wait = wait
        self._logged: set[str] = set()

    def outcome(self, delivery: Delivery, now: float) -> Outcome:
        """Return the outcome of a delivery: postponed, until it has waited long enough. `now` is the server's time."""
        delivery.began = False
        since = delivery.unknown_since
        waited = 0.0 if since is None else now - since
        name = delivery.task
        if waited >= self._wait:
            known = ", ".join(sorted(task.decode() for task in self._known))
            text = f"no worker knew the task {name!r} for {waited:.0f} s; this one knows {known}"
            return DeadLetter(Reason.UNKNOWN_TASK, Failure("UnknownTask", text))
        if name not in self._logged and len(self._logged) < _MOST_NAMES:
            self._logged.add(name)
            log.warning(
                "this worker does not know the task %r; it is postponed, for %g s at most",
                name,
                self._wait,
                event="unknown_task",
                of=delivery,
            )
        # Longer each time: a deploy is seen soon, and a name that nobody knows costs little.
        pause = max(FIRST_PAUSE, min(waited / 2, LONGEST_PAUSE))
        pause = min(pause, max(0.05, self._wait / 5), max(0.05, self._wait - waited))
        return Postpone(pause, "unknown here", unknown=True)
