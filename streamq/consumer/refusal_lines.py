"""The lines of the log about refused settlements: a bounded number, however many are refused.

Settlements are of one *kind* if the same thing is refused (the acknowledgement, the retry) for the same reason and key;
the keys of one family that have a task in their name (results, deduplication keys) count as one. A kind has a line when
it is refused first, when its tasks may become dead letters and when they are left: each again after `REMIND_EVERY`
seconds while that goes on, with the number of those between, which are at level debug. It has a line when the last of
its settlements has ended, with what became of them. Then it is forgotten, and the next refusal is a first one again,
`_MOST_OPENED` times in `REMIND_EVERY` seconds.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from streamq.clock import Clock, ServerClock
from streamq.consumer.refused_settlement import RefusedSettlement, times
from streamq.diagnostics.safe_log import DEBUG, ERROR, WARNING, SafeLog
from streamq.queue.refusals import REMIND_EVERY
from streamq.queue.server_errors import shape

log = SafeLog("streamq")

AS_DECIDED: Final = "as it was decided"
AS_DEAD_LETTER: Final = "as a dead letter"
_MOST_KINDS: Final = 100  # at a time; all others of one settlement count as one
_MOST_OPENED: Final = 5  # times that a kind comes and goes with lines of its own
_OF_TASKS: Final = "result|dedup|latest|id|progress|join"  # families of keys that name a task, or what it is about


@dataclass(slots=True, eq=False)
class _Kind:
    """The refused settlements of one kind, and which lines they had, when (monotonic)."""

    key: tuple[str, str]
    first: RefusedSettlement
    cause: str
    quiet_until: float
    members: dict[RefusedSettlement, None] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    said: dict[str, float] = field(default_factory=dict)
    unsaid: Counter[str] = field(default_factory=Counter)


class RefusalLines:
    """Logs the refused settlements of one consumer."""

    def __init__(self, namespace: str, clock: Clock | ServerClock) -> None:
        self._clock = clock
        self._of_tasks = re.compile(rf"\b({re.escape(namespace)}:(?:{_OF_TASKS})):[^\s,;'\"]+")
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._kinds_of: dict[RefusedSettlement, list[_Kind]] = {}
        self._opened: dict[tuple[str, str], list[float]] = {}

    def __repr__(self) -> str:
        return f"<RefusalLines of {len(self._kinds)} kinds>"

    # --- what happens to a settlement ----------------------------------------------------------

    def refused(self, one: RefusedSettlement) -> None:
        """Note that a settlement is refused for this reason, and is tried apart."""
        self._say(one, "refused", WARNING, f"{one}; it is tried apart, everything else goes on")

    def may_become_dead(self, one: RefusedSettlement) -> None:
        """Note that a settlement was refused so often that dead letters are tried in its place."""
        why = f"{one.what} was refused {times(one.refusals)}: {one.about}"
        self._say(one, "dead", ERROR, f"task {one.name} may become a dead letter ({one.becomes}): {why}")

    def left(self, one: RefusedSettlement) -> None:
        """Note that a settlement is refused in every way, and is left."""
        self._say(one, "left", ERROR, str(one))

    def given_up(self, one: RefusedSettlement, then: str) -> None:
        """Note that a settlement is not tried any more; `then` says what follows."""
        self._say(one, "given up", ERROR, f"{one}; {then}")
        self.ended(one, "given up")

    def ended(self, one: RefusedSettlement, how: str) -> None:
        """Note that a settlement has ended: as it was decided, as a dead letter, or otherwise."""
        for kind in self._kinds_of.pop(one, ()):
            del kind.members[one]
            kind.ended[how] += 1
            if not kind.members:
                del self._kinds[kind.key]
                self._say_over(kind, one)

    def remind(self) -> None:
        """Log again what was refused first long ago, and still is."""
        due = self._clock.elapsed() - REMIND_EVERY
        for kind in [kind for kind in self._kinds.values() if kind.said.get("refused", math.inf) <= due]:
            one = next(iter(kind.members))
            self._say(one, "refused", WARNING, f"{one}; {len(kind.members)} such settlements are refused still")

    # --- lines ---------------------------------------------------------------------------------

    def _say(self, one: RefusedSettlement, stage: str, level: int, text: str) -> None:
        kind, now = self._kind_of(one), self._clock.elapsed()
        if now < max(kind.quiet_until, kind.said.get(stage, -math.inf) + REMIND_EVERY):
            kind.unsaid[stage] += 1
            log.debug("%s", text, event="refused", of=one.delivery)
            return
        kind.said[stage] = now
        more = kind.unsaid.pop(stage, 0)
        said = f"{text}; {more} more such lines since the last one" if more else text
        log.at(level, "%s", said, event="refused", of=one.delivery)

    def _say_over(self, kind: _Kind, last: RefusedSettlement) -> None:
        """Log that the last settlement of a kind has ended, if any of them was settled."""
        text, count = f"{kind.key[0]} of {kind.first.name}", kind.ended.total()
        if not kind.ended.keys() & {AS_DECIDED, AS_DEAD_LETTER}:
            return
        if count == 1:
            (how,) = kind.ended
            text += f" is settled {how}, after {last.refusals} refusal{'s' * (last.refusals != 1)}"
        else:
            parts = ", ".join(f"{how}: {number}" for how, number in kind.ended.items())
            text += f" and {count - 1} more like it have ended ({parts})"
        over = "no longer refused" if AS_DECIDED in kind.ended else "what was refused"
        level = WARNING if kind.said else DEBUG
        log.at(level, "%s; %s: %s", text, over, kind.cause, event="refused_no_longer")

    # --- kinds -----------------------------------------------------------------------------------

    def _kind_of(self, one: RefusedSettlement) -> _Kind:
        """Return the kind of a settlement by its reason now, and count it as a member."""
        cause = self._of_tasks.sub(r"\1:*", one.cause)
        key = (one.what, cause if one.code in ("NOPERM", "WRONGTYPE") else shape(cause))
        if key not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            key = (one.what, "")
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(key, one, one.cause, self._quiet_until(key))
        if one not in kind.members and not one.gone:
            kind.members[one] = None
            self._kinds_of.setdefault(one, []).append(kind)
        return kind

    def _quiet_until(self, key: tuple[str, str]) -> float:
        """Note that a kind is opened; return until when it has no lines, because it comes and goes."""
        now = self._clock.elapsed()
        recent = [at for at in self._opened.pop(key, ()) if at + REMIND_EVERY > now]
        quiet = len(recent) >= _MOST_OPENED
        self._opened[key] = recent if quiet else [*recent, now]
        if len(self._opened) > _MOST_KINDS:
            del self._opened[next(iter(self._opened))]
        return recent[0] + REMIND_EVERY if quiet else -math.inf
