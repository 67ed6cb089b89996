"""What a queue is, in plain Python: the documented behaviour of every step, with no Redis in it.

Times are milliseconds of one clock, `now`. Entries get their ids from the server (`bind`), in the
order in which the model says that they are written. `docs/architecture.md` has the states,
`docs/wire-format.md` the keys; where this differs from the scripts, one of the three is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

RELEASED_CONSUMER = "released"
DAY = 86_400_000
FORGOTTEN = 3_600_000  # ms after which a consumer of whom nothing is known may be removed

EntryId = tuple[int, int]


@dataclass(slots=True)
class Held:
    """An entry in somebody's hands."""

    owner: str
    since: int


@dataclass(slots=True)
class Group:
    """What one consumer group knows of one tier."""

    last: EntryId = (0, 0)
    pending: dict[EntryId, Held] = field(default_factory=dict)
    alive: dict[str, int] = field(default_factory=dict)  # until when
    leases: dict[str, int] = field(default_factory=dict)
    liveness_ends: int = 0  # when both of them are forgotten
    crashes: dict[EntryId, tuple[str, ...]] = field(default_factory=dict)
    alone: dict[EntryId, str] = field(default_factory=dict)
    cancelled: set[EntryId] = field(default_factory=set)  # whose runs are to be cancelled
    evidence_ends: int = 0

    def forgive(self, entry: EntryId) -> None:
        self.crashes.pop(entry, None)
        self.alone.pop(entry, None)
        self.cancelled.discard(entry)


@dataclass(slots=True)
class Tier:
    """One stream and what is delayed for it."""

    groups: dict[str, Group]
    entries: dict[EntryId, dict[str, str]] = field(default_factory=dict)
    delayed: dict[str, tuple[int, list[str]]] = field(default_factory=dict)  # member -> due, flat fields


@dataclass(frozen=True, slots=True)
class Taken:
    """One delivery that a sweep took over."""

    entry: EntryId
    crashes: tuple[str, ...]
    convicted: bool
    orphaned: bool


