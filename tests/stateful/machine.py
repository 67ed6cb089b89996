"""The queue's commands, in any order, against the model.

Two consumers of each group; what each believes to hold (`hands`), stale or not; producers, an
operator, and time. After each step the answer is that of the model, and so is all that lies in Redis.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from streamq.queue.delayed import next_due, promote
from streamq.queue.lease_commands import mark_isolated, remove_consumers, survey
from streamq.queue.settle_commands import TO_BE_CANCELLED
from streamq.scripts import step
from streamq.wire.dead_letter_fields import Failure, dead_letter_fields
from streamq.wire.delivery import Delivery
from streamq.wire.keys import TOTALS_KEPT
from streamq.wire.message import dumps, pack_flat
from streamq.wire.side_effects import KeepResult
from tests.stateful.driver import TIERS
from tests.stateful.foundation import LEASES, SLOT, Foundation, Member, entry_of, picks, slots
from tests.stateful.model import spelt_id as spelt

FOR_EVER = 1e9  # seconds
words = st.sampled_from(["nothing", "ack", "result", "postpone", "dead_letter", "release", "alone", "renew"])


class QueueMachine(Foundation):
    """One example: a history of steps."""

    # --- settling --------------------------------------------------------------------------------

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, which=st.lists(picks, min_size=1, max_size=3), each=st.booleans(), keep=st.booleans())
    def ack(self, who: int, which: list[int], each: bool, keep: bool) -> None:
        member = self._busy(who)
        first = self._held(member, which[0])
        some = {one.entry_id: one for one in (self._held(member, pick) for pick in which) if one.tier == first.tier}
        (late,) = self._one(self.stores[member.group].settle_commands.ack([(first.tier, list(some))], per_entry=each))
        wanted = self.model.ack(first.tier, member.group, [entry_of(one) for one in some.values()])
        assert late == ([spelt(entry).encode() for entry in wanted] if each else [b""] * len(wanted))
        for delivery in some.values():
            if entry_of(delivery) not in wanted:
                self.ledger.acknowledged(delivery, member.group)
            self._done(member, delivery, keep)

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, pick=picks, keep=st.booleans())
    def ack_with_result(self, who: int, pick: int, keep: bool) -> None:
        member = self._busy(who)
        one = self._held(member, pick)
        if self._foreign(member, one):
            self.ack(who, [pick], each=True, keep=keep)
            return
        payload = dumps({"ok": self._id("result")})
        store = self.stores[member.group]
        command = store.settle_commands.ack_results(
            one.tier, [one.entry_id], [store.settle_commands.result_key(one)], [2 * SLOT / 1000], [payload]
        )
        late = self._one(command)
        result = (self.store.keys.result(one.task_id), payload.decode(), 2 * SLOT)
        wanted = self.model.ack_results(one.tier, member.group, [(entry_of(one), result)])
        assert late == [spelt(entry).encode() for entry in wanted]
        if not wanted:
            self.ledger.acknowledged(one, member.group)
        self._done(member, one, keep)

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, pick=picks, delay=slots, keep=st.booleans())
    def postpone(self, who: int, pick: int, delay: int, keep: bool) -> None:
        member = self._busy(who)
        one = self._held(member, pick)
        if self._foreign(member, one):
            self.ack(who, [pick], each=True, keep=keep)
            return
        flat = one.resend_fields(member.group, attempt=str(one.attempt + 1))
        command = self.stores[member.group].settle_commands.postpone(
            member.name, one, delay * SLOT / 1000, pack_flat(flat)
        )
        task = f"{member.group}|{one.task_id}"
        answer = self._held_by_us(self._one(command), self.model.postpone(
            one.tier, member.group, member.name, entry_of(one), delay * SLOT, task, flat
        ))  # fmt: skip
        self._done(member, one, keep or answer == TO_BE_CANCELLED)

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, pick=picks, result=st.booleans(), keep=st.booleans(), cancellable=st.booleans())
    def dead_letter(self, who: int, pick: int, result: bool, keep: bool, cancellable: bool = True) -> None:
        member = self._busy(who)
        one, store = self._held(member, pick), self.stores[member.group]
        if self._foreign(member, one):
            self.ack(who, [pick], each=True, keep=keep)
            return
        letter = dead_letter_fields(
            one, reason="rejected", failure=Failure("ValueError", "no"), worker=member.name,
            stream=store.keys.tiers[one.tier].stream, died_at=self.model.now / 1000, group=member.group,
        )  # fmt: skip
        told = b'{"error_type":"ValueError"}'
        command = store.settle_commands.dead_letter(
            member.name, one, letter, [KeepResult(one.task_id, 2 * SLOT / 1000, told)] if result else [],
            cancellable=cancellable,
        )  # fmt: skip
        kept = (store.keys.result(one.task_id), told.decode(), 2 * SLOT) if result else None
        texts = [part.decode() if isinstance(part, bytes) else part for part in letter]
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        before = set(self.model.dead)
        answer = self._held_by_us(self._one(command), self.model.bury(
            one.tier, member.group, member.name, entry_of(one), fields, kept, cancellable=cancellable
        ))  # fmt: skip
        if dropped := before - set(self.model.dead):
            self.model.count(store.keys.totals, {"dead_dropped": len(dropped)}, TOTALS_KEPT * 1000)
        self.ledger.trimmed(dropped)
        self._done(member, one, keep or answer == TO_BE_CANCELLED)

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, which=st.lists(picks, min_size=1, max_size=3))
    def release(self, who: int, which: list[int]) -> None:
        member = self._busy(who)
        first = self._held(member, which[0])
        some = {one.entry_id: one for one in (self._held(member, pick) for pick in which) if one.tier == first.tier}
        (command,) = self.stores[member.group].settle_commands.release(
            member.name, first.tier, list(some), member.lease / 1000
        )
        entries = [entry_of(one) for one in some.values()]
        answer = self._one(command)
        assert answer == self.model.release(first.tier, member.group, member.name, entries, member.lease)
        for delivery in some.values():
            member.hands.remove(delivery)

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, pick=picks)
    def run_alone(self, who: int, pick: int) -> None:
        member = self._busy(who)
        one = self._held(member, pick)
        found = self.server.run(mark_isolated, self.stores[member.group], member.name, one)
        assert found == self.model.run_alone(one.tier, member.group, member.name, entry_of(one))

    @staticmethod
    def _foreign(member: Member, delivery: Delivery) -> bool:
        """Is it another group's retry? A worker acknowledges it, and does nothing else with it."""
        return delivery.group not in (None, member.group.encode())

    @staticmethod
    def _held_by_us(answer: Any, wanted: int) -> int:
        """Check the answer of a step that acts only for who holds the delivery."""
        assert answer == int(wanted)
        return wanted

    # --- living and dying ------------------------------------------------------------------------

    @rule(who=picks)
    def die(self, who: int) -> None:
        """A process is gone, and another takes its place."""
        member = self._member(who)
        letter, _, life = member.name.partition(".")
        member.name, member.hands, member.cursors = f"{letter}.{int(life) + 1}", [], {}

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, pick=picks)
    def lose_a_reply(self, who: int, pick: int) -> None:
        """A delivery is pending for a consumer that never heard of it."""
        member = self._busy(who)
        member.hands.remove(self._held(member, pick))

    @rule(who=picks)
    def leave(self, who: int) -> None:
        """The end of a worker: it hands everything back, known to it or not, and goes."""
        member = self._member(who)
        store = self.stores[member.group]
        self.server.run(store.release_all, member.name, member.lease / 1000)
        for at, tier in enumerate(self.model.tiers):
            pending = tier.groups[member.group].pending
            mine = sorted(entry for entry, held in pending.items() if held.owner == member.name)
            self.model.release(at, member.group, member.name, mine, member.lease)
        self.server.run(remove_consumers, store, member.name)
        self.model.depart(member.group, member.name)
        for at, keys in enumerate(store.keys.tiers):
            assert member.name not in self._consumers(keys.stream, member.group), at
        self.die(who)

    def _consumers(self, stream: str, group: str) -> set[str]:
        rows = self._one(("XINFO", "CONSUMERS", stream, group))
        return {dict(zip(flat[::2], flat[1::2], strict=True))[b"name"].decode() for flat in rows}

    @rule(who=picks)
    def remove_the_dead(self, who: int) -> None:
        group = self._member(who).group
        self.server.run(remove_consumers, self.stores[group])
        self.model.depart(group, "")

    @rule(who=picks, at=st.integers(0, 1))
    def survey(self, who: int, at: int) -> None:
        """What an idle worker looks at before it sweeps. Nothing is said here of those that are unknown."""
        group = self._member(who).group
        asked = partial(survey, self.stores[group], now=self.server.unix(self.model.now), forgotten=FOR_EVER)
        pending, gone = self.server.run(asked, at)
        wanted_pending, wanted_gone = self.model.survey(group, at)
        assert pending == wanted_pending
        assert gone == wanted_gone or not self.server.exact

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(
        who=picks, count=st.integers(1, 3), alone=st.booleans(), dies=st.booleans(), then=words,
        after=st.sampled_from([LEASES[1] * SLOT - 1, LEASES[1] * SLOT, LEASES[1] * SLOT + 1, 5 * SLOT, 9 * SLOT]),
    )  # fmt: skip
    def overtake(self, who: int, count: int, alone: bool, dies: bool, then: str, after: int) -> None:
        """Nothing is heard of a consumer for long, and another sweeps. It is dead, or speaks up late."""
        gone = self._busy(who)
        at = gone.hands[0].tier
        if alone:
            self.run_alone(who, 0)
        self.pass_time(after)
        other = next(at for at, one in enumerate(self.members) if one.group == gone.group and one is not gone)
        self.renew(other)
        self.reclaim(other, at, count)
        if dies:
            self.die(self.members.index(gone))
        else:
            self._speak_late(gone, then)

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, which=st.lists(picks, min_size=1, max_size=3), count=st.integers(1, 3))
    def hand_over(self, who: int, which: list[int], count: int) -> None:
        """What one hands back another takes."""
        giver = self._busy(who)
        at = giver.hands[which[0] % len(giver.hands)].tier
        self.release(who, which)
        other = next(at for at, one in enumerate(self.members) if one.group == giver.group and one is not giver)
        self.reclaim(other, at, count)

    @precondition(lambda self: any(member.hands for member in self.members))
    @rule(who=picks, count=st.integers(1, 2))
    def find_strays(self, who: int, count: int) -> None:
        """A living consumer never heard of what is pending for it; another's sweep goes on from its cursor."""
        deaf = self._busy(who)
        at, deaf.hands = deaf.hands[0].tier, []
        other = next(at for at, one in enumerate(self.members) if one.group == deaf.group and one is not deaf)
        self.pass_time(5 * SLOT)
        for member in (self.members.index(deaf), other):
            self.renew(member)
        for _ in range(3):
            self.reclaim(other, at, count)

    def _speak_late(self, gone: Member, word: str) -> None:
        """Have a consumer say something of what is not its own any more, if there is such a thing."""
        who = [member for member in self.members if member.hands].index(gone)
        lost = [
            pick for pick, one in enumerate(gone.hands)
            if not self.model.holds(one.tier, gone.group, gone.name, entry_of(one))
        ]  # fmt: skip
        pick = next(iter(lost), 0)
        match word:
            case "ack":
                self.ack(who, [pick], each=True, keep=False)
            case "result":
                self.ack_with_result(who, pick, keep=False)
            case "postpone":
                self.postpone(who, pick, delay=1, keep=False)
            case "dead_letter":
                self.dead_letter(who, pick, result=True, keep=False)
            case "release":
                self.release(who, [pick])
            case "alone":
                self.run_alone(who, pick)
            case "renew":
                self.renew(self.members.index(gone))

    # --- the rest --------------------------------------------------------------------------------

    @rule(limit=st.sampled_from([1, 2, 100]))
    def promote(self, limit: int) -> None:
        due = self.server.run(next_due, self.store, range(len(self.store.tiers)))
        moved, left, more = self.server.run(promote, self.store, limit)
        wanted_moved, wanted_left, wanted_more = self.model.promote(limit)
        assert (moved, more) == (wanted_moved, wanted_more)
        assert (left is None) == (wanted_left is None)
        assert due is None if left is None and not moved else due is not None
        if left is not None and not moved:
            assert due > 0
            assert abs(due - left) < 0.002 or not self.server.exact
        if self.server.exact and left is not None:
            assert round(left * 1000) == wanted_left

    @rule(what=st.dictionaries(st.sampled_from(["low|t|superseded", "high|t|failed"]), st.integers(1, 5), min_size=1))
    def count(self, what: dict[str, int]) -> None:
        at = self.model.now / 1000
        self._one(self.store.settle_commands.add_counters(at, what))
        self.model.count(self.store.keys.stats(at), what, 900_000)

    @precondition(lambda self: self.model.dead)
    @rule(pick=picks, twice=st.booleans(), dedup=st.booleans(), own=st.booleans())
    def replay(self, pick: int, twice: bool, dedup: bool, own: bool) -> None:
        letter = sorted(self.model.dead)[pick % len(self.model.dead)]
        at = [tier.name for tier in TIERS].index(self.model.dead[letter]["tier"])
        for _ in range(1 + twice):
            task_id = self._id("replay")
            flat = ["task", "t", "id", task_id]
            guard = (self.store.keys.dedup("k0"), 2 * SLOT) if dedup else None
            names = [self.store.keys.dead, self.store.keys.tiers[at].stream]
            dead_id = "dead"
            if guard is not None:
                names += (guard[0], self.store.keys.latest("k0"))
                dead_id = self.model.kept.get(guard[0], (dead_id, 0))[0] if own else dead_id
            answer = self._one(step("replay")(names, spelt(letter), task_id, dead_id, 2 * SLOT, "", "", 0, *flat))
            entry, holder = self.model.replay(letter, at, dict(zip(flat[::2], flat[1::2], strict=True)), guard, dead_id)
            assert [part.decode() for part in answer] == ["" if entry is None else spelt(entry), holder]
            if entry is not None:
                self.ledger.replayed(letter)
                self._sent(at, task_id, entry)
