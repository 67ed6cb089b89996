"""The workers and the server, as the log tells of them: who was well when, who was told to stop, who left.

Pure. Answers what excuses a redelivery; notes stops and exits that went wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from streamq.testing.findings import Findings, Question
from streamq.testing.recorder import Record
from streamq.testing.verdict import Limits

NEVER = float("-inf")
_ENDS = {"thawed": "frozen", "healed": "cut", "unblocked": "blocked"}


@dataclass(slots=True)
class Member:
    """One worker. What is said of its process begins anew when it comes `up` again under the same name."""

    number: int
    up: bool = False
    dead: bool = False
    impaired: set[str] = field(default_factory=set)  # what keeps it from its leases just now
    unwell_until: float = NEVER
    stops: int = 0
    told_at: float = 0.0
    said: bool = False  # it says that it stops, so somebody told it
    left: bool = False  # it has stopped
    code: int | None = None
    ended_at: float = 0.0
    judged: bool = False

    @property
    def well(self) -> bool:
        """Is it up, and can it do its work?"""
        return self.up and not (self.dead or self.impaired or self.left)


class Uptime:
    """Seconds in which a stuck task could have been recovered: the server up, and a worker well.

    It runs on while no worker has ever said that it is up: then nobody says so in this log.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._last = NEVER
        self._running = True

    def __repr__(self) -> str:
        return f"<Uptime {self._total:.3f} running={self._running}>"

    def at(self, now: float) -> float:
        """Return the reading at a moment. Moments that come late do not turn it back."""
        if now > self._last:
            if self._running and self._last != NEVER:
                self._total += now - self._last
            self._last = now
        return self._total

    def switch(self, now: float, running: bool) -> None:
        """Let it run, or stop it."""
        self.at(now)
        self._running = running


