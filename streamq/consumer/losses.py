"""Losses: the lines of the log about streams and consumer groups that were gone, and that a worker has created anew.

Each loss has a line of its own, `MOST_SAID` at most in `WITHIN` seconds. The next line says how many had none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from streamq.clock import Clock, ServerClock
from streamq.diagnostics.safe_log import SafeLog

log = SafeLog("streamq")

MOST_SAID: Final = 5
WITHIN: Final = 10.0  # seconds


class Losses:
    """What one consumer has created anew. Each loss is said by the worker that has created what was gone."""

    def __init__(self, name: str, clock: Clock | ServerClock) -> None:
        self._name = name
        self._clock = clock
        self._said: deque[float] = deque(maxlen=MOST_SAID)  # when, monotonic
        self._unsaid = 0

    def __repr__(self) -> str:
        return f"<Losses of {self._name}: {self._unsaid} unsaid>"

    def note(self, streams: Sequence[str], groups: Sequence[str]) -> None:
        """Log the streams that were gone and are created anew, and those that had lost their consumer group alone."""
        if not (streams or groups) or not self._may_say():
            return
        more = f" ({self._unsaid} more such losses since the last line)" if self._unsaid else ""
        self._unsaid = 0
        if streams:
            log.warning("%s: %s%s", self._name, _emptied(streams, groups), more, event="server_emptied")
        else:
            log.warning("%s: %s%s", self._name, _destroyed(groups), more, event="group_restored")

    def _may_say(self) -> bool:
        now = self._clock.elapsed()
        if len(self._said) == MOST_SAID and now < self._said[0] + WITHIN:
            self._unsaid += 1
            return False
        self._said.append(now)
        return True


def _emptied(streams: Sequence[str], groups: Sequence[str]) -> str:
    """Say that streams were gone. Others have lost their group alone: most likely they were filled again at once."""
    gone = f"streams were gone ({', '.join(streams)})"
    lost = "tasks that waited there are lost"
    if groups:
        gone += f", and so was the consumer group of {', '.join(groups)}"
        lost += (
            f". {_these(groups)} either gone too, and filled again since (then what waited there before is lost), or "
            "lost the group alone (then all that waits there runs)"
        )
    return (
        f"{gone}; all is created anew: the server was emptied (FLUSHALL, a restart without persistence), or somebody "
        f"deleted them; {lost}"
    )


def _these(groups: Sequence[str]) -> str:
    return f"{groups[0]} was" if len(groups) == 1 else f"{', '.join(groups)} were"


def _destroyed(groups: Sequence[str]) -> str:
    return (
        f"the consumer group was gone from {', '.join(groups)} (XGROUP DESTROY), and is created anew from the "
        "beginning of the stream: what waits there runs. What ran at that moment may run again, and so does what is "
        "done and has been kept for another group. If the stream itself was deleted and has been filled since, what "
        "waited before is lost"
    )
