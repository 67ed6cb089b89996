"""Refusals: what the server refuses while everything else goes on, each named once in the log, and in the health.

A step has a name ("the rate limit of 50/s"), and may be refused for some of its parts alone (tasks, keys, tiers). The
log has one line when a step is refused first, one when the reason changes, a reminder every 10 minutes while it is
refused again and again, and one when its last part is accepted. So a step that is tried every second for a thousand
keys does not fill the log.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from streamq.clock import SYSTEM, Clock, ServerClock
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.queue.missing_right import with_remedy
from streamq.queue.remedies import advised
from streamq.queue.server_errors import concerns_server, passes, shape
from streamq.wire.keys import Keys
from streamq.wire.rights import Role

log = SafeLog("streamq")

REMIND_EVERY: Final = 600.0  # seconds between two log lines with the same reason
_MOST_STEPS: Final = 1000
_MOST_PARTS: Final = 1000  # of one step
_MOST_NAMED: Final = 20  # steps in the health
_MOST_REASONS: Final = 10  # of one step that are remembered


class SaidBefore:
    """Reasons that were logged, and when: none is repeated within `REMIND_EVERY` seconds."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<SaidBefore {sorted(self._said)}>"

    def may_say(self, reason: str, now: float) -> bool:
        """Return whether this is to be logged now, and note that it was."""
        if now < self._said.get(reason, -math.inf) + REMIND_EVERY:
            return False
        if len(self._said) >= _MOST_REASONS and reason not in self._said:
            if now < min(self._said.values()) + REMIND_EVERY:
                return False
            del self._said[min(self._said, key=self._said.__getitem__)]
        self._said[reason] = now
        return True


@dataclass(slots=True)
class _Step:
    """A refused step: why, by part, and when each part was refused last."""

    said: SaidBefore = field(default_factory=SaidBefore)
    why: dict[str, str] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)


class Refusals:
    """The refused steps of one worker, or of one loop. False if there are none.

    `name` begins each line of the log. `forget_after` (s): a part that was not refused again for that long is dropped:
    it is not asked for any more. `role` names the rights that may be missing, `keys` the queue that they are for.
    """

    def __init__(
        self, name: str = "", *, clock: Clock | ServerClock = SYSTEM, forget_after: float = math.inf,
        role: Role | None = None, keys: Keys | None = None,
    ) -> None:  # fmt: skip
        self._prefix = f"{name}: " if name else ""
        self._clock = clock
        self._forget_after = forget_after
        self._role: Role | None = role
        self._keys = keys
        self._steps: dict[str, _Step] = {}

    def __repr__(self) -> str:
        return f"<Refusals {sorted(self._steps)}>"

    def __bool__(self) -> bool:
        return bool(self._steps)

    def note_refused(
        self, what: str, error: BrokerError, *, part: str = "", then: str = "everything else goes on"
    ) -> None:
        """Note that the server refuses a step, or a part of it. `then` says what follows."""
        now = self._clock.elapsed()
        step = self._steps.get(what)
        if step is None:
            self._forget(now)
            if len(self._steps) >= _MOST_STEPS:
                return
            step = self._steps[what] = _Step()
        why = str(error) if str(error).startswith(error.code) else f"{error.code} {error}"
        why = advised(with_remedy(why, error.code, self._role, self._keys), error.code)
        if part in step.why or len(step.why) < _MOST_PARTS:
            step.why[part], step.at[part] = why, now
        # The errors of two parts differ in the names of keys: their reason is the same.
        if step.said.may_say(error.code if part or passes(error) else shape(why), now):
            log.warning("%s%s is refused: %s; %s", self._prefix, _named(what, [part]), why, then, event="refused")

    def note_failed(
        self, what: str, error: BrokerError, *, part: str = "", then: str = "everything else goes on"
    ) -> bool:
        """Do as `note_refused`, unless the server cannot be used at all: then return False. That is said elsewhere."""
        if concerns_server(error):
            return False
        self.note_refused(what, error, part=part, then=then)
        return True

    def note_accepted(self, what: str, part: str = "") -> None:
        """Note that the server has carried out a step, or this part of it."""
        if self.forget(what, part) and what not in self._steps:
            log.warning("%s%s is refused no longer", self._prefix, _named(what, [part]), event="refused_no_longer")

    def forget(self, what: str, part: str = "") -> bool:
        """Drop a part that nobody will ask for any more; return whether it was refused."""
        step = self._steps.get(what)
        if step is None or step.why.pop(part, None) is None:
            return False
        del step.at[part]
        if not step.why:
            del self._steps[what]
        return True

    def named(self) -> list[str]:
        """Return what is refused, and why: one line for each step."""
        self._forget(self._clock.elapsed())
        some = list(self._steps.items())[:_MOST_NAMED]
        return [f"{_named(what, list(step.why))}: {next(iter(step.why.values()))}" for what, step in some]

    def _forget(self, now: float) -> None:
        if self._forget_after == math.inf:
            return
        for what, step in list(self._steps.items()):
            for part in [part for part, at in step.at.items() if at + self._forget_after <= now]:
                del step.why[part], step.at[part]
            if not step.why:
                del self._steps[what]


def _named(what: str, parts: list[str]) -> str:
    first = f" for {parts[0]}" if parts[0] else ""
    return f"{what}{first} and {len(parts) - 1} more" if len(parts) > 1 else f"{what}{first}"