class Fleet:
    """All workers by name, and the server."""

    def __init__(self, limits: Limits, found: Findings) -> None:
        self.uptime = Uptime()
        self.deaths = 0
        self._limits = limits
        self._found = found
        self._members: dict[str, Member] = {}
        self._names: list[str] = []
        self._announced = False
        self._server_up = True
        self._server_bad_until = NEVER
        self._outages: list[tuple[float, float]] = []
        self._down_since = 0.0

    def __repr__(self) -> str:
        return f"<Fleet {len(self._members)} workers, server {'up' if self._server_up else 'down'}>"

    def member(self, who: str) -> Member:
        """Return a worker, by name."""
        member = self._members.get(who)
        if member is None:
            member = self._members[who] = Member(len(self._names) % 0xFFFF)
            self._names.append(who)
        return member

    def name(self, number: int) -> str:
        """Return a worker's name, by number."""
        return self._names[number] if number < len(self._names) else "?"

    # --- what excuses ----------------------------------------------------------------------------

    def disturbed(self, who: str, at: float) -> bool:
        """Was this worker, or the server, unwell at any time within the window before this moment?"""
        since = at - self._limits.window
        if not self._server_up or self._server_bad_until > since:
            return True
        member = self.member(who)
        return bool(member.impaired or member.unwell_until > since)

    def may_release(self, who: str, at: float) -> bool:
        """May this worker have handed back what it runs? Told twice to stop, or once and its time is over."""
        member = self.member(who)
        if member.stops > 1 or member.left:
            return True
        grace = self._limits.grace
        return member.stops == 1 and (grace is None or at >= member.told_at + grace - self._limits.slack)

    # --- records -----------------------------------------------------------------------------------

    def up(self, record: Record) -> None:
        """A worker reads; a process of the same name that was up before is gone."""
        old = self.member(record.who)
        if old.up or old.dead or old.left:
            self._judge(record.who, old)
            self._members[record.who] = Member(old.number)
        self._members[record.who].up = True
        self._announced = True
        self._switch(record.at)

    def died(self, record: Record) -> bool:
        """A worker was killed, or its process ended by a signal. False if that was said before."""
        member = self.member(record.who)
        news, member.dead = not member.dead, True
        self.deaths += news
        member.impaired.clear()
        member.unwell_until = max(member.unwell_until, record.at)
        self._switch(record.at)
        return news

    def exit(self, record: Record) -> None:
        """A worker's process ended by itself."""
        member = self.member(record.who)
        member.code = record.details.get("code", 0)
        member.ended_at = record.at
        member.left = True
        self._switch(record.at)

    def impaired(self, record: Record) -> None:
        """A worker is frozen, cut off, or its loop blocked."""
        self.member(record.who).impaired.add(record.what)
        self._switch(record.at)

    def recovered(self, record: Record) -> bool:
        """One of these is over; is the worker well again?"""
        member = self.member(record.who)
        member.impaired.discard(_ENDS[record.what])
        member.unwell_until = max(member.unwell_until, record.at)
        self._switch(record.at)
        return not member.impaired

    def stop(self, record: Record) -> None:
        """A worker is told to stop."""
        member = self.member(record.who)
        member.stops += 1
        if member.stops == 1:
            member.told_at = record.at

    def stopping(self, record: Record) -> None:
        """A worker says that it stops."""
        member = self.member(record.who)
        member.said = True
        if not member.stops:
            member.stops = 1
            member.told_at = record.at

    def stopped(self, record: Record) -> None:
        """A worker says that it has stopped."""
        self.member(record.who).left = True
        self._switch(record.at)

    def down(self, record: Record) -> None:
        """The server cannot be used from now on."""
        if self._server_up:
            self._down_since = record.at
        self._server_up = False
        self._switch(record.at)

    def back(self, record: Record) -> None:
        """The server can be used again."""
        if not self._server_up:
            self._outages.append((self._down_since, record.at))
        self._server_up = True
        self._server_bad_until = max(self._server_bad_until, record.at)
        self._switch(record.at)

    def upset(self, at: float) -> None:
        """The server lost data at this moment: what follows is excused as after an outage."""
        self._server_bad_until = max(self._server_bad_until, at)

    def _switch(self, at: float) -> None:
        any_well = not self._announced or any(member.well for member in self._members.values())
        self.uptime.switch(at, self._server_up and any_well)

    # --- at the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Judge how the processes ended, once nothing more is said of them."""
        for who, member in self._members.items():
            self._judge(who, member)

    def in_order(self) -> Iterator[str]:
        """Yield the workers that were told to stop, and did."""
        yield from (who for who, member in self._members.items() if member.left and member.stops and not member.dead)

    def _judge(self, who: str, member: Member) -> None:
        if member.dead or member.judged:
            return
        member.judged = True
        if member.stops:
            self._judge_stop(who, member)
        elif member.code:
            self._found.note(Question.EXITS, f"{who} ended by itself, with code {member.code}")
        elif member.code is not None and member.up and not member.said:
            self._found.note(Question.EXITS, f"{who} ended by itself, though with code 0")

    def _judge_stop(self, who: str, member: Member) -> None:
        if member.code is None:
            if not member.left:
                self._found.note(Question.STOPPING, f"{who} was told to stop and never ended")
            return
        took = member.ended_at - member.told_at
        if member.code:
            self._found.note(Question.STOPPING, f"{who} was told to stop and ended with code {member.code}")
        elif self._limits.grace is not None and took - self._spared(member) > self._limits.grace + self._limits.slack:
            self._found.note(Question.STOPPING, f"{who} took {took:.3f} s to stop, grace {self._limits.grace:g} s")

    def _spared(self, member: Member) -> float:
        """Return the seconds of a stop for which nobody blames the worker."""
        if member.impaired or member.unwell_until > member.told_at:
            return float("inf")
        told, ended = member.told_at, member.ended_at
        return sum(max(0.0, min(until, ended) - max(since, told)) for since, until in self._outages)
