"""What the machine stands on: a server and the model side by side, those who send, and those who read."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamq.queue.enqueue_requests import GuardedEnqueue
from streamq.queue.lease_commands import reclaim, renew
from streamq.wire.delivery import Delivery
from streamq.wire.message import pack_flat
from streamq.wire.side_effects import KeepResult
from tests.stateful.driver import GROUPS, MAX_DEAD, TIERS, Server, adopt, compare, expected, look, spelt
from tests.stateful.ledger import Ledger
from tests.stateful.model import EntryId, Model

SLOT = 1_000_000  # ms: most durations here are multiples of it
NUDGE = 10_000  # ms by which a real server's clock is advanced further: nothing is due in the very moment
LEASES = (1, 3)  # slots
MAX_CRASHES, SUSPECT_AFTER = 2, 1
START_CURSOR = (0, 0)

picks = st.integers(0, 11)
slots = st.sampled_from([0, 1, 1, 2, 9])


@dataclass(slots=True)
class Member:
    """A consumer: its name changes with each life."""

    group: str
    name: str
    lease: int  # ms
    hands: list[Delivery] = field(default_factory=list)  # what it believes to hold
    cursors: dict[int, EntryId] = field(default_factory=dict)


class Foundation(RuleBasedStateMachine):
    """Producers, consumers that read, and time."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self._numbers = itertools.count(1)

    @initialize(groups=st.sampled_from([1, 1, 2]), load=st.integers(0, 5))
    def begin(self, groups: int, load: int) -> None:
        """An empty server, or one that is at work already."""
        names = GROUPS[:groups]
        self.stores = self.server.fresh(names)
        self.store = self.stores[names[0]]
        self.model = Model(self.server.now, len(TIERS), names, max_dead=MAX_DEAD)
        self.model.bind = self._bind
        self.ledger = Ledger(self.model)
        self._bound: dict[int | None, EntryId] = {}
        self.sent: list[tuple[int, str, EntryId | None]] = []
        self.members = [
            Member(name, f"{letter}.1", lease * SLOT)
            for name in names
            for letter, lease in zip("ab", LEASES, strict=True)
        ]
        for _ in range(load):
            self.enqueue(0)
            self.enqueue_guarded([(1, None, None, 1, None)])
        for who, _ in enumerate(self.members):
            self.renew(who)
            self.read(who, (0, 1), 2)

    # --- what rules are made of ------------------------------------------------------------------

    def _bind(self, at: int | None, fields: dict[str, str]) -> EntryId:
        """Return the id that the server gave to what was written next."""
        keys = self.store.keys
        stream = keys.dead if at is None else keys.tiers[at].stream
        after = self._bound.get(at, (0, 0))
        ((entry, flat),) = self.server.call([("XRANGE", stream, "(" + spelt(after), "+", "COUNT", 1)])[0]
        found = Delivery(0, "", entry, flat)
        assert {key.decode(): value.decode() for key, value in found.fields.items()} == fields
        ms, number = (int(part) for part in entry.split(b"-"))
        if self.server.exact:
            assert ms == self.model.now
        self._bound[at] = (ms, number)
        return ms, number

    def _id(self, prefix: str = "t") -> str:
        return f"{prefix}{next(self._numbers)}"

    def _member(self, pick: int) -> Member:
        return self.members[pick % len(self.members)]

    def _held(self, member: Member, pick: int) -> Delivery:
        return member.hands[pick % len(member.hands)]

    def _one(self, command: Any) -> Any:
        return self.server.call([command])[0]

    def _busy(self, pick: int) -> Member:
        busy = [member for member in self.members if member.hands]
        return busy[pick % len(busy)]

    def _done(self, member: Member, delivery: Delivery, keep: bool) -> None:
        """Settled: a worker forgets it; one that says everything twice does not."""
        if not keep:
            member.hands.remove(delivery)

    # --- producing -------------------------------------------------------------------------------

    @rule(at=st.integers(0, 1))
    def enqueue(self, at: int) -> None:
        task_id = self._id()
        flat = ["task", "t", "id", task_id]
        (answer,) = self.server.run(self.store.enqueue, [self.store.enqueue_commands.plain(at, flat)])
        entry = self.model.add(at, dict(zip(flat[::2], flat[1::2], strict=True)))
        assert (answer.task_id, answer.entry_id, answer.fresh) == ("", spelt(entry), True)
        self._sent(at, task_id, entry)

    def _guarded(self, at: int, own: int | None, dedup: int | None, delay: int, due: int | None) -> tuple[Any, Any]:
        """Return an enqueue that needs the script, and what to ask of the model."""
        task_id = self._id() if own is None else f"own{own}"
        flat = ["task", "t", "id", task_id]
        guards = [] if own is None else [(self.store.keys.accepted(task_id), SLOT)]
        if dedup is not None:
            guards.append((self.store.keys.dedup(f"k{dedup}"), 2 * SLOT))
        moment = None if due is None else self.model.now + due * SLOT
        unix = None if moment is None else self.server.unix(moment)
        wanted = GuardedEnqueue(
            at, task_id, flat, pack_flat(flat), delay * SLOT / 1000, unix, [(key, ttl / 1000) for key, ttl in guards],
        )  # fmt: skip
        return self.store.enqueue_commands.guarded(wanted), (at, task_id, flat, delay * SLOT, moment, guards)

    @rule(
        wanted=st.lists(
            st.tuples(
                st.integers(0, 1), st.sampled_from([None, 0, 0, 1]), st.sampled_from([None, None, 0]), slots,
                st.sampled_from([None, None, -3, 0, 2]),
            ),
            min_size=1, max_size=3,
        )
    )  # fmt: skip
    def enqueue_guarded(self, wanted: list[tuple[int, int | None, int | None, int, int | None]]) -> None:
        """One at a time, or many in a round trip."""
        prepared = [self._guarded(*one) for one in wanted]
        answers = self.server.run(self.store.enqueue, [command for command, _ in prepared])
        for answer, (_, question) in zip(answers, prepared, strict=True):
            fresh, task_id, entry = self.model.enqueue(*question)
            assert (answer.fresh, answer.task_id) == (fresh, task_id)
            assert answer.entry_id == ("" if entry is None else spelt(entry))
            if fresh:
                self._sent(question[0], task_id, entry)

    @rule(at=st.integers(0, 1))
    def add_by_hand(self, at: int) -> None:
        """XADD without an id: the entry's id stands in."""
        self._one(("XADD", self.store.keys.tiers[at].stream, "*", "task", "t"))
        entry = self.model.add(at, {"task": "t"})
        self._sent(at, spelt(entry), entry)

    def _sent(self, at: int, task_id: str, entry: EntryId | None) -> None:
        self.sent.append((at, task_id, entry))
        self.ledger.accepted(task_id)

    @precondition(lambda self: self.sent)
    @rule(pick=picks, result=st.booleans())
    def cancel(self, pick: int, result: bool) -> None:
        at, task_id, entry = self.sent[pick % len(self.sent)]
        kept = (self.store.keys.result(task_id), '{"error_type":"Cancelled"}', 2 * SLOT)
        told = [KeepResult(task_id, kept[2] / 1000, kept[1].encode())] if result else []
        found = self.server.run(self.store.cancel, at, task_id, "" if entry is None else spelt(entry), told)
        group = self.store.keys.group
        before = self.ledger.places()
        assert found == self.model.cancel(at, task_id, entry, group, kept if result else None)
        self.ledger.withdrawn(task_id, before)

    # --- reading ---------------------------------------------------------------------------------

    @rule(who=picks, tiers=st.sampled_from([(0, 1), (0,), (1,)]), count=st.integers(1, 3))
    def read(self, who: int, tiers: tuple[int, ...], count: int) -> None:
        member = self._member(who)
        store = self.stores[member.group]
        found = store.read_commands.deliveries(self._one(store.read_commands.new_entries(member.name, tiers, count)))
        wanted = {at: self.model.read(at, member.group, member.name, count) for at in tiers}
        ids = {at: [entry_of(delivery) for delivery in deliveries] for at, deliveries in found.items()}
        assert ids == {at: entries for at, entries in wanted.items() if entries}
        for deliveries in found.values():
            member.hands += deliveries

    @rule(who=picks, at=st.integers(0, 1), count=st.integers(1, 3), late=st.sampled_from([False, False, False, True]))
    def reclaim(self, who: int, at: int, count: int, late: bool = False) -> None:
        """A sweep; one that comes late takes nothing."""
        member = self._member(who)
        cursor = member.cursors.get(at, START_CURSOR)
        deadline = self.model.now + (0 if self.server.exact else NUDGE)
        if late:
            deadline = self.model.now - (1 if self.server.exact else NUDGE)
        found_cursor, found, found_left, cancelled = self.server.run(self._reclaim, member, at, count, cursor, deadline)
        cursor, taken, left = self.model.reclaim(
            at, member.group, member.name, idle=member.lease, margin=SLOT, cursor=cursor, count=count,
            max_crashes=MAX_CRASHES, suspect_after=SUSPECT_AFTER, deadline=deadline,
        )  # fmt: skip
        assert (found_cursor.decode(), found_left) == (spelt(cursor), left)
        marked = self.model.tiers[at].groups[member.group].cancelled
        for deliveries, wanted in (
            (found, [one for one in taken if one.entry not in marked]),
            (cancelled, [one for one in taken if one.entry in marked]),
        ):
            facts = [(entry_of(one), one.crashed_workers, one.crash_proven, one.owner_died) for one in deliveries]
            assert facts == [(one.entry, one.crashes, one.convicted, one.orphaned) for one in wanted]
        found += cancelled
        member.cursors[at] = cursor
        known = {(one.tier, one.entry_id) for one in found}
        member.hands = [one for one in member.hands if (one.tier, one.entry_id) not in known] + found

    async def _reclaim(self, member: Member, at: int, count: int, cursor: EntryId, deadline: int) -> Any:
        return await reclaim(
            self.stores[member.group],
            member.name, at, idle=member.lease / 1000, margin=SLOT / 1000, cursor=spelt(cursor).encode(), count=count,
            max_crashes=MAX_CRASHES, suspect_after=SUSPECT_AFTER, deadline=self.server.unix(deadline),
        )  # fmt: skip

    # --- living ----------------------------------------------------------------------------------

    @rule(who=picks, in_full=st.sets(st.integers(0, 1)))
    def renew(self, who: int, in_full: Collection[int] = ()) -> None:
        member = self._member(who)
        held = [[one.entry_id for one in member.hands if one.tier == at] for at in range(len(TIERS))]
        store = self.stores[member.group]
        now, lost, cancelled = self.server.run(
            partial(renew, store, in_full=in_full), member.name, member.lease / 1000, held
        )
        entries = [[entry_of(one) for one in member.hands if one.tier == at] for at in range(len(TIERS))]
        wanted = self.model.renew(member.group, member.name, member.lease, entries, in_full)
        assert (lost, cancelled) == tuple(
            [[spelt(entry).encode() for entry in some] for some in by_tier] for by_tier in wanted
        )
        if self.server.exact:
            assert now == self.model.now / 1000
        member.hands = [one for one in member.hands if one.entry_id not in lost[one.tier]]

    @rule(ms=st.sampled_from([1, SLOT - 1, SLOT, SLOT + 1, 2 * SLOT, 3 * SLOT, 9 * SLOT, 90 * SLOT]))
    def pass_time(self, ms: int) -> None:
        if not self.server.exact:
            ms = ms // SLOT * SLOT + NUDGE
        self.server.advance(ms, self.model, self.stores)
        self.model.advance(ms)

    # --- always ----------------------------------------------------------------------------------

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        if not hasattr(self, "model"):
            return
        seen = look(self.server, self.stores)
        compare(self.server, seen, expected(self.model, self.stores))
        self.ledger.check(seen)
        if not self.server.exact:
            adopt(self.server, seen, self.model)


def entry_of(delivery: Delivery) -> EntryId:
    """Return a delivery's entry as the model knows it."""
    ms, _, number = delivery.entry_id.decode().partition("-")
    return int(ms), int(number)
