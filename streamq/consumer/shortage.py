"""What the system may have no more of (RLIMIT_NPROC, a cgroup's pids.max, memory, descriptors): threads, processes.

That is a state of the machine, and no fault of the task that needs one. So it waits until there is one.
"""

from __future__ import annotations

import errno
import math
from typing import Final

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import str_of
from streamq.tasks.retry_policy import Backoff

log = SafeLog("streamq")

NO_MORE: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
_LONGEST_PAUSE: Final = 1.0  # seconds until the next try
_PAUSE: Final = Backoff(base=0.05, factor=2.0, cap=_LONGEST_PAUSE)


def is_shortage(error: BaseException | None) -> bool:
    """Does an error, or its cause, say that the system has no more descriptors or memory? That passes."""
    seen: set[int] = set()  # causes may come round to the first, and be as many as there is memory
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in NO_MORE:
            return True
        seen.add(id(error))
        error = error.__cause__
    return False


class NotStartedError(Exception):
    """Raised if the system has no thread, or no process, for a call. The call has not begun."""


class Shortage:
    """Whether the system has none of `what` ("threads") just now: when to try again, and what the health says."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.failures = 0  # in a row; whoever has started one sets 0
        self._failed_at = -math.inf
        self._why = ""

    def __repr__(self) -> str:
        return f"<Shortage of {self._what}: {self.failures} failures>"

    @property
    def trouble(self) -> str | None:
        """What keeps handlers waiting, None if nothing does."""
        if self.failures and anyio.current_time() < self._failed_at + 2 * _LONGEST_PAUSE:
            return f"the system has no more {self._what} ({self._why}); handlers in {self._what} wait for one"
        return None

    def note(self, error: Exception) -> NotStartedError:
        """Note that one could not be started; return the error to be raised."""
        self._why = str_of(error)
        self._failed_at = anyio.current_time()
        self.failures += 1
        if self.failures == 1:
            log.warning(
                "the system has no more %s (%s): handlers in %s wait for one",
                self._what,
                error,
                self._what,
                event="shortage",
            )
        return NotStartedError(self._why)

    async def wait(self) -> None:
        """Wait until the next try: for a Shortage with `failures`."""
        await anyio.sleep(self._failed_at + pause_after(self.failures) - anyio.current_time())


def pause_after(failures: int) -> float:
    """Return the seconds until the next try, after so many failures."""
    return _PAUSE.ceiling(failures)