class Model:
    """One namespace. Every method is one atomic step and returns what it answers."""

    def __init__(self, now: int, tiers: int, groups: Sequence[str], *, max_dead: int) -> None:
        self.now = now
        self.tiers = [Tier({name: Group() for name in groups}) for _ in range(tiers)]
        self.dead: dict[EntryId, dict[str, str]] = {}
        self.anybody_died = False  # then the stream stays, with or without entries
        self.kept: dict[str, tuple[str, int]] = {}  # strings with a TTL: results and guards
        self.stats: dict[str, tuple[dict[str, int], int]] = {}
        self.bind: Callable[[int | None, dict[str, str]], EntryId] = _unbound  # tier, None for the dead letters
        self._max_dead = max_dead

    # --- time ----------------------------------------------------------------------------------

    def advance(self, ms: int) -> None:
        """Let time pass: what has a TTL lives through the millisecond in which it ends."""
        self.now += ms
        self.kept = {key: (value, ends) for key, (value, ends) in self.kept.items() if ends >= self.now}
        self.stats = {key: (value, ends) for key, (value, ends) in self.stats.items() if ends >= self.now}
        for tier in self.tiers:
            for group in tier.groups.values():
                if group.liveness_ends < self.now:
                    group.alive.clear()
                    group.leases.clear()
                if group.evidence_ends < self.now:
                    group.crashes.clear()
                    group.alone.clear()
                    group.cancelled.clear()

    # --- producing -----------------------------------------------------------------------------

    def add(self, at: int, fields: dict[str, str]) -> EntryId:
        """XADD."""
        entry = self.bind(at, fields)
        tier = self.tiers[at]
        assert entry > max(tier.entries, default=(0, 0)), "ids of entries grow"
        tier.entries[entry] = fields
        return entry

    def enqueue(
        self, at: int, task_id: str, flat: list[str], delay: int, due: int | None, guards: Sequence[tuple[str, int]]
    ) -> tuple[bool, str, EntryId | None]:
        """Accept a task once: (whether, the id that holds the guard or was made, its entry)."""
        for key, _ in guards:
            if key in self.kept:
                return False, self.kept[key][0], None
        tier = self.tiers[at]
        if task_id in tier.delayed:
            return False, task_id, None
        for key, ttl in guards:
            self.kept[key] = (task_id, self.now + ttl)
        if due is None and delay > 0:
            due = self.now + delay
        if due is not None:
            tier.delayed[task_id] = (due, flat)
            return True, task_id, None
        return True, task_id, self.add(at, paired(flat))

    def cancel(
        self, at: int, task_id: str, entry: EntryId | None, group: str, result: tuple[str, str, int] | None
    ) -> str:
        """Withdraw what was not delivered yet, and mark what runs. `result` is (key, payload, TTL)."""
        tier, found = self.tiers[at], "unknown"
        for member in (task_id, f"{group}|{task_id}"):
            if tier.delayed.pop(member, None) is not None:
                found = "delayed"
        if found == "unknown" and entry in tier.entries:
            found = "queued"
            if any(entry in one.pending for one in tier.groups.values()):
                found = "running"
                tier.groups[group].cancelled.add(entry)
                tier.groups[group].evidence_ends = self.now + DAY
            else:
                del tier.entries[entry]
        if result is not None and found in ("delayed", "queued"):
            self._keep(*result)
        return found

    # --- consuming -----------------------------------------------------------------------------

    def read(self, at: int, name: str, consumer: str, count: int) -> list[EntryId]:
        """XREADGROUP of one tier."""
        tier, group = self.tiers[at], self.tiers[at].groups[name]
        found = [entry for entry in tier.entries if entry > group.last][:count]
        for entry in found:
            group.pending[entry] = Held(consumer, self.now)
            group.last = entry
        return found

    def ack(self, at: int, name: str, entries: Iterable[EntryId]) -> list[EntryId]:
        """The work is done, whoever holds it. Returns those that came late."""
        return [entry for entry in entries if not self._settle(at, name, entry)]

    def ack_results(self, at: int, name: str, results: Sequence[tuple[EntryId, tuple[str, str, int]]]) -> list[EntryId]:
        """As `ack`, and the result of whoever came first is kept."""
        late = []
        for entry, result in results:
            if self._settle(at, name, entry):
                self._keep(*result)
            else:
                late.append(entry)
        return late

    def postpone(
        self, at: int, name: str, consumer: str, entry: EntryId, delay: int, member: str, flat: list[str]
    ) -> int:
        """Run again later, if it is still held, and is not to be cancelled (then the answer is 2)."""
        if not self.holds(at, name, consumer, entry):
            return 0
        if entry in self.tiers[at].groups[name].cancelled:
            return 2
        self._settle(at, name, entry)
        if member in self.tiers[at].delayed:
            member = f"{member}|{spelt_id(entry)}"
        self.tiers[at].delayed[member] = (self.now + delay, flat)
        return 1

    def bury(
        self, at: int, name: str, consumer: str, entry: EntryId, letter: dict[str, str],
        result: tuple[str, str, int] | None, *, cancellable: bool,
    ) -> int:  # fmt: skip
        """A dead letter, if it is still held; the oldest make room for it. 2: it is to be cancelled instead."""
        if not self.holds(at, name, consumer, entry):
            return 0
        if cancellable and entry in self.tiers[at].groups[name].cancelled:
            return 2
        self._settle(at, name, entry)
        self.dead[self.bind(None, letter)] = letter
        self.anybody_died = True
        while len(self.dead) > self._max_dead:
            del self.dead[min(self.dead)]
        if result is not None:
            self._keep(*result)
        return 1

    def release(self, at: int, name: str, consumer: str, entries: Iterable[EntryId], idle: int) -> int:
        """Hand back what is still held."""
        mine = [entry for entry in entries if self.holds(at, name, consumer, entry)]
        for entry in mine:
            self.tiers[at].groups[name].pending[entry] = Held(RELEASED_CONSUMER, self.now - idle)
        return len(mine)

    def replay(
        self, letter: EntryId, at: int, fields: dict[str, str], guard: tuple[str, int] | None, dead_id: str
    ) -> tuple[EntryId | None, str]:
        """A dead letter becomes a task again, once, with its deduplication key: (its entry, the holder of the key).

        The dead task itself may hold the key still.
        """
        if letter not in self.dead:
            return None, ""
        if guard is not None and guard[0] in self.kept and self.kept[guard[0]][0] != dead_id:
            return None, self.kept[guard[0]][0]
        del self.dead[letter]
        if guard is not None:
            self.kept[guard[0]] = (fields["id"], self.now + guard[1])
        return self.add(at, fields), ""

    def count(self, key: str, counters: dict[str, int], ttl: int) -> None:
        """Add a worker's counters to their window."""
        sums = dict(self.stats[key][0]) if key in self.stats else {}
        for what, amount in counters.items():
            sums[what] = sums.get(what, 0) + amount
        self.stats[key] = (sums, self.now + ttl)

    # --- leases --------------------------------------------------------------------------------

    def holds(self, at: int, name: str, consumer: str, entry: EntryId) -> bool:
        held = self.tiers[at].groups[name].pending.get(entry)
        return held is not None and held.owner == consumer

    def renew(
        self, name: str, consumer: str, lease: int, held: Sequence[Sequence[EntryId]], in_full: Collection[int]
    ) -> tuple[list[list[EntryId]], list[list[EntryId]]]:
        """Keep what is held and live on. Returns, by tier, what is not held any more, and what is to be cancelled."""
        lost, cancelled = [], []
        for at, entries in enumerate(held):
            group = self.tiers[at].groups[name]
            lost.append([entry for entry in entries if not self.holds(at, name, consumer, entry)])
            cancelled.append([entry for entry in entries if entry not in lost[-1] and entry in group.cancelled])
            for entry in entries:
                if entry not in lost[-1]:
                    group.pending[entry] = Held(consumer, self.now)
            if at in in_full or consumer not in group.alive:
                group.leases[consumer] = lease
                group.liveness_ends = self.now + DAY
            group.alive[consumer] = self.now + lease
        return lost, cancelled

    def reclaim(
        self, at: int, name: str, consumer: str, *, idle: int, margin: int, cursor: EntryId, count: int,
        max_crashes: int, suspect_after: int, deadline: int,
    ) -> tuple[EntryId, list[Taken], bool]:  # fmt: skip
        """Take over what was handed back, what the dead held, and what nobody renews; one suspect at most."""
        if self.now > deadline:
            return cursor, [], False
        group, taken, suspects, left = self.tiers[at].groups[name], list[Taken](), 0, 0
        for owner in sorted({held.owner for held in group.pending.values()}):
            dead = owner != consumer and group.alive.get(owner, self.now) < self.now
            if len(taken) >= count or not (dead or owner == RELEASED_CONSUMER):
                continue
            for entry in sorted(entry for entry, held in group.pending.items() if held.owner == owner):
                if dead and self.now - group.pending[entry].since < idle:
                    continue
                suspect = len(group.crashes.get(entry, ())) + dead >= suspect_after
                suspects += suspect
                left += suspect and suspects > 1
                if len(taken) < count and not (suspect and suspects > 1):
                    taken.append(self._blame(group, entry, owner, max_crashes) if dead else _innocent(group, entry))
                    group.pending[entry] = Held(consumer, self.now)
        if len(taken) < count and not left:
            longest = max((group.leases[who] for who, until in group.alive.items() if until >= self.now), default=0)
            cursor, strays = self._strays(group, cursor, max(longest, idle) + margin, count - len(taken))
            for entry in strays:
                group.pending[entry] = Held(consumer, self.now)
                taken.append(_innocent(group, entry))
        return cursor, taken, left > 0

    def _strays(self, group: Group, cursor: EntryId, idle: int, room: int) -> tuple[EntryId, list[EntryId]]:
        """XAUTOCLAIM: what it claims, and where the next one goes on; it looks at ten times its COUNT at most."""
        ahead, found, looks = [entry for entry in sorted(group.pending) if entry >= cursor], list[EntryId](), 10 * room
        while ahead and looks and len(found) < room:
            entry, looks = ahead.pop(0), looks - 1
            if self.now - group.pending[entry].since >= idle:
                found.append(entry)
        return (ahead[0] if ahead else (0, 0)), found

    def _blame(self, group: Group, entry: EntryId, owner: str, max_crashes: int) -> Taken:
        """Note that a worker died; it is convicting if that ran nothing else, and remembered from `max_crashes` on."""
        crashes = group.crashes[entry] = (*group.crashes.get(entry, ()), owner)
        convicted = group.alone.get(entry) in (owner, "!")
        if convicted and len(crashes) >= max_crashes:
            group.alone[entry] = "!"
        group.evidence_ends = self.now + DAY
        return Taken(entry, crashes, convicted, orphaned=True)

    def run_alone(self, at: int, name: str, consumer: str, entry: EntryId) -> bool:
        """Note that a suspect starts with nothing beside it."""
        if not self.holds(at, name, consumer, entry):
            return False
        group = self.tiers[at].groups[name]
        group.alone[entry] = consumer
        group.evidence_ends = self.now + DAY
        return True

    def survey(self, name: str, at: int) -> tuple[list[int], bool]:
        """Return what is pending in each tier, and whether a consumer of one is dead and holds nothing."""
        group = self.tiers[at].groups[name]
        holding = {held.owner for held in group.pending.values()}
        gone = any(until <= self.now and who not in holding for who, until in group.alive.items())
        return [len(tier.groups[name].pending) for tier in self.tiers], gone

    def depart(self, name: str, consumer: str) -> None:
        """Remove a consumer, or ('') those whose time is up, where they hold nothing."""
        for tier in self.tiers:
            group = tier.groups[name]
            gone = {consumer}
            if not consumer:  # the longest dead first, ten at most
                late = sorted((until, who) for who, until in group.alive.items() if until <= self.now)
                gone = {who for _, who in late[:10]}
            for who in gone - {held.owner for held in group.pending.values()}:
                group.alive.pop(who, None)
                group.leases.pop(who, None)

    # --- the delayed ---------------------------------------------------------------------------

    def promote(self, limit: int) -> tuple[int, int | None, bool]:
        """Move what is due. Returns how many, ms until the next, whether there may be more."""
        moved, more, times = 0, False, []
        for at, tier in enumerate(self.tiers):
            due = sorted((time, member) for member, (time, _) in tier.delayed.items() if time <= self.now)[:limit]
            for _, member in due:
                self.add(at, paired(tier.delayed.pop(member)[1]))
            moved += len(due)
            more = more or len(due) == limit
            times += [time for time, _ in tier.delayed.values()]
        return moved, max(0, min(times) - self.now) if times else None, more

    # --- what they share -----------------------------------------------------------------------

    def _keep(self, key: str, payload: str, ttl: int) -> None:
        self.kept[key] = (payload, self.now + ttl)

    def _settle(self, at: int, name: str, entry: EntryId) -> bool:
        """Acknowledge; an entry leaves once no group wants it. Whatever happened, nothing is held against it."""
        tier = self.tiers[at]
        group = tier.groups[name]
        held = group.pending.pop(entry, None)
        group.forgive(entry)
        if not any(entry > one.last or entry in one.pending for one in tier.groups.values()):
            tier.entries.pop(entry, None)
        return held is not None


def _innocent(group: Group, entry: EntryId) -> Taken:
    """Taken over, and nobody died."""
    return Taken(entry, group.crashes.get(entry, ()), convicted=False, orphaned=False)


def paired(flat: Sequence[str]) -> dict[str, str]:
    """Return flat fields as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def spelt_id(entry: EntryId) -> str:
    """Return an entry's id as Redis writes it."""
    return f"{entry[0]}-{entry[1]}"


def _unbound(at: int | None, fields: dict[str, str]) -> EntryId:
    raise AssertionError(f"nobody said which id an entry gets: {at} {fields}")
