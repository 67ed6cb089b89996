"""Take-overs: says in the log which dead workers' deliveries a sweep has reclaimed, and which of them are suspects.

Nothing is said, and nothing is done, where a sweep finds no dead worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import UndecodableError
from streamq.wire.delivery import Delivery

log = SafeLog("streamq")

_MOST_NAMED: Final = 5  # workers in one line


class TakeOvers:
    """What one worker has reclaimed from dead ones since the last line of the log.

    `suspect_after` is how many workers must have died with a delivery until it is a suspect, `max_crashes` how many
    make it a dead letter. A large backlog is reclaimed by many sweeps: there is one line in `interval` seconds, and one
    when all is taken.
    """

    def __init__(self, name: str, *, suspect_after: int, max_crashes: int, interval: float) -> None:
        self._name = name
        self._suspect_after = max(1, suspect_after)
        self._max_crashes = max_crashes
        self._interval = interval
        self._taken: Counter[str] = Counter()  # deliveries, by the worker that died
        self._said_at = float("-inf")

    def __repr__(self) -> str:
        return f"<TakeOvers of {self._name} {dict(self._taken)}>"

    def note(self, deliveries: Iterable[Delivery]) -> bool:
        """Note what one step of a sweep has reclaimed; return whether the owner of any of it was dead."""
        died = False
        for delivery in deliveries:
            if delivery.owner_died:
                died = True
                self._taken[delivery.crashed_workers[-1] if delivery.crashed_workers else "?"] += 1
                if len(delivery.crashed_workers) >= self._suspect_after:
                    self._warn(delivery)
        return died

    def say(self, now: float, *, complete: bool) -> None:
        """Log what was reclaimed: at the end of a sweep, and while that goes on once in each interval."""
        if not self._taken or not (complete or now >= self._said_at + self._interval):
            return
        total, workers = self._taken.total(), self._taken.most_common()
        if len(workers) == 1:
            whose = f"{workers[0][0]}, which did not renew its leases in time"
        else:
            some = ", ".join(f"{count} of {worker}" for worker, count in workers[:_MOST_NAMED])
            more = f" and of {len(workers) - _MOST_NAMED} more" if len(workers) > _MOST_NAMED else ""
            whose = f"{len(workers)} workers that did not renew their leases in time: {some}{more}"
        log.info(
            "%s: took over %d %s of %s", self._name, total, "task" if total == 1 else "tasks", whose, event="took_over"
        )
        self._taken.clear()
        self._said_at = now

    def _warn(self, delivery: Delivery) -> None:
        workers = delivery.crashed_workers
        enough = len(workers) + 1 >= self._max_crashes
        end = "if the next one dies of it" if enough else f"once {self._max_crashes} have died, and one of them of it"
        log.warning(
            "task %s %s was in the hands of %d workers that died (%s): it is to run alone, as soon as the others here "
            "have ended, or beside those that take longer than a lease; it becomes a dead letter, crash_loop, %s",
            *_who(delivery), len(workers), ", ".join(workers[-_MOST_NAMED:]), end, event="suspect", of=delivery,
        )  # fmt: skip


def _who(delivery: Delivery) -> tuple[str, str]:
    """Return the name and the id of a task, as far as they can be read."""
    try:
        return delivery.task, delivery.task_id
    except UndecodableError:
        return "?", delivery.entry_id.decode()
